"""The picture of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from jmt_fast.config import UNANNOTATED

if TYPE_CHECKING:
    from jmt_fast.inference.trace import Trace

COLOURS = {"valence": "#1b7f5c", "arousal": "#b4431f"}


def plot_trace(trace: Trace, truth: np.ndarray | None = None, title: str | None = None) -> Figure:
    """One panel a dimension; unannotated truth and invalid frames leave gaps, invalid ones are shaded."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for column, (name, panel) in enumerate(zip(COLOURS, panels, strict=True)):
        if truth is not None:
            drawn = np.where((truth == UNANNOTATED).any(1), np.nan, truth[:, column])
            panel.plot(trace.times, drawn, color="0.55", lw=2.2, label="annotation")
        panel.plot(trace.times, trace.values[:, column], color=COLOURS[name], lw=1.4, label="prediction")
        panel.fill_between(trace.times, -1, 1, where=~trace.valid, color="0.9", step="mid", label="_invalid", zorder=0)
        panel.set(ylim=(-1.02, 1.02), ylabel=name)
        panel.axhline(0, color="0.8", lw=0.8, zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="upper right", frameon=False, ncols=2)
    panels[1].set(xlabel="time [s]", xlim=(trace.times[0], max(trace.times[-1], trace.times[0] + 1e-3)))
    figure.suptitle(title or trace.source.name)
    return figure
