"""The page in a real browser: what is seen follows what is clicked, dragged, typed and played."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jmt_fast.inference import Trace
from jmt_fast.inference.page import write_video_page
from jmt_fast.inference.report import report_videos

Film = Callable[..., Path]
SIZE = (96, 64)
NASTY = os.fsdecode(b"<img src=x onerror=alert(1)>\"' & #1?%20 \n</script>\xff.mp4".replace(b"/", b""))


@pytest.fixture
def page(film: Film, kit: SimpleNamespace, trace_of: Callable[..., Trace], tmp_path: Path) -> Path:
    video = film(times=kit.steps(90))
    write_video_page([trace_of(video)], tmp_path / "page.html", "talk.mp4", video)
    return tmp_path / "page.html"


def shown_number(seen: Any, kit: SimpleNamespace, expected: int) -> int:
    """The number in the picture; a busy machine may paint it a moment after the browser says that it is there."""
    for _ in range(20):
        if (number := kit.number_of(seen.frame(SIZE))) == expected:
            break
        seen.page.wait_for_timeout(100)
    return number


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_a_click_on_the_chart_shows_that_frame(
    look: Any, film: Film, kit: SimpleNamespace, trace_of: Callable[..., Trace], tmp_path: Path, start: float
) -> None:
    """Also where the video begins late on its container's clock."""
    video = film(times=kit.steps(90, start=start))
    trace = trace_of(video)
    write_video_page([trace], tmp_path / "page.html", "talk.mp4", video)
    seen = look(tmp_path / "page.html").ready()
    for chart, share in (("#valence", 0.7), ("#arousal", 0.2), ("#strips canvas", 0.55)):
        over = f"{chart} .u-over" if "canvas" not in chart else chart
        _, _, width, height = seen.box(over)
        seen.page.locator(over).first.click(position={"x": share * width, "y": height / 2})
        seen.settle()
        wanted = trace.times[0] + share * (trace.ends[-1] - trace.times[0])
        assert seen.get("now") == pytest.approx(wanted, abs=0.01)
        frame = int(np.searchsorted(trace.times, seen.get("now") + 5e-4, "right")) - 1
        assert shown_number(seen, kit, frame) == frame
        assert seen.playhead() == pytest.approx(share, abs=0.005)
        said = seen.page.locator("#people").inner_text()
        if trace.valid[frame]:
            shown = [f"{value:+.2f}".replace("-", "\u2212") for value in trace.values[frame]]
            assert said == f"V {shown[0]}  A {shown[1]}"
        else:
            assert said == "no face"


def test_dragging_scrubs(look: Any, page: Path) -> None:
    seen = look(page).ready()
    left, top, width, height = seen.box("#valence .u-over")
    seen.page.mouse.move(left + 0.1 * width, top + height / 2)
    seen.page.mouse.down()
    for share in (0.3, 0.6, 0.9):
        seen.page.mouse.move(left + share * width, top + height / 2, steps=3)
        seen.settle()
        assert seen.playhead() == pytest.approx(share, abs=0.01)
    seen.page.mouse.up()
    seen.page.mouse.move(left + 0.2 * width, top + height / 2)
    assert seen.playhead() == pytest.approx(0.9, abs=0.01)
    seen.settle()
    assert seen.get("video.currentTime") == pytest.approx(0.9 * 3, abs=0.03)


def test_playing_moves_the_cursor_and_stops(look: Any, page: Path) -> None:
    seen = look(page).ready()
    seen.page.locator("#play").click()
    seen.until("video.currentTime > 0.6")
    assert seen.playhead() > 0.15
    assert seen.page.locator("#play").get_attribute("aria-label") == "Pause"
    seen.page.locator("#play").click()
    seen.until("video.paused")
    seen.settle()
    assert seen.playhead() == pytest.approx(seen.get("video.currentTime") / 3, abs=0.01)
    seen.get("video.currentTime = 2.5")  # the video's own controls
    seen.until("Math.abs(now - 2.5) < 0.01")
    assert seen.playhead() == pytest.approx(2.5 / 3, abs=0.01)
    seen.get("video.play()")
    seen.until("video.ended")
    assert seen.page.locator("#play").get_attribute("aria-label") == "Play"


