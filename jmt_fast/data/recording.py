"""A recording opened for reading: its clock, frames, sound and labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jmt_fast.config import UNANNOTATED
from jmt_fast.data.annotations import Annotation, read_annotation
from jmt_fast.data.fit import Labels
from jmt_fast.data.manifest import Recording
from jmt_fast.errors import DataError, MediaError
from jmt_fast.media import ImageFolder, MediaInfo, SoundReader, probe, select
from jmt_fast.media.images import Jpeg
from jmt_fast.media.stills import Stills

Frame = NDArray[np.uint8]


class OpenRecording:
    """The video's clock and number of frames hold for all of it, face crops and annotation included.

    `info`: of the video where it is known already. `stills` are the pictures where the video is a folder of them.
    Raises MediaError if the video cannot be used.
    """

    def __init__(self, recording: Recording, info: MediaInfo | None = None) -> None:
        self.recording = recording
        self.stills: Stills | None = None
        if recording.video.is_dir():
            if recording.fps is None:
                raise MediaError(f"{recording.video}: a folder has no clock; give a video file, or `fps` in a manifest")
            self.stills = Stills(recording.video, recording.fps)
        self.info: MediaInfo = self.stills.info if self.stills else info or probe(recording.video)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """(F,) seconds on the container's clock."""
        return self.info.timestamps

    @property
    def begin(self) -> float:
        """Seconds on the container's clock at which the file begins, with its picture or its sound.

        There players show 0, and there begins what was extracted from the file or annotated while watching it.
        """
        first = float(self.timestamps[0])
        return first if self.info.audio is None else min(first, self.info.audio.offset)

    def frames(self, indices: Iterable[int], shorter: int | None = None) -> Iterator[tuple[int, Frame | None]]:
        """Index and picture, uint8 (H, W, 3) RGB, of the video's frames asked for, in order.

        Frames that cannot be decoded are left out (of a folder of pictures, None), and the iteration ends where the
        stream does.

        Args:
            indices: sorted.
            shorter: frames of a video whose shorter side is longer are shrunk to it, other pictures are not.
        """
        if self.stills is not None:
            return self.stills.frames(indices)
        return ((index, frame) for index, _, frame in select(self.recording.video, indices, self.info, shorter))

    def pictures(self, indices: Iterable[int], shorter: int | None = None) -> Iterator[tuple[int, Frame | Jpeg | None]]:
        """What a network is to see of these frames: the face crops where the recording has them, else `frames`.

        Crops are left encoded, for the media graph; one without a usable JPEG gives None, which stands for black.
        """
        if self.recording.crops is not None:
            return self._crops(self.recording.crops, indices)
        return self.frames(indices, shorter)

    def sound(self, sample_rate: int = 44_100) -> SoundReader:
        """The video's sound on its clock, silence where there is none; or the recording's own sound file.

        That file has a clock of its own, whose 0 is `begin`: so do converters that extract the sound of a video.
        """
        if self.recording.sound is not None:
            return SoundReader(self.recording.sound, sample_rate, offset=self.begin)
        return SoundReader(None if self.stills else self.recording.video, sample_rate)

    def labels(self) -> Labels:
        """(F, 2) float32 valence and arousal, -5 where not annotated, for exactly the video's frames.

        Warns with the counts where rows and frames differ. Raises DataError for an annotation that cannot be read.
        """
        if self.recording.annotation is None:
            return np.full((self.info.frames, 2), UNANNOTATED, np.float32)
        labels, warning = self.fit(read_annotation(self.recording.annotation))
        if warning:
            warnings.warn(warning, stacklevel=2)
        return labels

    def fit(self, annotation: Annotation) -> tuple[Labels, str | None]:
        """`labels` from an annotation that was read before, and the text of the warning or None."""
        return annotation.fit(self.timestamps - self.begin, self.recording.name)

    def _crops(self, folder: Path, indices: Iterable[int]) -> Iterator[tuple[int, Jpeg | None]]:
        images = ImageFolder(folder, self.info.frames)
        surplus = sum(number > self.info.frames for number in crop_numbers(folder)[0])
        if surplus:
            warnings.warn(
                f"{self.recording.name}: {surplus} face crops lie behind the last of {self.info.frames} "
                "frames and are not used",
                stacklevel=3,
            )
        return ((index, images[index]) for index in indices)


def crop_numbers(folder: Path) -> tuple[list[int], int]:
    """The numbers of a folder's face crops, in no order (the first frame's is `00001.jpg`), and how many other JPEGs
    lie there, which are not read. Raises DataError if the folder cannot be read."""
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(".jpg")]
    except OSError as error:
        raise DataError(f"{folder}: cannot read the face crops ({error.strerror}); check the path") from error
    numbers = [int(name[:-4]) for name in names if name[:-4].isdecimal() and name == f"{int(name[:-4]):05d}.jpg"]
    return numbers, len(names) - len(numbers)
