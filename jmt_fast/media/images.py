"""Frames kept as a folder of JPEG files, as Aff-Wild2's `cropped_aligned/<trial>`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from jmt_fast.errors import MediaError
from jmt_fast.media.colour import ToRGB
from jmt_fast.media.container import MAX_SIDE


class ImageFolder:
    """`count` frames: item `index` (0-based) is the file `{index + 1:05d}.jpg`, as (H, W, 3) uint8 RGB.

    Missing files are normal (no face was found in the frame): the item is then None, as for a file that cannot be
    decoded. Raises MediaError if the folder does not exist, IndexError outside of 0 to count - 1.
    """

    def __init__(self, folder: str | os.PathLike[str], count: int):
        self.folder = Path(folder)
        self.count = count
        if not self.folder.is_dir():
            raise MediaError(f"{self.folder}: no such folder of JPEG frames; check the path")
        # FFmpeg's decoder is used directly: opening a container for each small file costs more than decoding it.
        self._decoder = av.CodecContext.create("mjpeg", "r")
        self._decoder.thread_count = 1
        self._to_rgb = ToRGB()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray | None:
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is not in a folder of {self.count} frames")
        try:
            data = (self.folder / f"{index + 1:05d}.jpg").read_bytes()
        except OSError:
            return None
        if not data:
            return None
        try:
            decoded = self._decoder.decode(av.Packet(data))
        except av.FFmpegError:
            return None
        if not decoded or max(decoded[0].width, decoded[0].height) > MAX_SIDE:
            return None
        return self._to_rgb(decoded[0])


def images(folder: str | os.PathLike[str], count: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """(index, frame or None) for index 0 to count - 1; see `ImageFolder`."""
    folder_images = ImageFolder(folder, count)
    return ((index, folder_images[index]) for index in range(count))
