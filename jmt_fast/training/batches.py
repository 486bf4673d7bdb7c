"""Labelled videos to batches of sequences: one random phase of each video an epoch, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
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
        self.phases = []  # of each video, the rows (S, L) of each of its phases
        self.labels = []  # of each video, target and labelled of each clip
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
            self.phases.append([rows[(phase == number) & taught] for number in wanted])
            self.labels.append((target, labelled))
        if not any(len(rows) for phases in self.phases for rows in phases):
            raise DataError(f"none of the {len(videos)} training videos has a labelled clip; check the annotations")

    def digest(self) -> str:
        """Changes when the videos, their clips or their labels do, or what extracted the features."""
        state = hashlib.sha256()
        for video in self.videos:
            features = video.features
            state.update(f"{video.name}/{features.stride}/{len(features.times)}".encode())
            state.update(np.ascontiguousarray(video.labels).tobytes())
            for part in (features.visual, features.audio):  # other backbones differ in the first clip already
                state.update(part[:1].float().numpy().tobytes())
        return state.hexdigest()[:16]

    def draw(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The epoch's sequences in their order: (index of the video, clips (L,) with -1 for padding)."""
        random = np.random.default_rng((self.seed, epoch))
        drawn = []
        for video, phases in enumerate(self.phases):
            phase = random.integers(CLIP_STEP)  # one draw a video, whatever its number of phases
            drawn += [(video, row) for row in phases[phase % len(phases)]]
        return [drawn[position] for position in random.permutation(len(drawn))]

    def batches(self, epoch: int) -> int:
        """Number of batches of the epoch."""
        return -(-len(self.draw(epoch)) // self.batch)

    def own(self, drawn: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
        """This part of each batch of sequences as `draw` gives them; clips of -1 where the last batch has no more."""
        padding = 0, np.full_like(drawn[0][1], -1)
        return [
            drawn[at] if at < min(len(drawn), first + self.batch) else padding
            for first in range(0, len(drawn), self.batch)
            for at in range(first + self.part[0] * self.rows, first + (self.part[0] + 1) * self.rows)
        ]

    def blocks(self, epoch: int) -> Iterator[tuple[list[str], Batch]]:
        """This part of the epoch in blocks of some batches, with the name of the video of each row of all parts."""
        drawn = self.draw(epoch)
        for start in range(0, len(drawn), self.batch * _BLOCK):
            block = drawn[start : start + self.batch * _BLOCK]
            rows = (self._read(*item) for item in self.own(block))
            yield self.names(block), Batch(*(torch.cat(tensors) for tensors in zip(*rows, strict=True)))

    def names(self, drawn: list[tuple[int, np.ndarray]]) -> list[str]:
        return [self.videos[video].name for video, _ in drawn]

    @property
    def rows(self) -> int:
        """Of this part in a batch; the last part's last ones are padding if the batch cannot be shared out evenly."""
        return -(-self.batch // self.part[1])

    def cut(self, names: Sequence[str], block: Batch) -> Iterator[tuple[str, Batch]]:
        """A block in batches, each with the names of all its videos."""
        for start, part in zip(range(0, len(names), self.batch), block.split(self.rows), strict=True):
            yield ", ".join(dict.fromkeys(names[start : start + self.batch])), part

    def _read(self, video: int, row: np.ndarray) -> Batch:
        target, labelled = self.labels[video]
        audio, visual, present = gather(self.videos[video].features, row[None])
        return Batch(
            audio, visual, present, torch.from_numpy(target[row][None]), torch.from_numpy(labelled[row][None]) & present
        )


class ResidentClips:
    """All clips that a sampler draws from, on a device, from where a step gathers its batch by row numbers.

    `audio` (N, D) float32 is what `sequence`, the frozen GRU, makes of each clip in its sequence: there is only one
    that it is in. `visual` (N, D) is as stored; `target` float32 (N, 2), `labelled` bool (N,).
    """

    def __init__(self, sampler: SequenceSampler, sequence: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        counts = [len(video.features.times) for video in sampler.videos]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self.visual = torch.cat([video.features.visual for video in sampler.videos]).to(device)
        self.target = torch.from_numpy(np.concatenate([target for target, _ in sampler.labels])).to(device)
        self.labelled = torch.from_numpy(np.concatenate([labelled for _, labelled in sampler.labels])).to(device)
        self.audio = torch.empty(0)
        for video, phases in enumerate(sampler.phases):
            for rows in np.array_split(np.concatenate(phases), -(-sum(map(len, phases)) // 1024) or 1):
                self._hear(video, rows, sequence)

    @torch.no_grad()
    def _hear(self, video: int, rows: np.ndarray, sequence: Callable[[Tensor], Tensor]) -> None:
        audio, _, present = (tensor.to(self._device) for tensor in gather(self._sampler.videos[video].features, rows))
        heard = sequence(audio)
        if not len(self.audio):
            self.audio = heard.new_zeros(len(self.visual), heard.shape[-1])
        self.audio[torch.from_numpy(rows).to(self._device)[present] + int(self._first[video])] = heard[present]

    @staticmethod
    def nbytes(sampler: SequenceSampler) -> int:
        """Of the features on the device."""
        return sum(4 * video.features.audio.numel() + video.features.visual.nbytes for video in sampler.videos)

    def epoch(self, epoch: int) -> Iterator[tuple[str, tuple[Tensor]]]:
        """The batches of an epoch: the names of the videos, and the clips' rows, int64 (B, L), -1 for padding."""
        drawn = self._sampler.draw(epoch)
        rows = [np.where(row < 0, -1, row + self._first[video]) for video, row in self._sampler.own(drawn)]
        names, size = self._sampler.names(drawn), self._sampler.batch
        for number, part in enumerate(torch.from_numpy(np.stack(rows)).to(self._device).split(self._sampler.rows)):
            yield ", ".join(dict.fromkeys(names[number * size : (number + 1) * size])), (part,)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows, without waiting for the device."""
        present, rows = rows >= 0, rows.clamp(min=0)
        audio, visual = (part[rows].float().masked_fill(~present[..., None], 0) for part in (self.audio, self.visual))
        return Batch(audio, visual, present, self.target[rows], self.labelled[rows] & present)
