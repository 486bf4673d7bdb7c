"""Search over the optimiser's settings: a grid, then where the grid was good, by Optuna; bad trials are pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from jmt_fast.config import FusionTraining
from jmt_fast.errors import CheckpointError, DataError, JMTError
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import FitResult, LabelledVideo, fit_fusion
from jmt_fast.training.checkpoints import difference

Progress = Callable[..., None]
Save = Callable[[JMT, FusionTraining, FitResult], object]


@dataclass(frozen=True)
class Space:
    """The grid; refinement draws learning rates and lags between the least and the greatest, and from the others."""

    lr: Sequence[float] = (1e-4, 5e-4, 2e-3)
    batch: Sequence[int] = (2, 4, 8)
    momentum: Sequence[float] = (0.0,)
    label_lag: Sequence[float] = (0.0,)

    def grid(self) -> list[dict[str, float]]:
        names = list(asdict(self))
        return [dict(zip(names, point, strict=True)) for point in product(*asdict(self).values())]

    def suggest(self, trial: Any) -> dict[str, Any]:
        """A point for an Optuna trial."""
        return {
            "lr": trial.suggest_float("lr", min(self.lr), max(self.lr), log=True),
            "batch": trial.suggest_categorical("batch", list(self.batch)),
            "momentum": trial.suggest_categorical("momentum", list(self.momentum)),
            "label_lag": trial.suggest_float("label_lag", min(self.label_lag), max(self.label_lag)),
        }


@dataclass(frozen=True)
class Tried:
    """One trial: `state` is complete, pruned or failed; `mean` the best epoch's mean CCC on the validation split."""

    number: int
    state: str
    mean: float | None
    epoch: int | None
    settings: dict[str, Any]
    reason: str | None


class Search:
    """A study in `folder`, which goes on where it was interrupted: `study.log` keeps every finished trial.

    Needs Optuna. Raises CheckpointError where the folder holds a search with other settings or data, JMTError where it
    cannot be written.
    """

    def __init__(self, folder: Path, space: Space, base: FusionTraining, identity: dict[str, Any]) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.base, self._optuna = folder, space, base, optuna
        try:
            folder.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
        except OSError as error:
            raise JMTError(f"{folder}: cannot be written: {error.strerror}; pass another --out") from error
        self.study = optuna.create_study(
            storage=storage,
            study_name="fusion",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=base.seed, n_startup_trials=1),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        )
        self._claim(json.loads(json.dumps(identity | {"space": asdict(space), "base": base.model_dump(mode="json")})))

    def _claim(self, identity: dict[str, Any]) -> None:
        before = self.study.user_attrs.get("identity")
        if before is None:
            self.study.set_user_attr("identity", identity)
            for point in self.space.grid():
                self.study.enqueue_trial(point)
        elif other := difference(before, identity):
            raise CheckpointError(
                f"{self.folder}: holds a search with {other}; repeat its settings and data, or pass another --out"
            )
        states = self._optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):  # interrupted: done once more
            self.study.enqueue_trial(trial.params)
            self.study.tell(trial.number, state=states.FAIL)

    def run(
        self,
        make_model: Callable[[], JMT],
        audio_backbone: AudioBackbone,
        train: Sequence[LabelledVideo],
        validation: Sequence[LabelledVideo],
        runtime: Runtime,
        refine: int,
        save: Save,
        progress: Progress | None = None,
    ) -> list[Tried]:
        """All points of the grid, then `refine` more; `save(model, config, result)` gets each one that is best so far.

        A trial that diverges is noted. DataError and CheckpointError, the data's fault, end the search.
        """
        total = len(self.space.grid()) + refine
        while (done := len(self.trials())) < total:
            trial = self.study.ask()
            config = FusionTraining(**{**self.base.model_dump(), **self.space.suggest(trial)})
            note = f"{done + 1}/{total}: lr {config.lr:.2g}, batch {config.batch}"

            def inside(at: int, of: int, text: str, done: int = done, note: str = note) -> None:
                if progress:
                    progress(1000 * done + 1000 * at // of, 1000 * total, f"{note}, {text}")

            self._try(trial, config, make_model, audio_backbone, train, validation, runtime, save, inside)
        if not any(tried.state == "complete" for tried in self.trials()):
            raise JMTError(f"all {total} trials failed, the first with: {self.trials()[0].reason}")
        return self.trials()

    def _try(
        self, trial: Any, config: FusionTraining, make_model: Callable[[], JMT], audio: AudioBackbone,
        train: Sequence[LabelledVideo], validation: Sequence[LabelledVideo], runtime: Runtime, save: Save,
        progress: Progress,
    ) -> None:  # fmt: skip
        states = self._optuna.trial.TrialState

        def watch(entry: dict[str, Any]) -> None:
            trial.report(entry["mean"], entry["epoch"])
            if trial.should_prune():
                raise self._optuna.TrialPruned

        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(self.base.seed)
            model = make_model()
        try:
            result = fit_fusion(model, audio, train, validation, config, runtime, progress=progress, watch=watch)
        except self._optuna.TrialPruned:
            self.study.tell(trial, state=states.PRUNED)
        except (DataError, CheckpointError):
            raise
        except JMTError as error:
            trial.set_user_attr("failed", str(error))
            self.study.tell(trial, state=states.FAIL)
        else:
            mean = float(result.best_ccc.mean())
            if mean > max((tried.mean for tried in self.trials() if tried.mean is not None), default=-math.inf):
                save(model, config, result)  # first: a search that is killed in between repeats the trial
            trial.set_user_attr("epoch", result.best_epoch)
            self.study.tell(trial, mean)

    def trials(self) -> list[Tried]:
        """The finished ones, in their order; those that were interrupted are left out."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Tried(
                each.number, names[each.state.name], each.value if each.state.name == "COMPLETE" else None,
                each.user_attrs.get("epoch"), dict(each.params), each.user_attrs.get("failed"),
            )
            for each in self.study.get_trials(deepcopy=False)
            if each.state.name in ("COMPLETE", "PRUNED") or "failed" in each.user_attrs
        ]  # fmt: skip
