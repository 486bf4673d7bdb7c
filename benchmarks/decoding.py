"""One video by NVDEC (on a CPU DALI's own decoder) or PyAV: to clips on the device, and decoded with nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import torch

from jmt_fast.data import OpenRecording, clip_frames, clip_times
from jmt_fast.data.graph import ClipGraph, can_decode, ops
from jmt_fast.errors import MediaError
from jmt_fast.features import frames
from jmt_fast.features.extract import CLIPS_PER_BLOCK
from jmt_fast.media.dali import reader
from jmt_fast.models import Clips

BLOCK, AHEAD = 32, 2  # frames a run and runs in flight, as `ClipGraph.decoded` has them


def planned(recording: OpenRecording, stride: int) -> np.ndarray:
    """The frames of each clip, (N, 8)."""
    return clip_frames(recording.timestamps, clip_times(recording.timestamps, stride))


def missing(recording: OpenRecording, graph: ClipGraph) -> str | None:
    """Why the graph does not decode this video; None if it does. The whole of it is tried: later on PyAV would step
    in without a word."""
    possible, reason = can_decode(recording.info, graph.device)
    if not possible:
        return reason
    try:
        for _ in graph.decoded(recording.info):
            pass
    except MediaError as error:
        return str(error)
    return None


def to_clips(recording: OpenRecording, graph: ClipGraph, stride: int, in_graph: bool) -> list[Clips]:
    """All clips, as the extractor takes them."""
    rows = planned(recording, stride)
    with closing(frames.FrameSource(recording, np.unique(rows), graph, in_graph)) as source:
        return [source.clips(rows[first : first + CLIPS_PER_BLOCK]) for first in range(0, len(rows), CLIPS_PER_BLOCK)]


def decoded_in_graph(recording: OpenRecording, graph: ClipGraph) -> None:
    """Every frame, at its own size, and dropped."""
    info, device = recording.info, graph.device

    def define() -> object:
        return reader(info.path, "gpu" if device.type == "cuda" else "cpu", length=1)[0]

    runs = -(-info.frames // BLOCK)
    with ops.on(device):
        pipeline = ops.build(define, device, graph.threads, min(BLOCK, info.frames), depth=AHEAD)
        for _ in range(min(AHEAD, runs)):
            pipeline.schedule_run()
        for run in range(runs):
            pipeline.outputs(torch.cuda.current_stream(device) if device.type == "cuda" else None)
            if run + AHEAD < runs:
                pipeline.schedule_run()


def decoded_by_pyav(recording: OpenRecording, graph: ClipGraph, stride: int) -> None:
    """The frames that clips need, as they are given to the graph, and dropped."""
    for _ in recording.frames(np.unique(planned(recording, stride)), graph.shorter):
        pass


def without_nvdec(call: Callable[[], object]) -> Callable[[], None]:
    """The same call on a machine whose GPU does not decode."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frames, "can_decode", lambda info, device: (False, "turned off by a benchmark"))
            call()

    return run
