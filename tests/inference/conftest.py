"""A real Chromium for the tests of pages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jmt_fast.inference import Trace
from jmt_fast.media import probe

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--mute-audio",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium; apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright"
    )
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=QUIET)
        yield running
        running.close()


class Look:
    """A page in the browser, what it complained of, and what it asked for."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.errors, self.requests = page, [], []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def ready(self) -> Look:
        """The video can be played, and its first frame is there."""
        self.until("playable && video.readyState >= 2 && !video.seeking && wanted === null")
        return self

    def get(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def until(self, condition: str) -> None:
        """Wait until an expression holds. Playwright's own way uses eval, which the page's policy forbids."""
        deadline = time.monotonic() + 10
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition} never came true"
            self.page.wait_for_timeout(20)

    def settle(self) -> None:
        """The video stands where it was sent, and is on the screen."""
        self.until("wanted === null && !video.seeking")
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        found = self.page.locator(selector).first.bounding_box()
        return found["x"], found["y"], found["width"], found["height"]

    def playhead(self) -> float:
        """Where the playhead stands, as a share of the chart's width."""
        left, _, width, _ = self.box("#valence .u-over")
        at, _, thick, _ = self.box("#playhead")
        return (at + thick / 2 - left) / width

    def frame(self, size: tuple[int, int]) -> np.ndarray:
        """The picture that the video shows, as it stands on the screen."""
        self.page.evaluate("video.controls = false")
        picture = np.asarray(Image.open(BytesIO(self.page.locator("#video").screenshot())).convert("RGB"))
        height, width = picture.shape[:2]
        scale = min(width / size[0], height / size[1])
        left, top = round((width - size[0] * scale) / 2), round((height - size[1] * scale) / 2)
        return picture[top : top + round(size[1] * scale), left : left + round(size[0] * scale)]


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Look]]:
    """look(path) opens a page; at the end, none may have complained, or asked for anything but files."""
    opened: list[Look] = []

    def open_page(path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> Look:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.set_default_timeout(10_000)
        opened.append(Look(page, path))
        return opened[-1]

    yield open_page
    for each in opened:
        each.page.close()
        assert each.errors == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in each.requests)


@pytest.fixture
def trace_of() -> Callable[..., Trace]:
    """trace_of(video, person) -> a trace on that video's frames; the person is away for the second quarter."""

    def make(video: Path, person: str = "0", shift: float = 0.0) -> Trace:
        times = probe(video).timestamps
        angle = np.linspace(0, 6, len(times))[:, None] + [shift, 1 + shift]
        valid = np.ones(len(times), bool)
        valid[len(times) // 4 : len(times) // 2] = False
        return Trace.build(video, times, 0.8 * np.sin(angle).astype(np.float32), valid, person)

    return make
