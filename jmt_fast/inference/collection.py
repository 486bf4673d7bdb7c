"""Many videos -> one trace file each; what fails is listed and the rest is still done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jmt_fast.errors import JMTError, MediaError
from jmt_fast.inference.predictor import Predictor
from jmt_fast.inference.trace import Trace

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one video: its trace and the file it is in, or the reason why there is none."""

    video: Path
    output: Path
    trace: Trace | None = None
    error: MediaError | None = None


def output_paths(videos: Sequence[Path], out: Path, format: str) -> list[Path]:
    """`out/<stem>.<format>`, or `out/<file name>.<format>` for files that share a stem.

    Raises JMTError when two inputs would still write the same file.
    """
    stems = [video.stem for video in videos]
    names = [video.name if stems.count(video.stem) > 1 else video.stem for video in videos]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise JMTError(
                f"{videos[index]}: a second input named {name}; give inputs of one name separate --out folders"
            )
    return [out / f"{name}.{format}" for name in names]


def predict_files(
    predictor: Predictor,
    videos: Sequence[Path],
    out: Path,
    format: str = "parquet",
    stride: int = 8,
    smooth: tuple[int, int] | None = None,
    progress: Progress | None = None,
    person: str = "largest",
) -> Iterator[Outcome]:
    """Predict each video and write its trace; yields outcomes as they come.

    `person`: as in `Predictor.predict_people`. With `all`, each person has an outcome, and a file of its own,
    `<name>.<person>.<format>`.

    `smooth`: frames to smooth valence and arousal over. A file that cannot be decoded is an outcome with its error; a
    folder that cannot be written raises JMTError. `progress(done, total, name)` counts hundredths of videos.
    """
    outputs = output_paths(videos, out, format)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JMTError(f"{out}: the output folder cannot be made: {error.strerror}; pass another --out") from error
    for number, (video, output) in enumerate(zip(videos, outputs, strict=True)):

        def inside(done: int, total: int, number: int = number, video: Path = video) -> None:
            if progress:
                progress(100 * number + 100 * done // max(total, 1), 100 * len(videos), video.name)

        inside(0, 1)
        try:
            for trace in predictor.predict_people(video, stride, progress=inside, person=person):
                if smooth:
                    trace = trace.smoothed(*smooth)
                path = output.with_name(f"{output.stem}.{trace.person}.{format}") if person == "all" else output
                trace.save(path)
                yield Outcome(video, path, trace)
        except MediaError as error:
            yield Outcome(video, output, error=error)
        inside(1, 1)
