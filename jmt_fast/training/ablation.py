"""What each part of the model is worth: every field changed alone, and the baselines, over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jmt_fast.config import FusionTraining, JMTConfig, digest
from jmt_fast.errors import JMTError
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import evaluate, fit_fusion, ridge
from jmt_fast.training.batches import content
from jmt_fast.training.checkpoints import weights_digest
from jmt_fast.training.experiment import Labelled

Progress = Callable[..., None]
BASE, RIDGE = "jmt", "ridge"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "literal": dict(JMTConfig.preset("literal").model_dump(exclude_defaults=True)),
    "abaw6": dict(JMTConfig.preset("abaw6").model_dump(exclude_defaults=True)),
    **{name: {"fusion": name} for name in ("audio", "visual", "concat", "cross_attention")},
    RIDGE: {},
    "softmax": {"activation": "softmax"},
    "query orientation": {"orientation": "query"},
    "scale 1": {"scale": 1.0},
    "bias 0": {"bias": 0.0},
    "no input norm": {"input_norm": "none"},
    "attention encoder": {"encoder": "attention"},
    "no out projection": {"out_projection": False},
    "query weights": {"cross_weights": "query"},
    "self-attention output": {"output": "self_attention"},
    "4 heads": {"heads": 4},
    "2 layers": {"layers": 2},
    "length 16": {"length": 16},
}


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds: means and sample deviations of the CCC; `difference` of the mean CCC to `jmt`, paired
    by seed, with `p` of the two-sided paired t-test (None below two seeds, or where nothing varies)."""

    name: str
    seeds: int
    valence: float
    arousal: float
    mean: float
    deviation: float
    difference: float
    p: float | None


def ablate(
    out: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    labelled: Labelled,
    model: JMTConfig,
    training: FusionTraining,
    audio_backbone: AudioBackbone,
    runtime: Runtime,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train each variant (of VARIANTS) with each seed; returns one row a run, in that order.

    A row: `variant`, `seed`, `split` (test where there is one, else validation), `valence`, `arousal`, `mean`. Rows are
    appended to `out/runs.jsonl` as they come; those of the same settings and data are not run again.
    """
    path = out / "runs.jsonl"
    split = "test" if labelled.splits.get("test") else "validation"
    splits = {name: content(videos) for name, videos in labelled.splits.items()}
    data = digest({"audio": weights_digest(audio_backbone), **splits})
    rows = []
    for number, (name, seed) in enumerate((name, seed) for name in names for seed in seeds):
        config = model if name == RIDGE else JMTConfig(**{**model.model_dump(), **VARIANTS[name]})
        own = FusionTraining(**{**training.model_dump(), "seed": seed})
        key = f"{name} {config.digest()} {own.digest()} {runtime.precision} {data}"

        def inside(at: int, of: int, note: str, number: int = number, title: str = f"{name}, seed {seed}") -> None:
            if progress:
                progress(1000 * number + 1000 * at // of, 1000 * len(names) * len(seeds), f"{title}, {note}")

        found = _known(path).get(key)
        if found is None:
            scores = _run(name, config, own, labelled, split, audio_backbone, runtime, inside)
            found = {"variant": name, "seed": seed, "split": split, **scores, "key": key}
            _append(path, found)
        inside(1, 1, "done")
        rows.append(found)
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[Summary]:
    """One line a variant, `jmt` first, then by the mean CCC. The base must be among the rows."""
    from scipy.stats import ttest_rel

    means = {name: {row["seed"]: row["mean"] for row in rows if row["variant"] == name} for name in _names(rows)}
    found = []
    for name, own in means.items():
        shared = sorted(own.keys() & means[BASE].keys())
        values, base = (np.array([each[seed] for seed in shared]) for each in (own, means[BASE]))
        p = None
        if name != BASE and len(shared) > 1 and np.ptp(values - base) > 0:
            p = float(ttest_rel(values, base).pvalue)
        scores = {column: [row[column] for row in rows if row["variant"] == name] for column in ("valence", "arousal")}
        found.append(
            Summary(
                name, len(own), float(np.mean(scores["valence"])), float(np.mean(scores["arousal"])),
                float(np.mean(list(own.values()))),
                float(np.std(list(own.values()), ddof=1)) if len(own) > 1 else math.nan,
                float((values - base).mean()), p,
            )
        )  # fmt: skip
    return sorted(found, key=lambda each: (each.name != BASE, -each.mean))


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def _run(
    name: str, config: JMTConfig, training: FusionTraining, labelled: Labelled, split: str, audio: AudioBackbone,
    runtime: Runtime, progress: Progress,
) -> dict[str, float]:  # fmt: skip
    train, validation, judged = (labelled.split(each) for each in ("train", "validation", split))
    if name == RIDGE:
        found = ridge(train, validation, judged, length=config.length, label_lag=training.label_lag).test
        assert found is not None  # `judged` was given
    else:
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(training.seed)
            model = JMT(config)
        fit_fusion(model, audio, train, validation, training, runtime, progress=progress)
        found = evaluate(model, audio, judged, runtime=runtime, label_lag=training.label_lag)
    return {"valence": float(found.pooled[0]), "arousal": float(found.pooled[1]), "mean": found.mean}


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs by their key; a line cut off by a crash is passed over."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write("\n" * torn + json.dumps(row) + "\n")
    except OSError as error:
        raise JMTError(f"{path}: cannot be written: {error.strerror}; the runs before are kept") from error
