"""The whole system in miniature, on synthetic data: make a collection, train both stages, evaluate, predict."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmt_fast.config import AudioTraining, Config, FeatureConfig, FusionTraining, JMTConfig, VisualTraining
from jmt_fast.data import Recording, load
from jmt_fast.data.synthetic import synthesise
from jmt_fast.errors import JMTError
from jmt_fast.inference import Predictor, Trace
from jmt_fast.models import JMT, Backbones, Checkpoint, load_backbones
from jmt_fast.models.checkpoint import save_backbones_folder
from jmt_fast.runtime import Runtime
from jmt_fast.training import Evaluation, Grid, evaluate, fit_audio_gru, fit_visual, ridge, search
from jmt_fast.training.experiment import Labelled, labelled_videos, open_store

MODELS = ("jmt", "concat", "visual", "audio")
Stage = Callable[[str], AbstractContextManager[Callable[..., None]]]


class DemoConfig(Config):
    """Sizes for five minutes on two CPU cores. The networks are `FeatureConfig.preset("demo")`."""

    seed: int = 0
    videos: int = 42  # many short ones: each is another face and voice
    seconds: float = 17.1  # two sequences
    size: int = 96
    fps: int = 15  # clips sample every 4/30 s, so every second frame at 30 fps would not be seen
    stride: int = 8
    visual: VisualTraining = VisualTraining(
        optimizer="adam", lr=1e-3, clip_norm=1.0, batch=16, epochs=7, dropout=0.2, stride=8, schedule="one_cycle"
    )
    audio: AudioTraining = AudioTraining(lr=1e-3, batch=8, epochs=60, patience=20)
    # One grid for models of 1 and of 15 million weights: in steps that are not clipped and long enough for the small
    # ones, the JMT learns nothing. In batches of 2 its steps are noise enough for two roundings to end far apart.
    fusion: FusionTraining = FusionTraining(
        batch=16, epochs=60, patience=20, stride=8, clip_norm=1.0, schedule="cosine"
    )
    lr: tuple[float, ...] = (0.02, 0.512)
    momentum: tuple[float, ...] = (0.0,)


@dataclass
class DemoResult:
    """What the demo found: test scores by model, seconds by stage, and where the files are."""

    out: Path
    scores: dict[str, Evaluation] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    clips_per_second: float = 0.0
    trace: Trace | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "synthetic": True,
            "scores": {name: score.as_dict() for name, score in self.scores.items()},
            "chosen": self.chosen,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "clips_per_second": round(self.clips_per_second, 2),
        }


def run_demo(out: Path, config: DemoConfig, runtime: Runtime, stage: Stage) -> DemoResult:
    """Run every stage; finished videos, backbones and features in `out` are taken up again after an interruption.

    `stage(title)` is a context manager that gives `progress(done, total, note)`. Leaves in `out`: `data/`,
    `backbones/`, `features/`, `checkpoint/`, `prediction.parquet`, `prediction.png`, `summary.json`.
    """
    result = DemoResult(out)
    _claim(out, config)

    @contextmanager
    def timed(title: str) -> Iterator[Callable[..., None]]:
        start = time.perf_counter()
        with stage(title) as progress:
            yield progress
        result.seconds[title] = time.perf_counter() - start

    with timed("Rendering synthetic videos") as progress:
        synthesise(
            out / "data",
            config.videos,
            config.seconds,
            config.seed,
            size=config.size,
            fps=config.fps,
            progress=progress,
        )
    recordings = load(out / "data" / "manifest.csv")
    with timed("Training the visual backbone") as progress:
        backbones, features = _visual_backbone(out / "backbones", recordings, config, runtime, progress)
    store = open_store(out / "features", features, backbones, config.stride, runtime)
    with timed("Extracting features") as progress:
        labelled = labelled_videos(recordings, store, backbones, runtime, progress)
    clips = sum(len(video.features.times) for videos in labelled.splits.values() for video in videos)
    result.clips_per_second = clips / result.seconds["Extracting features"]
    with timed("Training the GRU") as progress:
        fit_audio_gru(
            backbones.audio,
            labelled.split("train"),
            labelled.split("validation"),
            config.audio,
            runtime,
            progress=progress,
        )
    for name in MODELS:
        with timed(f"Training {name}") as progress:
            model = _search(name, labelled, backbones, config, runtime, result, progress)
        if name == "jmt":
            Checkpoint(model, backbones, features).save(out / "checkpoint")
    baseline = ridge(labelled.split("train"), labelled.split("validation"), labelled.split("test"))
    result.chosen["ridge"] = f"penalty {baseline.penalty:g}"
    assert baseline.test is not None  # a test split was given
    result.scores["ridge"] = baseline.test
    with timed("Predicting a held-out video") as progress:
        _predict(recordings, labelled, config, runtime, result, progress)
    (out / "summary.json").write_text(json.dumps(result.as_dict(), indent=1))
    return result


def _claim(out: Path, config: DemoConfig) -> None:
    """Refuse a folder that another demo filled: its leftovers would pass for this one's."""
    path = out / "demo.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.read_text() != config.model_dump_json(indent=1):
                raise JMTError(f"{out}: holds a demo with other settings; pass another --out, or delete the folder")
        elif any(out.iterdir()):
            raise JMTError(f"{out}: is not empty and not a demo's folder; pass another --out")
        else:
            path.write_text(config.model_dump_json(indent=1))
    except OSError as error:
        raise JMTError(f"{out}: cannot be written: {error.strerror}; pass another --out") from error


