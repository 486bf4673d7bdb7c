"""Epochs, validation, selection, early stopping and resuming, the same for all that is trained here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jmt_fast.errors import CheckpointError, JMTError
from jmt_fast.training.checkpoints import RunFolder, first_line
from jmt_fast.training.distributed import of_first, rank
from jmt_fast.training.step import Step

Progress = Callable[[int, int, str], None]
Watch = Callable[[dict[str, Any]], None]  # takes an epoch's entry of the history
Rate = Callable[[list[dict[str, Any]]], float]  # the learning rate's factor in the epoch after this history
Batches = Iterable[tuple[str, Sequence[Tensor]]]  # what the batch is made of, for messages, and the step's arguments

_CHECK_EVERY = 64  # steps between looks at the loss, each of which waits for the device
_PARTS = 1000  # units of `progress` an epoch


@dataclass(frozen=True)
class FitResult:
    """`best_ccc` float64 (2,) of the selected epoch (from 1), and one entry of `history` for each epoch.

    An entry: `epoch`, `loss` (mean over the batches), `valence`, `arousal`, `mean` (CCC on the validation split),
    `improved`, `seconds`.
    """

    best_ccc: np.ndarray
    best_epoch: int
    history: list[dict[str, Any]] = field(repr=False)


class Trainer:
    """Trains `module` with `step`; selection by the mean CCC of `validate()`, a float64 (2,).

    All random numbers of an epoch come from (seed, epoch) and the rank, so a resumed run goes on exactly as it would
    have. On a CPU it ends with the same bits. Of several processes the first one reads and writes the folder.

    `watch(entry)` is called after each epoch, when it is on disk; what it raises ends the run. `rate(history)` gives
    the learning rate's factor in the next epoch.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        validate: Callable[[], np.ndarray],
        *,
        epochs: int,
        patience: int,
        seed: int,
        folder: RunFolder | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
        rate: Rate | None = None,
    ) -> None:
        self.module = module
        self.step = step
        self.validate = validate
        self.epochs = epochs
        self.patience = patience
        self.seed = seed
        self.folder = folder
        self.progress = progress or (lambda done, total, note: None)
        self.watch = watch
        self.rate = rate
        self.history: list[dict[str, Any]] = []
        self._best: dict[str, Tensor] = {}

    def fit(self, batches: Callable[[int], Batches], length: Callable[[int], int], resume: bool = False) -> FitResult:
        """Run the epochs; `batches(epoch)` with epoch = 1, 2, ... gives about `length(epoch)` of them.

        On return the module is in evaluation mode and holds the weights of the best epoch.

        Raises:
            JMTError: a loss that is not finite (named by epoch and batch), a disk that is full. The checkpoints of the
                epochs before stay whole.
            CheckpointError: `resume` with the state of another run, or a damaged one.
        """
        if resume:
            self._resume()
        while not self._finished():
            epoch = len(self.history) + 1
            started = time.perf_counter()
            if self.rate:
                self.step.scale_rate(self.rate(self.history))
            with _random(self.seed, epoch, self.step.device):
                loss = self._epoch(epoch, batches(epoch), length(epoch))
            self.module.eval()
            ccc = self.validate()
            self._record(epoch, loss, ccc, time.perf_counter() - started)
        self.module.load_state_dict(self._best)
        self.module.eval()
        best = self.history[self._best_epoch() - 1]
        return FitResult(np.array([best["valence"], best["arousal"]]), best["epoch"], self.history)

    def _epoch(self, epoch: int, batches: Batches, length: int) -> float:
        """Mean loss of one pass."""
        self.module.train()
        losses: list[Tensor] = []
        sources: list[str] = []
        total, count = 0.0, 0
        for source, tensors in batches:
            losses.append(self.step(*tensors))
            sources.append(source)
            if len(losses) == _CHECK_EVERY:
                total, count = total + _sum(losses, sources, epoch, count), count + len(losses)
                losses, sources = [], []
            done = (epoch - 1) * _PARTS + min(_PARTS, _PARTS * (count + len(losses)) // max(length, 1))
            self.progress(done, self.epochs * _PARTS, f"epoch {epoch}")
        if losses:
            total, count = total + _sum(losses, sources, epoch, count), count + len(losses)
        return total / max(count, 1)

    def _record(self, epoch: int, loss: float, ccc: np.ndarray, seconds: float) -> None:
        if not np.isfinite(ccc).all():
            raise JMTError(f"epoch {epoch}: predictions for the validation split are not finite; lower the lr")
        valence, arousal = map(float, ccc)
        mean = (valence + arousal) / 2
        improved = mean > max((entry["mean"] for entry in self.history), default=-math.inf)
        self.history.append(
            {
                "epoch": epoch, "loss": loss, "valence": valence, "arousal": arousal, "mean": mean,
                "improved": improved, "seconds": round(seconds, 3),
            }
        )  # fmt: skip
        if improved:
            self._best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        if self.folder and rank() == 0:
            state = {
                "module": self.module.state_dict(), "best": self._best, "step": self.step.state_dict(),
                "history": self.history,
            }  # fmt: skip
            self.folder.save(state, self.history, improved)
        self.progress(epoch * _PARTS, self.epochs * _PARTS, f"epoch {epoch}: CCC {valence:.3f} / {arousal:.3f}")
        if self.watch:
            self.watch(self.history[-1])

    def _resume(self) -> None:
        if self.folder is None:
            raise ValueError("resume needs the folder of a run")
        state = of_first(self.folder.load)
        if state is None:
            return
        try:
            self.module.load_state_dict(state["module"])
            self.step.load_state_dict(state["step"])
            self._best, self.history = state["best"], state["history"]
        except (KeyError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{self.folder.folder}: the last state does not fit the model ({reason})") from error

    def _best_epoch(self) -> int:
        return max((entry["epoch"] for entry in self.history if entry["improved"]), default=0)

    def _finished(self) -> bool:
        return len(self.history) >= self.epochs or len(self.history) - self._best_epoch() >= self.patience


def _sum(losses: list[Tensor], sources: list[str], epoch: int, before: int) -> float:
    values = torch.stack(losses).double().cpu()
    if not values.isfinite().all():
        bad = int((~values.isfinite()).nonzero()[0])
        raise JMTError(
            f"epoch {epoch}, batch {before + bad + 1} ({sources[bad]}): the loss is not finite; lower the lr, or "
            "extract these features again"
        )
    return float(values.sum())


@contextmanager
def _random(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers (dropout) from (seed, epoch, rank), and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, rank())).generate_state(1, np.uint64)[0] >> 1))
        yield
