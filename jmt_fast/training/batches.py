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
from jmt_fast.features.sequence import buffer_of, gather_many

_BLOCK = 128  # sequences, or one batch, gathered together, so that the frozen GRU runs over many at once


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


def content(videos: Sequence[LabelledVideo]) -> dict[str, str]:
    """16 hex digits each over the names, the labels and the features of all the videos, to know them again.

    All features are read once, 1.4 GB in three seconds from the page cache, which training needs them in anyway.
    """
    names, labels, features = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for video in videos:
        names.update(f"{video.name}\n".encode())
        labels.update(np.ascontiguousarray(video.labels).data)
        features.update(f"{video.features.stride} {video.features.visual_dim} ".encode())
        features.update(video.features.times.data)
        features.update(buffer_of(video.features))
    digests = {"videos": names, "labels": labels, "features": features}
    return {name: state.hexdigest()[:16] for name, state in digests.items()}


class Batch(NamedTuple):
    """Sequences of clips; rows and clips beyond what there is are padding (`present` false).

    `audio`, `visual` (B, L, D) as stored, on a device float32; `present` bool (B, L); `target` float32 (B, L, 2);
    `labelled` bool (B, L).
    """

    audio: Tensor
    visual: Tensor
    present: Tensor
    target: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> Batch:
        audio, visual, *rest = (tensor.to(device, non_blocking=True) for tensor in self)
        return Batch(audio.float(), visual.float(), *rest)

    def split(self, size: int) -> Iterator[Batch]:
        return (Batch(*parts) for parts in zip(*(tensor.split(size) for tensor in self), strict=True))


class Drawn(NamedTuple):
    """Sequences: `owners` int64 (S,) are indices of videos, `rows` int64 (S, L) numbers of their clips counted phase by
    phase (`VideoFeatures.by_phase`), -1 for padding at the end."""

    owners: np.ndarray
    rows: np.ndarray