def _visual_backbone(
    folder: Path, recordings: list[Recording], config: DemoConfig, runtime: Runtime, progress: Callable[..., None]
) -> tuple[Backbones, FeatureConfig]:
    """The first stage of the paper: train the visual backbone, then freeze it. The audio CNN stays as it was drawn."""
    features = FeatureConfig.preset("demo")
    if (folder / "features.json").exists():
        return load_backbones(features, folder), features
    backbones = load_backbones(features, "random", config.seed)
    train, validation = ([each for each in recordings if each.split == split] for split in ("train", "validation"))
    fit_visual(backbones.visual, features.frames, train, validation, config.visual, runtime, progress=progress)
    save_backbones_folder(backbones, features, folder)
    return backbones, features


def _search(
    name: str,
    labelled: Labelled,
    backbones: Backbones,
    config: DemoConfig,
    runtime: Runtime,
    result: DemoResult,
    progress: Callable[..., None],
) -> JMT:
    """The same search for every model; the test split is looked at once, afterwards."""
    found = search(
        lambda: JMT(JMTConfig(fusion=name)),  # type: ignore[arg-type]
        backbones.audio,
        labelled.split("train"),
        labelled.split("validation"),
        config.fusion,
        runtime,
        Grid(config.lr, config.momentum, (config.fusion.batch,)),
        progress,
    )
    result.chosen[name] = (
        f"lr {found.config.lr:g}, momentum {found.config.momentum:g}, epoch {found.best.result.best_epoch}"  # type: ignore[union-attr]
    )
    result.scores[name] = evaluate(found.model, backbones.audio, labelled.split("test"), runtime=runtime)
    return found.model


def _predict(
    recordings: list[Recording],
    labelled: Labelled,
    config: DemoConfig,
    runtime: Runtime,
    result: DemoResult,
    progress: Callable[..., None],
) -> None:
    """One unseen face through the saved checkpoint, as `jmt-fast predict` would do it."""
    video = labelled.split("test")[0]
    recording = next(each for each in recordings if each.name == video.name)
    predictor = Predictor(Checkpoint.load(result.out / "checkpoint"), runtime)
    trace = predictor.predict(recording.video, config.stride, progress=progress)
    trace.save(result.out / "prediction.parquet")
    figure = trace.plot(video.labels, f"{recording.name}: synthetic, an identity that training did not see")
    figure.savefig(result.out / "prediction.png", dpi=120)
    result.trace = trace
