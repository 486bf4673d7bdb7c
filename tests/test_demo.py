"""The demo, smaller: every file that it promises, figures for every model, and a folder that it will not take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from jmt_fast.config import AudioTraining, FusionTraining, VisualTraining
from jmt_fast.data import read_affwild2
from jmt_fast.demo import MODELS, DemoConfig, DemoResult, run_demo
from jmt_fast.errors import JMTError
from jmt_fast.inference import Predictor
from jmt_fast.runtime import Runtime

SMALL = DemoConfig(
    videos=5,
    seconds=9.0,
    size=48,
    visual=VisualTraining(optimizer="adam", batch=8, epochs=1, stride=32),
    audio=AudioTraining(epochs=1),
    fusion=FusionTraining(epochs=1, stride=8),
    lr=(5e-4,),
    momentum=(0.9,),
)
RUNTIME = Runtime.choose("cpu", "fp32", compile=False)


class Stages:
    """Records what a progress bar would show."""

    def __init__(self) -> None:
        self.shown: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def __call__(self, title: str) -> Iterator[Callable[..., None]]:
        marks = self.shown.setdefault(title, [])
        yield lambda done, total, note="": marks.append((done, total))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Stages]:
    stages = Stages()
    return run_demo(tmp_path_factory.mktemp("demo") / "out", SMALL, RUNTIME, stages), stages


def test_it_leaves_what_it_promises(demo: tuple[DemoResult, Stages]) -> None:
    result, _ = demo
    assert (result.out / "prediction.png").read_bytes().startswith(b"\x89PNG")
    table = pyarrow.parquet.read_table(result.out / "prediction.parquet")
    assert table.num_rows == 9 * SMALL.fps
    summary = json.loads((result.out / "summary.json").read_text())
    assert summary["synthetic"] is True
    assert summary["scores"].keys() == {*MODELS, "ridge"}
    trace = Predictor.from_pretrained(result.out / "checkpoint", "cpu", "fp32", False).predict(
        result.out / "data" / "videos" / "synthetic_004.mp4"
    )
    np.testing.assert_allclose(trace.values, np.stack([table["valence"], table["arousal"]], 1), atol=1e-5)


def test_scores_are_of_the_labelled_frames_of_the_test_split(demo: tuple[DemoResult, Stages]) -> None:
    result, _ = demo
    labels = read_affwild2(result.out / "data" / "VA_Estimation_Challenge" / "Test_Set" / "synthetic_004.txt")
    for score in result.scores.values():
        assert score.frames == {"synthetic_004": int((labels != -5).all(1).sum())}
        assert np.isfinite(score.pooled).all()


def test_long_stages_move_their_bars(demo: tuple[DemoResult, Stages]) -> None:
    result, stages = demo
    assert stages.shown.keys() == result.seconds.keys()
    for title, marks in stages.shown.items():
        assert marks, title
        assert all(0 <= done <= total for done, total in marks), title


def test_it_goes_on_where_it_was(demo: tuple[DemoResult, Stages]) -> None:
    result, _ = demo
    kept = [*(result.out / "data" / "videos").iterdir(), result.out / "backbones" / "visual.safetensors"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = run_demo(result.out, SMALL, RUNTIME, Stages())
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert again.scores["jmt"].mean == pytest.approx(result.scores["jmt"].mean, abs=1e-6)


def test_a_folder_of_something_else_is_refused(demo: tuple[DemoResult, Stages], tmp_path: Path) -> None:
    result, _ = demo
    other = SMALL.model_copy(update={"seed": 1})
    with pytest.raises(JMTError, match="other settings"):
        run_demo(result.out, other, RUNTIME, Stages())
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(JMTError, match="not empty"):
        run_demo(tmp_path, SMALL, RUNTIME, Stages())