def check_shares(batch: int, parts: int) -> None:
    """Raises DataError where there are more parts than rows in a batch."""
    if parts > batch:
        raise DataError(f"batches of {batch} sequences cannot be shared by {parts} processes; raise the batch")


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
        check_shares(batch, part[1])
        self.videos = videos
        self.part = part
        self.batch = batch
        self.seed = seed
        self.phases = []  # of each video, the rows (S, L) of the sequences of each of its phases
        labels = []
        self.features = [video.features.by_phase() for video in videos]
        for video, features in zip(videos, self.features, strict=True):
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
            stored = np.append(features.rows, -1)[rows]
            self.phases.append([stored[(phase == number) & taught] for number in wanted])
            order = np.argsort(features.rows)
            labels.append((target[order], labelled[order]))
        if not any(len(rows) for phases in self.phases for rows in phases):
            raise DataError(f"none of the {len(videos)} training videos has a labelled clip; check the annotations")
        self.first = np.cumsum([0, *(len(video.features.times) for video in videos)])  # row of each video among all
        self.target, self.labelled = (np.concatenate(part) for part in zip(*labels, strict=True))  # by these rows
        self._clips = [buffer_of(features) for features in self.features]

    def draw(self, epoch: int) -> Drawn:
        """The epoch's sequences in their order."""
        random = np.random.default_rng((self.seed, epoch))
        drawn = []
        for phases in self.phases:
            phase = random.integers(CLIP_STEP)  # one draw a video, whatever its number of phases
            drawn.append(phases[phase % len(phases)])
        order = random.permutation(sum(map(len, drawn)))
        owners = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
        return Drawn(owners[order], np.concatenate(drawn)[order])

    def batches(self, epoch: int) -> int:
        """Number of batches of the epoch."""
        return -(-len(self.draw(epoch).owners) // self.batch)

    def own(self, drawn: Drawn) -> Drawn:
        """This part of each batch of the sequences; clips of -1 where the last batch has no more."""
        count = len(drawn.owners)
        starts = np.arange(0, count, self.batch)[:, None]
        at = starts + self.part[0] * self.rows + np.arange(self.rows)
        there = at < np.minimum(count, starts + self.batch)
        at, there = np.where(there, at, 0).ravel(), there.ravel()
        return Drawn(drawn.owners[at], np.where(there[:, None], drawn.rows[at], -1))

    def blocks(self, epoch: int) -> Iterator[tuple[list[str], Batch]]:
        """This part of the epoch in blocks of some batches, with the name of the video of each row of all parts."""
        drawn, size = self.draw(epoch), self.batch * max(1, _BLOCK // self.batch)
        for start in range(0, len(drawn.owners), size):
            block = Drawn(*(part[start : start + size] for part in drawn))
            yield self.names(block), self.read(self.own(block))

    def read(self, drawn: Drawn) -> Batch:
        """These sequences, features as they are stored."""
        features = self.features[0]
        clips = gather_many(self._clips, *drawn, features.clips.shape[1], features.clips.dtype)
        audio, visual = clips[..., features.visual_dim :], clips[..., : features.visual_dim]
        return Batch(audio, visual, torch.from_numpy(drawn.rows >= 0), *self.labels(drawn))

    def labels(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Of these sequences: `target` float32 (S, L, 2), `labelled` bool (S, L)."""
        rows = self.rows_of_all(drawn)
        # A label is taken as one number of eight bytes: faster than as a row of two.
        target = self.target.view(np.complex64)[:, 0].take(rows, mode="clip").view(np.float32).reshape(*rows.shape, 2)
        labelled = self.labelled.take(rows, mode="clip") & (rows >= 0)
        return torch.from_numpy(target), torch.from_numpy(labelled)

    def rows_of_all(self, drawn: Drawn) -> np.ndarray:
        """int64 (S, L): rows of the sequences' clips among those of all videos, -1 for padding."""
        return np.where(drawn.rows < 0, -1, drawn.rows + self.first[drawn.owners, None])

    def names(self, drawn: Drawn) -> list[str]:
        return [self.videos[owner].name for owner in drawn.owners.tolist()]

    @property
    def rows(self) -> int:
        """Of this part in a batch; the last part's last ones are padding if the batch cannot be shared out evenly."""
        return -(-self.batch // self.part[1])

    def cut(self, names: Sequence[str], block: Batch) -> Iterator[tuple[str, Batch]]:
        """A block in batches, each with the names of all its videos."""
        for start, part in zip(range(0, len(names), self.batch), block.split(self.rows), strict=True):
            yield ", ".join(dict.fromkeys(names[start : start + self.batch])), part


class ResidentClips:
    """All clips that a sampler draws from, on a device, from where a step gathers its batch by row numbers.

    `audio` (N, D) float32 is what `sequence`, the frozen GRU, makes of each clip in its sequence: there is only one
    that it is in. `visual` (N, D) is as stored; `target` float32 (N, 2), `labelled` bool (N,).
    """

    def __init__(self, sampler: SequenceSampler, sequence: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        self.visual = torch.cat([features.visual for features in sampler.features]).to(device)
        self.target, self.labelled = (torch.from_numpy(part).to(device) for part in (sampler.target, sampler.labelled))
        self.audio = torch.empty(0)
        for video, phases in enumerate(sampler.phases):
            count = sum(map(len, phases))  # 0 without a label
            for rows in np.array_split(np.concatenate(phases), -(-count // 1024)) if count else ():
                self._hear(video, rows, sequence)

    @torch.no_grad()
    def _hear(self, video: int, rows: np.ndarray, sequence: Callable[[Tensor], Tensor]) -> None:
        block = self._sampler.read(Drawn(np.full(len(rows), video), rows)).to(self._device)
        heard, present = sequence(block.audio), block.present
        if not len(self.audio):
            self.audio = heard.new_zeros(len(self.visual), heard.shape[-1])
        self.audio[torch.from_numpy(rows).to(self._device)[present] + int(self._sampler.first[video])] = heard[present]

    @staticmethod
    def nbytes(sampler: SequenceSampler) -> int:
        """Of the features on the device."""
        return sum(4 * features.audio.numel() + features.visual.nbytes for features in sampler.features)

    def epoch(self, epoch: int) -> Iterator[tuple[str, tuple[Tensor]]]:
        """The batches of an epoch: the names of the videos, and the clips' rows, int64 (B, L), -1 for padding."""
        drawn = self._sampler.draw(epoch)
        rows = torch.from_numpy(self._sampler.rows_of_all(self._sampler.own(drawn)))
        names, size = self._sampler.names(drawn), self._sampler.batch
        for number, part in enumerate(rows.to(self._device).split(self._sampler.rows)):
            yield ", ".join(dict.fromkeys(names[number * size : (number + 1) * size])), (part,)

    def batch(self, rows: Tensor) -> Batch:
        """The batch of these rows, without waiting for the device."""
        present, rows = rows >= 0, rows.clamp(min=0)
        audio, visual = (part[rows].float().masked_fill(~present[..., None], 0) for part in (self.audio, self.visual))
        return Batch(audio, visual, present, self.target[rows], self.labelled[rows] & present)
