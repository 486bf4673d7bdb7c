"""Batches of augmented clips, made ahead by threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jmt_fast.errors import DataError
from jmt_fast.threads import made_ahead
from jmt_fast.training.clips import Clips


def check_parts(batch: int, parts: int) -> None:
    """Raises DataError where batches of so many clips have no equal parts."""
    if batch % parts:
        raise DataError(f"batches of {batch} clips cannot be shared evenly by {parts} processes; set another batch")


class ClipLoader:
    """Batches of augmented clips, drawn at random over all videos, each clip once an epoch at most.

    What a step of `batch` clips holds depends on (seed, epoch, step) alone: threads make the next ones ahead, as many
    as `clips` can use, or `workers`. With `part` (n, of N) it gives the n-th of N equal parts of each step. Only what
    does not fill a last step is left out. Raises DataError where a step cannot be shared out evenly.
    """

    def __init__(
        self, clips: Clips, batch: int, seed: int, part: tuple[int, int] = (0, 1), workers: int | None = None
    ) -> None:
        number, parts = part
        if len(clips) < parts:
            raise DataError(f"{len(clips)} labelled clips are too few for {parts} processes; use fewer")
        check_parts(batch, parts)
        self._clips = clips
        size = min(batch, len(clips)) // parts
        self._seed = seed
        self._part = slice(number * size, (number + 1) * size)
        self._step = parts * size
        self._workers = workers or clips.workers

    def __len__(self) -> int:
        return len(self._clips) // self._step

    def epoch(self, epoch: int) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """All steps: a name, and pictures uint8 (batch, 8, crop, crop, 3) with targets float32 (batch, 2)."""
        draw = np.random.default_rng((self._seed, epoch))
        order, state = draw.permutation(len(self._clips)), draw.bit_generator.state

        def make(step: int) -> tuple[str, tuple[Tensor, Tensor]]:
            chosen = order[step * self._step : (step + 1) * self._step][self._part]
            x, y, flip = _numbers(state, 3 * step * self._step, self._step)[:, self._part]
            pictures = self._clips.inputs(chosen, x, y, flip < 0.5)
            return f"clips {chosen[0]}, ...", (pictures, torch.from_numpy(self._clips.targets[chosen]))

        return made_ahead(make, len(self), self._workers)


def _numbers(state: Any, skipped: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), (3, count), `skipped` of them further on than a generator in this state."""
    generator = np.random.PCG64()
    generator.state = state
    generator.advance(skipped)
    return np.random.Generator(generator).random((3, count))
