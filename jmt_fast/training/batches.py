"""Labelled videos to batches of sequences: one random phase of each video an epoch, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jmt_fast.config import CLIP_STEP
from jmt_fast.data import clip_labels, reconcile, sequences
from jmt_fast.errors import DataError
from jmt_fast.features import VideoFeatures
from jmt_fast.features.sequence import gather

_BLOCK = 64  # batches gathered together, so that the frozen GRU runs over many sequences at once


@dataclass(frozen=True)
class LabelledVideo:
    """The clips of a video and the labels (F, 2) float32 of its frames, -5 where a frame has none.

    Labels for a few frames more or fewer than were decoded are cut or padded with -5, with a warning.
    """

    features: VideoFeatures
    labels: np.ndarray

    def __post_init__(self) -> None:
        labels, warning = reconcile(self.labels, len(self.features.timestamps), self.features.name)
        if warning:
            warnings.warn(warning, stacklevel=3)
        object.__setattr__(self, "labels", labels)

    @property
    def name(self) -> str:
        return self.features.name


class Batch(NamedTuple):
    """Sequences of clips; rows and clips beyond what there is are padding (`present` false).

    `audio`, `visual` float32 (B, L, D); `present` bool (B, L); `target` float32 (B, L, 2); `labelled` bool (B, L).
    """

    audio: Tensor
    visual: Tensor
    present: Tensor
    target: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def split(self, size: int) -> Iterator[Batch]:
        return (Batch(*parts) for parts in zip(*(tensor.split(size) for tensor in self), strict=True))


class SequenceSampler:
    """Draws the sequences of an epoch: all that is random depends on (seed, epoch) alone.

    `stride`: thirtieths of a second between the clips to draw from, by default all that are stored. `label`,
    `label_lag`: as for `clip_labels`. `part` (n, of N): the n-th of N equal parts of the rows of each batch is read, so
    that N samplers have each sequence once between them, and the same number of batches. Raises DataError for features
    stored at a stride that does not serve, when no clip has a label, and for more parts than rows.
    """

    def __init__(
        self,
        videos: Sequence[LabelledVideo],
        *,
        length: int,
        batch: int,
        seed: int,
        stride: int | None = None,
        label: Literal["end", "mean"] = "end",
        label_lag: float = 0.0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if part[1] > batch:
            raise DataError(f"batches of {batch} sequences cannot be shared by {part[1]} processes; raise the batch")
        self.videos = videos
        self.part = part
        self.batch = batch
        self.seed = seed
        self._phases = []  # of each video, the rows (S, L) of each of its phases
        self._labels = []
        for video in videos:
            features = video.features
            every = (stride or features.stride) // features.stride
            if every * features.stride != (stride or features.stride):
                raise DataError(
                    f"{video.name}: features are stored every {features.stride} thirtieths of a second, which does not "
                    f"give stride={stride}; set the stride to a multiple, or extract again"
                )
            target, labelled = clip_labels(video.labels, features.timestamps, features.times, mode=label, lag=label_lag)
            rows = sequences(len(features.times), features.stride, length)
            phase = rows[:, 0] % (CLIP_STEP // features.stride)
            taught = (labelled[rows] & (rows >= 0)).any(1)  # a sequence without any label teaches nothing
            wanted = np.unique(phase[phase % every == 0])
            self._phases.append([rows[(phase == number) & taught] for number in wanted])
            self._labels.append((target, labelled))
        if not any(len(rows) for phases in self._phases for rows in phases):
            raise DataError(f"none of the {len(videos)} training videos has a labelled clip; check the annotations")

    def digest(self) -> str:
        """Changes when the videos, their clips or their labels do."""
        state = hashlib.sha256()
        for video in self.videos:
            state.update(f"{video.name}/{video.features.stride}/{len(video.features.times)}".encode())
            state.update(np.ascontiguousarray(video.labels).tobytes())
        return state.hexdigest()[:16]

    def draw(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The epoch's sequences in their order: (index of the video, clips (L,) with -1 for padding)."""
        random = np.random.default_rng((self.seed, epoch))
        drawn = []
        for video, phases in enumerate(self._phases):
            phase = random.integers(CLIP_STEP)  # one draw a video, whatever its number of phases
            drawn += [(video, row) for row in phases[phase % len(phases)]]
        return [drawn[position] for position in random.permutation(len(drawn))]

    def batches(self, epoch: int) -> int:
        """Number of batches of the epoch."""
        return -(-len(self.draw(epoch)) // self.batch)

    def blocks(self, epoch: int) -> Iterator[tuple[list[str], Batch]]:
        """This part of the epoch in blocks of some batches, with the name of the video of each row of all parts."""
        drawn = self.draw(epoch)
        padding = 0, np.full_like(drawn[0][1], -1)
        for start in range(0, len(drawn), self.batch * _BLOCK):
            block = drawn[start : start + self.batch * _BLOCK]
            own = [
                block[at] if at < min(len(block), first + self.batch) else padding
                for first in range(0, len(block), self.batch)
                for at in range(first + self.part[0] * self._rows, first + (self.part[0] + 1) * self._rows)
            ]
            read = Batch(*(torch.cat(tensors) for tensors in zip(*(self._read(*item) for item in own), strict=True)))
            yield [self.videos[video].name for video, _ in block], read

    @property
    def _rows(self) -> int:
        """Of this part in a batch; the last part's last ones are padding if the batch cannot be shared out evenly."""
        return -(-self.batch // self.part[1])

    def cut(self, names: Sequence[str], block: Batch) -> Iterator[tuple[str, Batch]]:
        """A block in batches, each with the names of all its videos."""
        for start, part in zip(range(0, len(names), self.batch), block.split(self._rows), strict=True):
            yield ", ".join(dict.fromkeys(names[start : start + self.batch])), part

    def _read(self, video: int, row: np.ndarray) -> Batch:
        target, labelled = self._labels[video]
        audio, visual, present = gather(self.videos[video].features, row[None])
        return Batch(
            audio, visual, present, torch.from_numpy(target[row][None]), torch.from_numpy(labelled[row][None]) & present
        )
