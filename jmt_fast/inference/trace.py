"""Valence and arousal of one person over time: a table, a plot, a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from jmt_fast.data.traces import smooth

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SCHEMA = pa.schema(
    {
        "person": pa.string(),
        "frame": pa.int64(),
        "time": pa.float64(),
        "valence": pa.float32(),
        "arousal": pa.float32(),
        "valid": pa.bool_(),
    }
)
ALONE = 1 / 30  # seconds that a video's only frame is taken to last


@dataclass(frozen=True)
class Trace:
    """One row a frame: `person` string, `frame` int64 (0-based), `time` float64 (presentation timestamp, seconds),
    `valence` and `arousal` float32 in [-1, 1], `valid` bool. `warnings` are lines about the source file."""

    table: pa.Table
    source: Path
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        source: Path,
        timestamps: np.ndarray,
        values: np.ndarray,
        valid: np.ndarray,
        person: str = "0",
        warnings: list[str] | None = None,
    ) -> Trace:
        """From `timestamps` (F,) seconds, `values` (F, 2) and `valid` (F,) bool."""
        count = len(timestamps)
        columns = [pa.repeat(person, count), np.arange(count), timestamps, values[:, 0], values[:, 1], valid]
        table = pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], SCHEMA)
        return cls(table, source, warnings or [])

    @property
    def values(self) -> np.ndarray:
        """float32 (F, 2): valence, arousal."""
        return np.stack([self.table["valence"].to_numpy(), self.table["arousal"].to_numpy()], axis=1)

    @property
    def person(self) -> str:
        return self.table["person"][0].as_py()

    @property
    def times(self) -> np.ndarray:
        """float64 (F,), seconds."""
        return self.table["time"].to_numpy()

    @property
    def ends(self) -> np.ndarray:
        """float64 (F,), seconds: when each frame gives way to the next; the last one lasts as long as the median."""
        gaps = np.diff(self.times)
        return self.times + np.append(gaps, np.median(gaps) if len(gaps) else ALONE)

    @property
    def valid(self) -> np.ndarray:
        """bool (F,): the person is seen in the frame."""
        return self.table["valid"].to_numpy(zero_copy_only=False)

    def smoothed(self, valence: int, arousal: int, kind: str = "uniform") -> Trace:
        """Smoothed over so many frames (the challenge's winners use 20 and 50), padded with the edge values."""
        values = smooth(self.values, (valence, arousal), kind)
        return Trace.build(
            self.source,
            self.times,
            values,
            self.valid,
            self.person,
            self.warnings,
        )

    def to_pandas(self) -> pandas.DataFrame:
        return self.table.to_pandas()

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write Parquet, CSV, JSON Lines (.jsonl), ELAN (.eaf) or WebVTT (.vtt), by `format` or the ending of `path`.

        The file appears whole or not at all. Raises JMTError for another ending or when the disk is full.
        """
        from jmt_fast.inference.formats import save

        return save(self, path, format)

    def plot(self, truth: np.ndarray | None = None, title: str | None = None) -> Figure:
        """Valence and arousal over time; `truth` (F, 2), with -5 where not annotated, is drawn behind."""
        from jmt_fast.inference.plots import plot_trace

        return plot_trace(self, truth, title)
