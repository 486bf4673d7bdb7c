"""From a folder of traces to pages and overlays: who belongs to which video, what is found, how large it gets."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jmt_fast import media
from jmt_fast.errors import JMTError
from jmt_fast.inference import Trace
from jmt_fast.inference.overlay import LEAST, write_overlay
from jmt_fast.inference.page import MAX_EMBEDDED, away, write_video_page
from jmt_fast.inference.report import find_video, report_videos

Film = Callable[..., Path]
TraceOf = Callable[..., Trace]


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_ten_minute_page_is_under_a_megabyte(tmp_path: Path) -> None:
    random = np.random.default_rng()
    times = np.cumsum(random.uniform(0.02, 0.05, 18_000))
    people = [
        Trace.build(Path("x.mp4"), times, random.uniform(-1, 1, (18_000, 2)), random.random(18_000) > 0.3, str(person))
        for person in range(3)
    ]
    write_video_page(people, tmp_path / "page.html", "x.mp4")
    assert (tmp_path / "page.html").stat().st_size < 1_000_000


def test_the_page_asks_for_nothing_but_the_video(film: Film, trace_of: TraceOf, tmp_path: Path) -> None:
    video = Path(shutil.copy(film(), tmp_path / "talk #1.mp4"))
    write_video_page([trace_of(video)], tmp_path / "page.html", "talk", video)
    page = (tmp_path / "page.html").read_text()
    assert '"url":"talk%20%231.mp4"' in page
    licence = re.findall(r"https?://[^\s\"')]+", page)  # the library names its home in a comment
    assert set(licence) <= {"https://github.com/leeoniya/uPlot"}
    assert not re.search(r"<(link|script|img)[^>]+(src|href)=\"(?!data:)", page)


@pytest.mark.parametrize(
    ("valid", "runs"),
    [("1111", []), ("0000", [[0, 4]]), ("0110", [[0, 1], [3, 4]]), ("1", []), ("1001011", [[1, 3], [4, 5]])],
)
def test_runs_of_frames_without_a_face(valid: str, runs: list[list[int]]) -> None:
    assert away(np.array([each == "1" for each in valid])) == runs


def test_people_are_grouped_and_damage_is_listed(film: Film, trace_of: TraceOf, tmp_path: Path) -> None:
    video = Path(shutil.copy(film(), tmp_path / "talk.mp4"))
    for person in "01":
        trace_of(video, person).save(tmp_path / f"talk.{person}.parquet")
    for name in ("take.1", "take.2"):  # videos whose names end with a number, one person each
        trace_of(Path(shutil.copy(video, tmp_path / f"{name}.mp4"))).save(tmp_path / f"{name}.csv")
    trace_of(video).save(tmp_path / "alone.jsonl")
    trace_of(video).save(tmp_path / "alone.eaf")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "_index.parquet").write_bytes(b"a ledger")
    written = report_videos(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written.files] == [
        "index.html", "pages/alone.html", "pages/take.1.html", "pages/take.2.html", "pages/talk.html",
    ]  # fmt: skip
    assert list(written.failed) == ["broken.parquet"]
    assert written.total == 6
    assert len(written.warnings) == 1
    assert "alone.jsonl" in written.warnings[0]
    index = (tmp_path / "index.html").read_text()
    assert index.count("<tr>") == 5
    assert "4 videos" in index
    page = (tmp_path / "pages" / "talk.html").read_text()
    assert "2 people" in page
    assert '"url":"../talk.mp4"' in page


def test_where_the_video_is_looked_for(film: Film, tmp_path: Path) -> None:
    moved, elsewhere = tmp_path / "moved", tmp_path / "videos"
    for folder in (moved, elsewhere):
        folder.mkdir()
    trace = moved / "talk.parquet"
    assert find_video(trace, "talk", tmp_path / "talk.MP4") is None
    beside, given = (Path(shutil.copy(film(), folder / "talk.MP4")) for folder in (moved, elsewhere))
    assert find_video(trace, "talk", tmp_path / "talk.MP4") == beside
    assert find_video(trace, "talk.MP4", trace) == beside
    assert find_video(trace, "talk", tmp_path / "talk.MP4", elsewhere) == given
    assert find_video(trace, "other", trace, elsewhere) is None
    origin = Path(shutil.copy(film(), tmp_path / "talk.MP4"))
    assert find_video(trace, "talk", origin) == origin


def test_an_overlay_keeps_frames_times_and_sound(
    film: Film, kit: SimpleNamespace, trace_of: TraceOf, tmp_path: Path
) -> None:
    times = tuple(0.4 + np.cumsum(np.tile([0.02, 0.05, 0.03], 15)))
    video = film(times=times, sound=kit.Sound(kit.clicks([0.9, 1.4], 2.0, 48_000), 48_000))
    people = [trace_of(video), trace_of(video, "1", 2.0)]
    write_overlay(people, video, tmp_path / "out.mp4")
    info = media.probe(tmp_path / "out.mp4")
    assert (info.codec, info.width) == ("h264", LEAST)
    assert np.allclose(info.timestamps, np.array(times) - times[0], atol=1e-4)
    height = LEAST * 64 // 96
    panels = []
    for index, _, frame in media.frames(tmp_path / "out.mp4"):
        assert kit.number_of(frame[:height]) == index
        panels.append(frame[height:].astype(int))
    assert all(np.abs(after - before).max() > 60 for before, after in pairwise(panels))
    start, samples = media.audio(tmp_path / "out.mp4", 44_100)
    heard = kit.click_times(start, samples, 44_100)
    assert np.allclose(heard, np.array([0.9, 1.4]) - times[0], atol=0.003)


@pytest.mark.parametrize("frames", [1, 2, 20])
def test_a_video_without_any_face(film: Film, kit: SimpleNamespace, tmp_path: Path, frames: int) -> None:
    video = Path(shutil.copy(film(times=kit.steps(frames)), tmp_path / "talk.mp4"))
    values, nobody = np.zeros((frames, 2), np.float32), np.zeros(frames, bool)
    Trace.build(video, media.probe(video).timestamps, values, nobody).save(tmp_path / "talk.csv")
    written = report_videos(tmp_path, overlay=True)
    assert written.failed == {}
    assert "face seen 0%" in (tmp_path / "pages" / "talk.html").read_text()
    assert "nan" not in re.sub(r"<script.*?</script>", "", (tmp_path / "index.html").read_text(), flags=re.S)
    assert media.probe(tmp_path / "pages" / "talk.overlay.mp4").frames == frames


def test_a_full_disk_leaves_no_half_overlay(film: Film, trace_of: TraceOf, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    video = film(times=tuple(n / 30 for n in range(90)), size=(480, 360))
    trace = trace_of(video).save(tmp_path / "talk.parquet")
    with pytest.raises(JMTError, match=r"talk\.overlay\.mp4"), limited(20_000):
        write_overlay([trace_of(video)], video, tmp_path / "talk.overlay.mp4")
    assert list(tmp_path.iterdir()) == [trace]


def test_an_overlay_is_made_once(film: Film, trace_of: TraceOf, tmp_path: Path) -> None:
    video = Path(shutil.copy(film(), tmp_path / "talk.mp4"))
    trace_of(video).save(tmp_path / "talk.parquet")
    (tmp_path / "talk.mp4.txt").write_text("not a trace")
    for path in (video, tmp_path / "talk.parquet"):
        os.utime(path, (1e9, 1e9))
    written = report_videos(tmp_path, overlay=True)
    overlay = tmp_path / "pages" / "talk.overlay.mp4"
    assert written.files[-1] == overlay
    made = overlay.stat().st_mtime_ns
    report_videos(tmp_path, overlay=True)
    assert overlay.stat().st_mtime_ns == made
    os.utime(video)
    report_videos(tmp_path, overlay=True)
    assert overlay.stat().st_mtime_ns > made
    assert not list(overlay.parent.glob(".*"))


def test_what_cannot_be_done_is_said(film: Film, trace_of: TraceOf, tmp_path: Path) -> None:
    trace = trace_of(film()).save(tmp_path / "talk.csv")
    with pytest.raises(JMTError, match=r"talk\.csv: its video is not beside it; give it with --video"):
        report_videos(trace, embed=True)
    with pytest.raises(JMTError, match="nowhere: no such file"):
        report_videos(trace, video="nowhere")
    with pytest.raises(JMTError, match="not a folder"):
        report_videos(tmp_path, video=film())
    with pytest.raises(JMTError, match="no traces"):
        report_videos(Path(film()).parent)
    with pytest.raises(JMTError, match="cannot be made"):
        report_videos(trace, out=trace / "page.html")
    huge = tmp_path / "huge.mp4"
    with huge.open("wb") as file:
        file.truncate(MAX_EMBEDDED + 1)  # a hole: takes no room
    with pytest.raises(JMTError, match="leave --embed out"):
        report_videos(trace, video=huge, embed=True)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(JMTError, match=r"bad\.mp4"):
        report_videos(trace, video=tmp_path / "bad.mp4", overlay=True)
