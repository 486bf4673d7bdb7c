"""A grid over the optimiser's settings, the same for every model that is compared, and the linear baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from jmt_fast.config import FusionTraining
from jmt_fast.errors import CheckpointError, DataError, JMTError
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training.batches import LabelledVideo
from jmt_fast.training.fusion import fit_fusion
from jmt_fast.training.loop import FitResult, Progress


@dataclass(frozen=True)
class Grid:
    """Values to try, all with all. The paper searches the learning rate and the batch size; its momentum is 0."""

    lr: Sequence[float] = (1e-4, 5e-4, 2e-3)
    momentum: Sequence[float] = (0.0, 0.9)
    batch: Sequence[int] = (2,)

    def configs(self, base: FusionTraining) -> list[FusionTraining]:
        return [
            FusionTraining(**{**base.model_dump(), "lr": lr, "momentum": momentum, "batch": batch})
            for lr, momentum, batch in product(self.lr, self.momentum, self.batch)
        ]


@dataclass(frozen=True)
class Trial:
    """One point of the grid: its result, or the reason why it has none (`failed`: it diverged)."""

    config: FusionTraining
    result: FitResult | None
    failed: str | None = None

    @property
    def mean(self) -> float:
        """Mean CCC of the best epoch on the validation split; minus infinity for a failed trial."""
        return float(self.result.best_ccc.mean()) if self.result else -float("inf")


@dataclass(frozen=True)
class SearchResult:
    """The best trial's `config` and `model` (with its best weights), and all `trials` in the grid's order."""

    config: FusionTraining
    model: JMT
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.mean)


def search(
    make_model: Callable[[], JMT],
    audio_backbone: AudioBackbone,
    train: Sequence[LabelledVideo],
    validation: Sequence[LabelledVideo],
    base: FusionTraining,
    runtime: Runtime,
    grid: Grid | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Train a model at each point of the grid and keep the best by mean CCC on the validation split.

    `make_model()` is called once a trial, each time from the same random state (`base.seed`), so trials differ in what
    the grid says and nothing else. A trial that diverges is noted and the rest goes on; JMTError when all do. DataError
    and CheckpointError are the data's fault, not the trial's, and end the search.
    """
    configs = (grid or Grid()).configs(base)
    trials: list[Trial] = []
    best: tuple[float, JMT] | None = None
    for number, config in enumerate(configs):
        note = f"{number + 1}/{len(configs)}: lr {config.lr:g}, momentum {config.momentum:g}, batch {config.batch}"

        def inside(done: int, total: int, text: str, number: int = number, note: str = note) -> None:
            if progress:
                progress(number * 1000 + done * 1000 // total, len(configs) * 1000, f"{note}, {text}")

        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(base.seed)
            model = make_model()
        try:
            result = fit_fusion(model, audio_backbone, train, validation, config, runtime, progress=inside)
        except (DataError, CheckpointError):
            raise
        except JMTError as error:
            trials.append(Trial(config, None, str(error)))
            continue
        trials.append(Trial(config, result))
        if best is None or trials[-1].mean > best[0]:
            best = trials[-1].mean, model
    if best is None:
        raise JMTError(f"all {len(trials)} trials failed, the first with: {trials[0].failed}")
    return SearchResult(max(trials, key=lambda trial: trial.mean).config, best[1], trials)
