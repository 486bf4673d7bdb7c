"""From trace files to pages and overlays: which traces are one video's people, and where that video is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from jmt_fast.errors import DataError, JMTError
from jmt_fast.inference.formats import read_traces
from jmt_fast.inference.overlay import write_overlay
from jmt_fast.inference.page import shown, write_video_page
from jmt_fast.inference.page.index import Entry, entry, write_index
from jmt_fast.inference.submission import trace_files
from jmt_fast.inference.trace import Trace

Progress = Callable[[int, int, str], None]

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv")
PAGES = "pages"  # folder below the index


@dataclass
class Written:
    """Files that were written, what could not be, by the trace file's name, and lines about missing videos."""

    files: list[Path] = field(default_factory=list)
    failed: dict[str, JMTError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    total: int = 0


@dataclass(frozen=True)
class _Film:
    """The people of one video: the trace files that they come from, and the name that these share."""

    name: str
    files: list[Path]
    traces: list[Trace]


@dataclass(frozen=True)
class _Choices:
    video: Path | None
    embed: bool
    overlay: bool


def report_videos(
    path: str | Path,
    out: str | Path | None = None,
    video: str | Path | None = None,
    embed: bool = False,
    overlay: bool = False,
    progress: Progress | None = None,
) -> Written:
    """The page of a trace file, or the pages of a folder of traces with an index over them.

    `out`: for a file the page (default: beside it, .html), for a folder a folder (default: itself), which gets
    `index.html` and `pages/`. `video`: the video or the folder that has it; by default it is looked for where it was
    when it was predicted, and beside the trace. `embed` puts it into the page; `overlay` also writes an MP4 with the
    trace in the picture, beside the page. `progress(done, total, name)` counts parts of the work.

    Raises JMTError when a single file fails; failures inside a folder are listed in what is returned.
    """
    path, choices = Path(path), _Choices(Path(video) if video else None, embed, overlay)
    if choices.video is not None and not choices.video.exists():
        raise DataError(f"{video}: no such file or folder; check --video")
    written = Written()
    if path.is_dir():
        _folder(path, Path(out) if out else path, choices, written, progress)
        return written
    written.total = 1
    film = _Film(path.stem, [path], read_traces(path))
    page = Path(out) if out else path.with_suffix(".html")
    _make_folder(page.parent)
    found = _page(film, page, None, choices, written)
    _overlay(film, page, found, choices, written, lambda done, total: progress and progress(done, total, path.name))
    return written


def _folder(path: Path, out: Path, choices: _Choices, written: Written, progress: Progress | None) -> None:
    """All pages and their index first, which takes moments, then the overlays: an interruption costs only these."""
    files = trace_files(path)
    written.total = len(files)
    if choices.video is not None and not choices.video.is_dir():
        raise DataError(f"{choices.video}: not a folder; for a folder of traces, --video is the folder of their videos")
    _make_folder(out / PAGES)
    index, entries, done = out / "index.html", list[Entry](), 0
    paged: list[tuple[Path, Path | None, list[Path]]] = []
    for film in _films(files, written.failed):
        page = out / PAGES / f"{film.name}.html"
        try:
            paged.append((page, _page(film, page, index, choices, written), film.files))
            entries.append(entry(shown(film.name), page, out, film.traces))
        except JMTError as error:
            written.failed |= {each.name: error for each in film.files}
        done += len(film.files)
        if progress:
            progress(done, len(files) * (10 if choices.overlay else 1), shown(film.name))
    if entries:
        write_index(entries, index, shown(path.absolute().name))
        written.files.insert(0, index)
    for number, (page, video, members) in enumerate(paged if choices.overlay else []):

        def inside(part: int, total: int, number: int = number, name: str = page.stem) -> None:
            if progress:
                progress(round(100 + 900 * (number + part / total) / len(paged)), 1000, shown(name))

        try:
            traces = [trace for each in members for trace in read_traces(each)]  # not kept: there may be thousands
            _overlay(_Film(page.stem, members, traces), page, video, choices, written, inside)
        except JMTError as error:
            written.failed |= {each.name: error for each in members}


def _films(files: Sequence[Path], failed: dict[str, JMTError]) -> Iterator[_Film]:
    """Files grouped to videos: `predict --person all` writes `<name>.<person>.<format>`."""

    def split(path: Path) -> tuple[str, int]:
        name, _, person = path.stem.rpartition(".")
        return (name, int(person)) if name and person.isdecimal() else (path.stem, -1)

    def read() -> Iterator[tuple[str, Path, list[Trace]]]:
        for path in sorted(files, key=split):
            try:
                traces = read_traces(path)
            except JMTError as error:
                failed[path.name] = error
                continue
            name = split(path)[0]
            ours = len(traces) == 1 and path.stem == f"{name}.{traces[0].person}"  # else a video's name ends so
            yield (name if ours else path.stem), path, traces

    for name, members in groupby(read(), key=lambda each: each[0]):
        group = list(members)
        yield _Film(name, [path for _, path, _ in group], [trace for _, _, traces in group for trace in traces])


def _page(film: _Film, page: Path, index: Path | None, choices: _Choices, written: Written) -> Path | None:
    """Write the page; returns the video that was found."""
    video = find_video(film.files[0], film.name, film.traces[0].source, choices.video)
    if video is None and choices.embed:
        raise _missing(film)
    if video is None and not choices.overlay:
        written.warnings.append(f"{_missing(film)}. The page has the charts alone")
    write_video_page(film.traces, page, shown(video.name if video else film.name), video, choices.embed, index)
    written.files.append(page)
    return video


def _overlay(
    film: _Film,
    page: Path,
    video: Path | None,
    choices: _Choices,
    written: Written,
    progress: Callable[[int, int], object],
) -> None:
    if not choices.overlay:
        return
    if video is None:
        raise _missing(film)
    target = page.with_suffix(".overlay.mp4")
    if not _newer(target, [video, *film.files]):
        write_overlay(film.traces, video, target, progress)
    written.files.append(target)


def _missing(film: _Film) -> DataError:
    return DataError(f"{film.files[0]}: its video is not beside it; give it with --video")


def find_video(trace: Path, name: str, source: Path, given: Path | None = None) -> Path | None:
    """The video of a trace file: `given`, or in that folder, or where it was, or beside the trace; else None."""
    if given is not None and not given.is_dir():
        return given
    folders = [trace.parent] if given is None else [given]
    candidates = [] if given is not None or source == trace else [source]
    for folder in folders:
        candidates += [folder / source.name] if source != trace else []
        candidates += [folder / name, *(folder / f"{name}{suffix}" for suffix in VIDEOS)]
    return next((path for path in candidates if path.suffix.lower() in VIDEOS and path.is_file()), None)


def _newer(target: Path, sources: Sequence[Path]) -> bool:
    return target.exists() and all(target.stat().st_mtime > source.stat().st_mtime for source in sources)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JMTError(f"{folder}: cannot be made: {error.strerror}; pass another --out") from error
