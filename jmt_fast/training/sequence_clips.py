"""Sequences of clips, pictures and sound, for training fusion and backbones together: drawn, augmented, made ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jmt_fast.config import CLIP_FRAMES
from jmt_fast.data import shown
from jmt_fast.errors import JMTError
from jmt_fast.features import VideoFeatures
from jmt_fast.threads import made_ahead
from jmt_fast.training.batches import Drawn, LabelledVideo, SequenceSampler
from jmt_fast.training.clips import Clips, Progress
from jmt_fast.training.distributed import of_all, own_here

_WINDOWS = 256  # spectrograms made in one call: 48 MB of samples
Sequences = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class SequenceClips:
    """All clips of some videos with their sound, the spectrograms in the file `path`, which the ranks of a host share.

    `videos` are what a sampler draws from: clocks and labels, with features of width 0. Raises JMTError when the disk
    is full, MediaError for sound that cannot be opened.
    """

    def __init__(self, path: Path, clips: Clips, stride: int, progress: Progress | None = None) -> None:
        self.clips = clips
        self.videos: list[LabelledVideo] = []
        self._first: dict[str, int] = {}  # number of each video's first clip
        for number, opened in enumerate(clips.opened):
            mine = np.flatnonzero(clips.videos == number)
            if not len(mine):
                continue
            times = clips.times[mine]
            frames = int(shown(opened.timestamps, times[-1])) + 1  # fewer than the index says if the stream ends early
            none, name = torch.empty(len(mine), 0), opened.recording.name
            features = VideoFeatures(name, stride, times, none, 0, opened.timestamps[:frames], np.ones(frames, bool))
            self.videos.append(LabelledVideo(features, clips.labels[number][:frames]))
            self._first[name] = int(mine[0])
        try:
            self._sound = self._written(path, progress)
        except OSError as error:
            raise JMTError(f"{path}: cannot keep spectrograms ({error.strerror}); free some space there") from error

    def _written(self, path: Path, progress: Progress | None) -> np.ndarray:
        config = self.clips.graph.sound_config
        numbers = own_here(np.unique(self.clips.videos).tolist())
        with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY), "wb") as file:  # not cut: other ranks write it too
            for done, number in enumerate(numbers):
                opened, mine = self.clips.opened[number], np.flatnonzero(self.clips.videos == number)
                file.seek(int(mine[0]) * config.mels * config.columns * 4)
                with opened.sound(config.sample_rate) as sound:
                    for part in np.array_split(self.clips.times[mine], -(-len(mine) // _WINDOWS)):
                        windows = np.stack([sound.window(time, config.samples) for time in part])
                        file.write(self.clips.graph.spectrograms(windows).cpu().numpy().data)
                if progress:
                    progress(done + 1, len(numbers), f"sound of {opened.recording.name}")
        of_all(None)  # have written
        return np.memmap(path, np.float32, "r", shape=(len(self.clips), 1, config.mels, config.columns))

    def inputs(self, video: LabelledVideo, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Clips of a video: centre crops uint8 (n, 8, crop, crop, 3), spectrograms float32 (n, 1, mels, columns)."""
        clips = self._first[video.name] + np.arange(start, min(stop, len(video.features.times)))
        return self.clips.inputs(clips), torch.from_numpy(self._sound[clips])

    def epoch(self, sampler: SequenceSampler, epoch: int) -> Iterator[tuple[str, Sequences]]:
        """The sampler's part of each batch of an epoch, with the names of all the batch's videos.

        Pictures uint8 (B, L, 8, crop, crop, 3), spectrograms float32 (B, L, 1, mels, columns), `present` bool (B, L),
        `target` float32 (B, L, 2), `labelled` bool (B, L). Crop and flip are drawn for each clip, the same for all its
        frames; all that is random depends on (seed, epoch) and the place in the batch alone.
        """
        drawn = sampler.draw(epoch)
        own, names = sampler.own(drawn), sampler.names(drawn)
        # the clip of each of the sampler's rows, which count phase by phase
        numbers = np.concatenate([self._first[each.name] + np.argsort(each.rows) for each in sampler.features])

        def make(step: int) -> tuple[str, Sequences]:
            part = Drawn(*(each[step * sampler.rows : (step + 1) * sampler.rows] for each in own))
            batch = slice(step * sampler.batch, (step + 1) * sampler.batch)
            random = np.random.default_rng((sampler.seed, epoch, step))
            number, parts = sampler.part
            augmented = random.random((parts, sampler.rows, part.rows.shape[1], 3))[number]
            clips = numbers[sampler.rows_of_all(part)]
            return ", ".join(dict.fromkeys(names[batch])), self._batch(sampler, part, clips, augmented)

        return made_ahead(make, sampler.batches(epoch), self.clips.workers)

    def _batch(self, sampler: SequenceSampler, drawn: Drawn, chosen: np.ndarray, random: np.ndarray) -> Sequences:
        present = drawn.rows >= 0
        clips = chosen[present]
        x, y, flip = random[present].T
        crop = self.clips.graph.frame_config.crop
        pinned = self.clips.graph.device.type == "cuda"  # or the copy to the device would wait for the step before
        pictures = torch.zeros(*present.shape, CLIP_FRAMES, crop, crop, 3, dtype=torch.uint8, pin_memory=pinned)
        spectrograms = torch.zeros(*present.shape, *self._sound.shape[1:])
        there = torch.from_numpy(present)
        pictures[there] = self.clips.inputs(clips, x, y, flip < 0.5)
        spectrograms[there] = torch.from_numpy(self._sound[clips])
        return pictures, spectrograms, there, *sampler.labels(drawn)
