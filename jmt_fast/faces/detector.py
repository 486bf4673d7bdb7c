"""What a face detector is: pictures in, boxes and five points a face out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jmt_fast.errors import JMTError
from jmt_fast.runtime import Runtime

POINTS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")  # as seen


@dataclass(frozen=True)
class Faces:
    """The faces on one picture, best first, in its pixels: a picture W wide reaches from x = 0 to x = W.

    `boxes` float32 (N, 4): left, top, right, bottom. `scores` float32 (N,) in [0, 1]. `points` float32 (N, 5, 2): x and
    y of `POINTS`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def none(cls) -> Faces:
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 5, 2), np.float32))


class Detector(Protocol):
    """Anything that can be called like this finds faces for the tracker."""

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Faces]:
        """Faces on each picture, (H, W, 3) uint8 RGB; the pictures of one call have one size."""


def _centerface(runtime: Runtime) -> Detector:
    from jmt_fast.faces.centerface import CenterFace

    return CenterFace.pretrained(runtime.device, runtime.dtype)


def _yunet(runtime: Runtime) -> Detector:
    from jmt_fast.faces.yunet import YuNet

    return YuNet.pretrained(runtime.device, runtime.dtype)


DETECTORS: dict[str, Callable[[Runtime], Detector]] = {"centerface": _centerface, "yunet": _yunet}


def detector(runtime: Runtime, name: str = "centerface") -> Detector:
    """A detector by name, with its weights. Raises JMTError for an unknown name or weights that cannot be had."""
    if name not in DETECTORS:
        raise JMTError(f"unknown face detector {name!r}: choose one of {', '.join(DETECTORS)}")
    return DETECTORS[name](runtime)
