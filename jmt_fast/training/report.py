"""A training run as one page: loss and CCC by epoch, the valence-arousal plane, the CCC of each video."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jmt_fast.errors import DataError, JMTError
from jmt_fast.training.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALENCE, AROUSAL, OTHER = "#c2532f", "#2f6fc2", "#555555"
NAMED = 40  # videos that are named in the picture; more would not be legible

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; background: white; border-radius: 6px; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
"""


def write_report(folder: Path, page: Path) -> Predictions:
    """One self-contained HTML file about the run in `folder`; returns its predictions for the validation split.

    Raises DataError where the folder holds no finished run, JMTError where the page cannot be written.
    """
    history = _history(folder / "metrics.jsonl")
    predictions = read_predictions(folder / "validation.parquet")
    pictures = [curves(history), plane(predictions), videos(predictions)]
    titles = ("Loss and CCC by epoch", "Valence and arousal of all labelled frames", "CCC of each video")
    pooled = predictions.pooled()
    best = max(history, key=lambda entry: entry["mean"])
    parts = [
        f"<h1>{html.escape(folder.resolve().name)}</h1>",
        f"<p>Validation CCC: valence {pooled[0]:.3f}, arousal {pooled[1]:.3f}, mean {pooled.mean():.3f}, "
        f"over {len(predictions.time):,} labelled frames of {len(predictions.per_video())} videos; best epoch "
        f"{best['epoch']} of {len(history)}.</p>",
        *(f"<h2>{title}</h2>{_embedded(figure, title)}" for title, figure in zip(titles, pictures, strict=True)),
        _table(predictions.per_video()),
    ]
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(folder.resolve().name)}</title><style>{STYLE}</style>{''.join(parts)}</html>"
    )
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise JMTError(f"{page}: cannot be written: {error.strerror}; pass another --out") from error
    return predictions


def curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Mean loss of each epoch, and CCC on the validation split with the selected epoch."""
    figure, (left, right) = _figure(1, 2, (10, 3.6))
    epochs = [entry["epoch"] for entry in history]
    left.plot(epochs, [entry["loss"] for entry in history], color=OTHER, marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss: sum of 1 - CCC")
    for name, colour in (("valence", VALENCE), ("arousal", AROUSAL), ("mean", OTHER)):
        values = [entry[name] for entry in history]
        right.plot(epochs, values, color=colour, marker="o", markersize=3, label=name)
    best = max(history, key=lambda entry: entry["mean"])
    right.axvline(best["epoch"], color=OTHER, linestyle=":", linewidth=1)
    right.annotate(f"selected: {best['mean']:.3f}", (best["epoch"], best["mean"]), (4, 6), textcoords="offset points")
    right.set(xlabel="epoch", ylabel="validation CCC")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plane(predictions: Predictions) -> Figure:
    """Where labels and predictions lie in the plane of valence and arousal: log density, one scale for both."""
    figure, axes = _figure(1, 2, (10, 4.8))
    edges = np.linspace(-1, 1, 61)
    counts = []
    for values in (predictions.labels, predictions.predicted):
        valence, arousal = np.clip(values, -1, 1).T
        counts.append(np.histogram2d(valence, arousal, bins=(edges, edges))[0].T)
    top = max(float(count.max()) for count in counts)
    for each, count, title in zip(axes, counts, ("labels", "predictions"), strict=True):
        shown = each.pcolormesh(
            edges, edges, np.ma.masked_equal(count, 0), cmap="viridis", norm="log", vmin=1, vmax=max(top, 2)
        )
        each.axhline(0, color=OTHER, linewidth=0.5)
        each.axvline(0, color=OTHER, linewidth=0.5)
        each.set(title=title, xlabel="valence", ylabel="arousal", aspect="equal")
        each.set(xticks=np.linspace(-1, 1, 5), yticks=np.linspace(-1, 1, 5))
    figure.colorbar(shown, ax=axes, label="frames", shrink=0.8)
    return figure


def videos(predictions: Predictions) -> Figure:
    """CCC of each video, sorted by the mean; the worst NAMED by name where there are more."""
    found = list(predictions.per_video().items())
    named = found[:NAMED]
    figure, axes = _figure(1, 1, (10, 1.2 + 0.22 * len(named)) if len(found) <= NAMED else (10, 10))
    rows = np.arange(len(named))
    for column, (name, colour) in enumerate((("valence", VALENCE), ("arousal", AROUSAL))):
        axes.scatter([ccc[column] for _, ccc in named], rows, s=18, color=colour, label=name, zorder=3)
    axes.hlines(rows, [ccc.min() for _, ccc in named], [ccc.max() for _, ccc in named], color="#bbbbbb", linewidth=1)
    axes.scatter([ccc.mean() for _, ccc in named], rows, marker="|", color=OTHER, label="mean", zorder=3)
    axes.set_yticks(rows, [name if len(name) <= NAMED else name[: NAMED - 1] + "…" for name, _ in named], fontsize=8)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name may hold dollar signs
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.set(xlabel="CCC" if len(found) <= NAMED else f"CCC of the worst {NAMED} of {len(found)} videos")
    axes.axvline(0, color=OTHER, linewidth=0.5)
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    axes = figure.subplots(rows, columns)
    each: Axes
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#eeeeee", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _embedded(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _table(per_video: dict[str, np.ndarray]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{ccc[0]:.3f}</td><td>{ccc[1]:.3f}</td><td>{ccc.mean():.3f}</td></tr>"
        for name, ccc in per_video.items()
    )
    return f"<table><tr><th>video</th><th>valence</th><th>arousal</th><th>mean</th></tr>{lines}</table>"


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        history = [json.loads(line) for line in path.read_text().splitlines()]
        _ = [(entry["epoch"], entry["loss"], entry["valence"], entry["arousal"], entry["mean"]) for entry in history]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give the folder of a training run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); train again") from error
    if not history:
        raise DataError(f"{path}: no epoch was finished; train first")
    return history
