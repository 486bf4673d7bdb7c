"""Frames kept as a folder of JPEG files, as Aff-Wild2's `cropped_aligned/<trial>`; the media graph decodes them."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jmt_fast.errors import MediaError
from jmt_fast.media.container import MAX_SIDE

RULE = "libjpeg-turbo, chroma interpolated, orientation ignored"  # keys stored features: to change with the decoder
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive: what nvJPEG and libjpeg-turbo both decode
SOS, FILL = 0xDA, 0xFF


@dataclass(frozen=True, eq=False, slots=True)
class Jpeg:
    """An encoded picture: `data` uint8 (n,), the file's bytes, and the `shape` (H, W, 3) that they decode to."""

    data: np.ndarray
    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Bytes once decoded."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, data: bytes) -> Jpeg | None:
        """None for what is no JPEG, has a side above MAX_SIDE, or is cut short: its last scan has no end marker.

        Decoders differ on such files, some paint the rest grey. What lies inside the scans is not looked at.
        """
        at, end, height, width = len(SOI), data.rfind(EOI), 0, 0
        while data.startswith(SOI) and at + 9 <= end and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == SOS:
                good = min(height, width) > 0 and max(height, width) <= MAX_SIDE
                return cls(np.frombuffer(data, np.uint8), (height, width, 3)) if good else None
            if marker in SOF:
                height, width = struct.unpack_from(">HH", data, at + 5)
            at += 1 if marker == FILL else 2 + int.from_bytes(data[at + 2 : at + 4])
        return None


class ImageFolder:
    """`count` frames: item `index` (0-based) is the file `{index + 1:05d}.jpg`, still encoded.

    Missing files are normal (no face was found in the frame): the item is then None, as for a file that `Jpeg.of`
    refuses. Raises MediaError if the folder does not exist, IndexError outside of 0 to count - 1.
    """

    def __init__(self, folder: str | os.PathLike[str], count: int):
        self.folder = Path(folder)
        self.count = count
        if not self.folder.is_dir():
            raise MediaError(f"{self.folder}: no such folder of JPEG frames; check the path")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Jpeg | None:
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is not in a folder of {self.count} frames")
        try:
            data = (self.folder / f"{index + 1:05d}.jpg").read_bytes()
        except OSError:
            return None
        return Jpeg.of(data)