def test_keys(look: Any, page: Path, kit: SimpleNamespace) -> None:
    seen = look(page).ready()
    press = seen.page.keyboard.press
    press("?")
    assert seen.page.locator("#help").is_visible()
    press("Escape")
    assert not seen.page.locator("#help").is_visible()
    press("ArrowRight")
    assert seen.get("now") == pytest.approx(1)
    for _ in range(3):
        press(".")
    press(",")
    seen.settle()
    assert shown_number(seen, kit, 32) == 32
    press("+")
    begin, end = seen.get("sight")
    assert end - begin == pytest.approx(1.5, abs=0.01)
    assert begin <= seen.get("now") <= end
    press("End")
    assert seen.get("sight")[1] == pytest.approx(3)  # the picture goes where the playhead goes
    press("0")
    assert seen.get("sight") == pytest.approx([0, 3])
    press("<")
    assert seen.get("video.playbackRate") == 0.5
    press("m")
    assert seen.get("video.muted")
    press("Home")
    press(" ")
    seen.until("!video.paused && now > 0.1")
    press("k")
    seen.until("video.paused")


def test_a_phone_has_it_all_without_scrolling_sideways(look: Any, page: Path) -> None:
    seen = look(page).ready()
    wide = seen.box("#valence .u-over")[2]
    seen.get("seek(1.5)")
    seen.page.set_viewport_size({"width": 360, "height": 740})
    seen.until("charts[0].width < 360")
    seen.settle()
    assert seen.get("document.documentElement.scrollWidth") <= 360
    assert seen.box("#valence .u-over")[2] < wide / 2
    assert seen.playhead() == pytest.approx(0.5, abs=0.01)
    for part in ("#video", "#plane", "#play", "#arousal", "#strips canvas"):
        left, _, width, height = seen.box(part)
        assert left >= 0
        assert left + width <= 360
        assert height > 10


