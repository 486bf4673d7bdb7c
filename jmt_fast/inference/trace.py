"""Valence and arousal of one person over time: a table, a plot, a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jmt_fast.data.traces import smooth
from jmt_fast.errors import JMTError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

FORMATS = ("parquet", "csv")


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
        table = pa.table(
            {
                "person": pa.array([person] * count, pa.string()),
                "frame": pa.array(np.arange(count), pa.int64()),
                "time": pa.array(timestamps, pa.float64()),
                "valence": pa.array(values[:, 0], pa.float32()),
                "arousal": pa.array(values[:, 1], pa.float32()),
                "valid": pa.array(valid, pa.bool_()),
            }
        )
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

    def smoothed(self, valence: int, arousal: int, kind: str = "uniform") -> Trace:
        """Smoothed over so many frames (the challenge's winners use 20 and 50), padded with the edge values."""
        values = smooth(self.values, (valence, arousal), kind)
        return Trace.build(
            self.source,
            self.times,
            values,
            self.table["valid"].to_numpy(zero_copy_only=False),
            self.person,
            self.warnings,
        )

    def to_pandas(self) -> pandas.DataFrame:
        return self.table.to_pandas()

    def save(self, path: str | Path) -> Path:
        """Write Parquet or CSV, by the ending of `path`; the file appears whole or not at all.

        Raises JMTError for another ending or when the disk is full.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.part")
        try:
            match path.suffix:
                case ".parquet":
                    pa.parquet.write_table(self.table, temporary)
                case ".csv":
                    pa.csv.write_csv(self.table, temporary)
                case other:
                    raise JMTError(
                        f"{path}: cannot write a trace as {other or 'a file without ending'}; use .parquet or .csv"
                    )
            temporary.replace(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise JMTError(
                f"{path}: the trace cannot be written: {reason}; free some space or pass another --out"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def plot(self, truth: np.ndarray | None = None, title: str | None = None) -> Figure:
        """Valence and arousal over time; `truth` (F, 2), with -5 where not annotated, is drawn behind."""
        from jmt_fast.inference.plots import plot_trace

        return plot_trace(self, truth, title)
