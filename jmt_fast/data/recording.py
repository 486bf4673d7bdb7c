"""A recording opened for reading: its clock, frames, sound and labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jmt_fast.config import UNANNOTATED
from jmt_fast.data.annotations import Labels, read_affwild2, reconcile
from jmt_fast.data.manifest import Recording
from jmt_fast.media import ImageFolder, MediaInfo, SoundReader, probe, select

Frame = NDArray[np.uint8]


class OpenRecording:
    """The video's clock and number of frames hold for all of it, face crops and annotation included.

    Raises MediaError if the video cannot be used.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.info: MediaInfo = probe(recording.video)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """(F,) seconds on the container's clock."""
        return self.info.timestamps

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame | None]]:
        """Index and picture, uint8 (H, W, 3) RGB, of the frames asked for, in order.

        Out of face crops where the recording has them: one without a JPEG gives None, which stands for black. Else out
        of the video: frames that cannot be decoded are left out, and the iteration ends where the stream does.

        Args:
            indices: sorted.
        """
        if self.recording.crops is not None:
            return self._crops(self.recording.crops, indices)
        return ((index, frame) for index, _, frame in select(self.recording.video, indices, self.info))

    def sound(self, sample_rate: int = 44_100) -> SoundReader:
        """The video's sound on its clock, silence where there is none; or the recording's own sound file.

        That file has a clock of its own, whose 0 is where the video file begins, with its picture or its sound: so do
        converters that extract the sound of a video.
        """
        if self.recording.sound is None:
            return SoundReader(self.recording.video, sample_rate)
        begin = float(self.timestamps[0])
        if self.info.audio is not None:
            begin = min(begin, self.info.audio.offset)
        return SoundReader(self.recording.sound, sample_rate, offset=begin)

    def labels(self) -> Labels:
        """(F, 2) float32 valence and arousal, -5 where not annotated, for exactly the video's frames.

        Warns with both numbers where rows and frames differ. Raises DataError for an annotation that cannot be read.
        """
        if self.recording.annotation is None:
            return np.full((self.info.frames, 2), UNANNOTATED, np.float32)
        labels, warning = reconcile(read_affwild2(self.recording.annotation), self.info.frames, self.recording.name)
        if warning:
            warnings.warn(warning, stacklevel=2)
        return labels

    def _crops(self, folder: Path, indices: Iterable[int]) -> Iterator[tuple[int, Frame | None]]:
        images = ImageFolder(folder, self.info.frames)
        surplus = sum(int(file.stem) > self.info.frames for file in folder.glob("*.jpg") if file.stem.isdecimal())
        if surplus:
            warnings.warn(f"{self.recording.name}: {surplus} face crops lie behind the last of {self.info.frames} "
                          "frames and are not used", stacklevel=3)
        return ((index, images[index]) for index in indices)
