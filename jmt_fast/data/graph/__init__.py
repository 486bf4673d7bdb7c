"""From frames and samples to the networks' inputs: one DALI graph, the same on a CPU and on a GPU."""

from jmt_fast.data.graph.clips import ClipGraph
from jmt_fast.data.graph.decode import can_decode

__all__ = ["ClipGraph", "can_decode"]