def test_a_window_that_opens_late(look: Any, page: Path) -> None:
    """Nothing can be drawn without a size; the page comes up when it gets one."""
    seen = look(page)
    seen.get("document.body.style.display = 'none'")
    seen.page.set_viewport_size({"width": 700, "height": 700})
    seen.get("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seen.get("document.body.style.display = ''")
    seen.ready().get("seek(1.5)")
    seen.settle()
    assert seen.playhead() == pytest.approx(0.5, abs=0.01)


def test_dark_is_dark_at_once(look: Any, page: Path) -> None:
    def brightness() -> float:
        return np.mean(
            [int(part) for part in seen.get("getComputedStyle(document.body).backgroundColor")[4:-1].split(",")]
        )

    seen = look(page).ready()
    light = (brightness(), seen.get("colour(people[0], 'valence')"))
    seen.page.emulate_media(color_scheme="dark")
    seen.settle()
    assert light[0] > 200
    assert brightness() < 60
    assert seen.get("charts[0].series[1]._stroke") == seen.get("colour(people[0], 'valence')") != light[1]


def test_two_people_have_a_trace_each(look: Any, film: Film, trace_of: Callable[..., Trace], tmp_path: Path) -> None:
    video = film(times=tuple(n / 30 for n in range(90)))
    first, second = trace_of(video), trace_of(video, "1", 2.0)
    write_video_page([first, second], tmp_path / "page.html", "talk.mp4", video)
    seen = look(tmp_path / "page.html", scheme="dark").ready()
    assert seen.page.locator("#people button").count() == 2
    assert seen.page.locator("#strips canvas:visible").count() == 2
    drawn = seen.get("charts.map((chart) => chart.data.slice(1))")
    for person, trace in enumerate((first, second)):
        for column in range(2):
            values = np.array(drawn[column][person], float)
            assert np.array_equal(~np.isnan(values), trace.valid)
            assert np.allclose(values[trace.valid], trace.values[trace.valid, column], atol=1e-4)
    seen.page.keyboard.press("1")
    assert seen.page.locator("#strips canvas:visible").count() == 1
    assert seen.get("charts.map((chart) => chart.series[1].show)") == [False, False]
    assert seen.page.locator("#people button").first.get_attribute("aria-pressed") == "false"


def test_the_strip_shows_where_the_face_is_seen(look: Any, page: Path) -> None:
    """The second quarter has no face; the strip follows the zoom."""
    column = """(share) => {
        const canvas = strips[0], x = Math.floor(share * canvas.width);
        const pixels = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height).data;
        return pixels.filter((_, i) => i % 4 === 3 && pixels[i] > 0).length / canvas.height;
    }"""
    seen = look(page).ready()
    heights = [seen.page.evaluate(column, share) for share in (0.05, 0.2, 0.3, 0.45, 0.55, 0.95)]
    assert [height > 0.9 for height in heights] == [True, True, False, False, True, True]
    seen.get("view(0.75, 1.45)")
    seen.settle()
    assert all(seen.page.evaluate(column, share) < 0.5 for share in (0.1, 0.5, 0.9))


def test_names_are_text(look: Any, film: Film, trace_of: Callable[..., Trace], tmp_path: Path) -> None:
    """Markup, quotes, a newline and a byte that is not UTF-8, in the names of the video and of a person."""
    folder = tmp_path / "a #&?% folder"
    folder.mkdir()
    video = Path(shutil.copy(film(), folder / NASTY))
    trace_of(video, "<b onclick=alert(2)>&amp;</script>").save(folder / f"{video.stem}.parquet")
    written = report_videos(folder)
    assert (written.failed, written.warnings) == ({}, [])
    index, page = written.files
    seen = look(index)
    shown = " ".join(os.fsencode(video.name).decode(errors="replace").split())
    assert " ".join(seen.page.locator("tbody a").inner_text().split()) == shown.removesuffix(".mp4")
    with seen.page.expect_navigation():
        seen.page.locator("tbody a").click()
    seen.ready()
    assert " ".join(seen.page.title().split()) == shown
    assert seen.page.locator("img, b[onclick]").count() == 0
    assert len(seen.requests) == 3
    assert page.parent.name == "pages"
    with seen.page.expect_navigation():
        seen.page.locator("header a").click()
    assert seen.page.locator("tbody tr").count() == 1


def test_an_embedded_video_needs_no_file(look: Any, film: Film, trace_of: Callable[..., Trace], tmp_path: Path) -> None:
    video = Path(shutil.copy(film(), tmp_path / "talk.mp4"))
    write_video_page([trace_of(video)], tmp_path / "page.html", "talk.mp4", video, embed=True)
    video.unlink()
    seen = look(tmp_path / "page.html").ready()
    seen.get("seek(0.5)")
    seen.settle()
    assert seen.get("video.currentTime") == pytest.approx(0.501, abs=1e-3)


def test_without_the_video_the_charts_still_play(
    look: Any, film: Film, kit: SimpleNamespace, trace_of: Callable[..., Trace], tmp_path: Path
) -> None:
    video = film(times=kit.steps(300), size=(32, 32))  # longer than a busy machine takes from one click to the next
    write_video_page([trace_of(video)], tmp_path / "page.html", "talk.mp4")
    seen = look(tmp_path / "page.html")
    assert seen.page.locator("#trouble").is_visible()
    seen.page.locator("#play").click()
    seen.until("now > 0.3")
    assert seen.playhead() > 0.03
    seen.page.locator("#play").click()
    stopped = seen.get("now")
    seen.page.wait_for_timeout(150)
    assert seen.get("now") == stopped
    seen.page.locator("#trouble input").set_input_files(video)  # and it can be opened by hand
    seen.ready()
    assert not seen.page.locator("#trouble").is_visible()


def test_the_index_sorts_and_filters(look: Any, tmp_path: Path) -> None:
    for name, count, level in (("b10", 60, 0.5), ("b9", 120, -0.5), ("a", 30, 0.1)):
        values = np.full((count, 2), level, np.float32)
        Trace.build(Path("x.mp4"), np.arange(count) / 30, values, np.ones(count, bool)).save(tmp_path / f"{name}.csv")
    report_videos(tmp_path)
    seen = look(tmp_path / "index.html", width=390)
    names = lambda: seen.page.locator("tbody tr:visible a").all_inner_texts()  # noqa: E731
    assert names() == ["a", "b10", "b9"]
    heads = seen.page.locator("th button")
    heads.filter(has_text="Video").click()
    assert names() == ["b10", "b9", "a"]
    heads.filter(has_text="Video").click()
    assert names() == ["a", "b9", "b10"]  # numbers count as numbers
    heads.filter(has_text="Length").click()
    assert names() == ["b9", "b10", "a"]
    heads.filter(has_text="Valence").click()
    assert names() == ["b10", "a", "b9"]
    assert seen.page.locator("tbody polyline.valence").count() == 3
    seen.page.locator("#filter").fill("B1")
    assert names() == ["b10"]
    assert seen.get("document.documentElement.scrollWidth") <= 390
