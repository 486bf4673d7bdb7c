"""What a model said of every labelled frame, on disk: `validation.parquet` of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from jmt_fast.data import labelled
from jmt_fast.errors import DataError, JMTError
from jmt_fast.training.batches import LabelledVideo
from jmt_fast.training.evaluation import Evaluation
from jmt_fast.training.loss import StreamingCCC

COLUMNS = ("video", "time", "valence", "arousal", "label_valence", "label_arousal")


@dataclass(frozen=True)
class Predictions:
    """Labelled frames: `video` (N,) of str, `time` (N,) seconds, `predicted` and `labels` float32 (N, 2)."""

    video: np.ndarray
    time: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray

    def per_video(self) -> dict[str, np.ndarray]:
        """CCC of valence and arousal of each video, float64 (2,), the worst mean first."""
        found = {}
        names, inverse = np.unique(self.video, return_inverse=True)
        for number, name in enumerate(names):
            rows = inverse == number
            alone = StreamingCCC()
            alone.update(self.predicted[rows], self.labels[rows])
            found[str(name)] = alone.value()
        return dict(sorted(found.items(), key=lambda item: float(item[1].mean())))

    def pooled(self) -> np.ndarray:
        """CCC over all frames, float64 (2,)."""
        metric = StreamingCCC()
        metric.update(self.predicted, self.labels)
        return metric.value()


def write_predictions(path: Path, evaluation: Evaluation, videos: Sequence[LabelledVideo]) -> None:
    """The labelled frames of `videos` with what `evaluation` says of them. JMTError where it cannot be written."""
    tables = []
    for video in videos:
        if video.name not in evaluation.traces:
            continue
        known = labelled(video.labels)
        trace, labels = evaluation.traces[video.name][known], video.labels[known].astype(np.float32)
        columns = [video.features.timestamps[known], *trace.T, *labels.T]
        names = pa.DictionaryArray.from_arrays(np.zeros(len(labels), np.int32), [video.name])
        tables.append(pa.table([names, *map(pa.array, columns)], names=COLUMNS))
    temporary = path.with_name(f".{path.name}.part")
    try:
        parquet.write_table(pa.concat_tables(tables).unify_dictionaries(), temporary)
        temporary.replace(path)
    except OSError as error:
        raise JMTError(f"{path}: cannot be written: {error.strerror or error}; free some space") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote. DataError for anything else."""
    try:
        table = parquet.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: no predictions of a run ({reason}); train again, or choose another folder") from error
    video, time, *rest = (table[name].to_numpy() for name in COLUMNS)
    values = np.stack(rest, 1).astype(np.float32)
    return Predictions(np.asarray(video, str), time, values[:, :2], values[:, 2:])
