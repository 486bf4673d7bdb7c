"""A clip kept as a folder of numbered pictures, as AFEW-VA's: no container, so neither clock nor sound of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jmt_fast.errors import MediaError
from jmt_fast.media.probe import MediaInfo

SUFFIXES = (".png", ".jpg", ".jpeg")


class Stills:
    """Frame i is the picture whose name is the number i (`00000.png` is the first), shown at i / fps seconds.

    A number without a picture is a frame that is missing; the last number ends the clip. Raises MediaError for a folder
    that is not there, holds no numbered picture or two for one frame, or whose first picture cannot be read.
    """

    def __init__(self, folder: Path, fps: float) -> None:
        self.folder = folder
        self._files = _numbered(folder)
        first = self[min(self._files)]
        if first is None:
            raise MediaError(f"{self._files[min(self._files)]}: not a picture; replace the file")
        count = max(self._files) + 1
        self.info = MediaInfo(
            path=folder,
            container="pictures",
            frames=count,
            fps=fps,
            timestamps=np.arange(count) / fps,
            width=first.shape[1],
            height=first.shape[0],
            rotation=0,
            codec="pictures",
            pixel_format="rgb24",
            constant_rate=True,
            audio=None,
        )

    @property
    def pictures(self) -> int:
        """How many frames have a file."""
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray | None:
        """Frame `index`, (H, W, 3) uint8 RGB; None where there is no file or it cannot be decoded."""
        if index not in self._files:
            return None
        try:
            with Image.open(self._files[index]) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for bad files
            return None

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray | None]]:
        """(index, frame or None) of the frames asked for."""
        return ((int(index), self[int(index)]) for index in indices)


def _numbered(folder: Path) -> dict[int, Path]:
    files: dict[int, Path] = {}
    try:
        for file in folder.iterdir():
            if file.suffix.lower() in SUFFIXES and file.stem.isdecimal():
                number = int(file.stem)
                if number in files:
                    raise MediaError(f"{file}: a second picture of frame {number}, beside {files[number].name}")
                files[number] = file
    except OSError as error:
        raise MediaError(f"{folder}: not a readable folder of pictures ({error.strerror}); check the path") from error
    if not files:
        raise MediaError(f"{folder}: no numbered pictures (00000.png, 00001.png, ...); check the path")
    return files
