"""`crossval`, `search`, `ablate` and `report run`, as a user calls them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLAIN = ("--device", "cpu", "--precision", "fp32", "--no-compile")
SMALL = ("--set", "dim=48", "--set", "ff_dim=48", "--set", "visual_dim=32", "--stride", 8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "features"


@pytest.fixture
def common(collection: Path, backbones: Path, store: Path) -> tuple[object, ...]:
    return ("--data", collection, "--backbones", backbones, "--store", store, *SMALL, *PLAIN)


def test_crossval_prints_and_writes_table_1_and_goes_on(run: Callable, common: tuple, tmp_path: Path) -> None:
    arguments = ("crossval", "--out", tmp_path / "cv", "--folds", 2, "--epochs", 2, "--batch", 4, *common)
    arguments = (*arguments, "--set", "label_lag=0.2")
    result = run(*arguments)
    assert result.code == 0, result.err
    for name in ("official", "fold-1", "fold-2"):
        assert name in result.out
    table = json.loads((tmp_path / "cv" / "table.json").read_text())
    assert [row["data"] for row in table["rows"]] == ["official", "fold-1", "fold-2"]
    for row in table["rows"]:
        assert row["mean"] == pytest.approx((row["valence"] + row["arousal"]) / 2)
    assert table["best"]["mean"] == max(table["rows"], key=lambda row: row["mean"])["data"]
    with (tmp_path / "cv" / "table.csv").open() as file:
        assert [row["data"] for row in csv.DictReader(file)] == ["official", "fold-1", "fold-2"]

    training = json.loads((tmp_path / "cv" / "fold-1" / "training.json").read_text())["training"]
    assert training["label_lag"] == 0.2  # as a search has found it, say
    weights = tmp_path / "cv" / "fold-1" / "last.pt"
    before = weights.stat().st_mtime_ns
    again = run(*arguments, "--json")  # nothing is trained twice
    assert weights.stat().st_mtime_ns == before
    assert [row["valence"] for row in json.loads(again.out)] == [row["valence"] for row in table["rows"]]
    other = run("crossval", "--out", tmp_path / "cv", "--folds", 2, "--epochs", 3, "--batch", 4, *common)
    assert other.code == 1 and re.search(r"^error: official: .*epochs.*2.*3", other.err, re.M), other.err


def test_folds_side_by_side_are_those_of_one_after_the_other(run: Callable, common: tuple, tmp_path: Path) -> None:
    arguments = ("--folds", 2, "--epochs", 1, "--batch", 4, *common, "--json")
    one = run("crossval", "--out", tmp_path / "one", *arguments)
    two = run("crossval", "--out", tmp_path / "two", "--jobs", 2, *arguments)
    assert one.code == two.code == 0, two.err
    assert [row["name"] for row in json.loads(two.out)] == ["official", "fold-1", "fold-2"]
    for left, right in zip(json.loads(one.out), json.loads(two.out), strict=True):
        assert left["mean"] == pytest.approx(right["mean"], abs=1e-4)  # sums in another number of threads


def test_folds_that_cannot_be(run: Callable, common: tuple, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "cv", *common)
    many = run("crossval", "--folds", 9, *out)
    assert many.code == 1 and re.search(r"^error: 4 labelled videos: folds=9 must lie .*fewer folds$", many.err, re.M)
    file = tmp_path / "folds.csv"
    file.write_text("name,fold\nnobody,1\n")
    unknown = run("crossval", "--folds", file, *out)
    assert unknown.code == 1 and "the collection has not, the first is 'nobody'" in unknown.err
    file.write_text("name,part\nnobody,1\n")
    assert "columns `name` and `fold`" in run("crossval", "--folds", file, *out).err
    assert run("crossval", "--folds", "some", *out).code == 2


def test_search_goes_on_and_keeps_the_best(run: Callable, common: tuple, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="pip install 'jmt-fast[protocols]'")
    base = ("search", "--out", tmp_path / "search", "--lr", "1e-3,1e-2", "--batch", "2,4", "--epochs", 2, *common)
    result = run(*base, "--trials", 0, "--json")
    assert result.code == 0, result.err
    grid = json.loads(result.out)
    points = [(each["settings"]["lr"], each["settings"]["batch"]) for each in grid]
    assert points == [(1e-3, 2), (1e-3, 4), (1e-2, 2), (1e-2, 4)]
    more = json.loads(run(*base, "--trials", 2, "--json").out)
    assert more[:4] == grid and len(more) == 6
    assert all(1e-3 <= each["settings"]["lr"] <= 1e-2 for each in more)
    training = json.loads((tmp_path / "search" / "training.json").read_text())
    best = max((each for each in more if each["mean"] is not None), key=lambda each: each["mean"])
    assert training["training"]["lr"] == best["settings"]["lr"]
    assert sum(training["validation_ccc"]) / 2 == pytest.approx(best["mean"])
    evaluated = run(
        "evaluate", *common[:2], "--checkpoint", tmp_path / "search", "--store", common[5], "--stride", 8, *PLAIN,
        "--json",
    )  # fmt: skip
    assert json.loads(evaluated.out)["mean"] == pytest.approx(best["mean"], abs=1e-5)
    other = run("search", "--out", tmp_path / "search", "--lr", "1e-3", "--epochs", 2, *common)
    assert other.code == 1 and "holds a search with space.batch=[2, 4], not [2, 4, 8], space.lr=" in other.err
    assert run("search", "--out", tmp_path / "x", "--lr", "fast", *common).code == 2


def test_search_knows_its_labels_and_features(run: Callable, collection: Path, backbones: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="pip install 'jmt-fast[protocols]'")
    data = shutil.copytree(collection, tmp_path / "data")
    arguments = (
        "search", "--out", tmp_path / "s", "--lr", "1e-3", "--batch", 4, "--trials", 0, "--epochs", 1, "--data", data,
        "--backbones", backbones, *SMALL, *PLAIN,
    )  # fmt: skip
    assert run(*arguments).code == 0
    assert run(*arguments).code == 0
    with (data / "manifest.csv").open() as file:
        held_out = next(row for row in csv.DictReader(file) if row["split"] == "validation")
    [features] = (tmp_path / "s" / "features").rglob(f"{held_out['name']}.safetensors")
    for changed, reason, place in (
        (data / held_out["annotation"], "labels", -10),
        (features, "features", -100),  # of the last clip, before a byte for each of 90 frames
    ):
        before = changed.read_bytes()
        damaged = bytearray(before)
        damaged[place] ^= 1
        changed.write_bytes(damaged)
        result = run(*arguments)
        assert result.code == 1
        line = rf"^error: .*s: holds a search with other {reason} in the validation split; repeat its .*--out$"
        assert re.search(line, result.err, re.M), result.err
        changed.write_bytes(before)
    assert run(*arguments).code == 0


def test_lags_are_part_of_the_search(run: Callable, common: tuple, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="pip install 'jmt-fast[protocols]'")
    result = run(
        "search", "--out", tmp_path / "s", "--lr", "1e-3", "--batch", 4, "--lag", "0,0.5", "--trials", 1, "--epochs", 1,
        *common, "--json",
    )  # fmt: skip
    lags = [each["settings"]["label_lag"] for each in json.loads(result.out)]
    assert lags[:2] == [0, 0.5] and 0 <= lags[2] <= 0.5


def test_ablation_compares_with_the_whole_model(run: Callable, common: tuple, tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="pip install 'jmt-fast[protocols]'")
    arguments = ("ablate", "--out", tmp_path / "ablation", "--seeds", 2, "--epochs", 1, "--batch", 4, *common)
    result = run(*arguments, "--only", "concat", "--only", "ridge", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found[0]["name"] == "jmt"
    assert {each["name"] for each in found} == {"jmt", "concat", "ridge"}
    assert found[0]["difference"] == 0 and found[0]["p"] is None
    concat = next(each for each in found if each["name"] == "concat")
    assert concat["difference"] == pytest.approx(concat["mean"] - found[0]["mean"])
    assert 0 <= concat["p"] <= 1
    runs = tmp_path / "ablation" / "runs.jsonl"
    lines = runs.read_text().splitlines()
    assert len(lines) == 6
    runs.write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # killed while it wrote the last line
    assert json.loads(run(*arguments, "--only", "concat", "--only", "ridge", "--json").out) == found
    assert len(runs.read_text().splitlines()) == 7  # the torn one and its repetition
    assert run(*arguments, "--only", "magic").code == 2


def test_report_of_a_run(run: Callable, common: tuple, tmp_path: Path) -> None:
    folder = tmp_path / "run <1>"
    trained = run("train", "--out", folder, "--epochs", 3, "--batch", 4, *common)
    assert trained.code == 0, trained.err
    result = run("report", "run", folder)
    assert result.code == 0, result.err
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "run &lt;1&gt;" in page and "<1>" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    ccc = float(re.search(r"mean (-?[\d.]+),? over", page).group(1))  # type: ignore[union-attr]
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ccc == pytest.approx(max(entry["mean"] for entry in last), abs=6e-4)
    assert "synthetic_003" in result.out
    empty = run("report", "run", tmp_path)
    assert empty.code == 1 and "give the folder of a training run" in empty.err


def test_tensorboard_logs(run: Callable, common: tuple, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run("train", "--out", tmp_path / "run", "--epochs", 2, "--batch", 4, "--tensorboard", *common)
    assert result.code == 0, result.err
    log = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in log.Scalars("ccc/mean")] == [1, 2]
    assert [event.value for event in log.Scalars("ccc/mean")] == pytest.approx([entry["mean"] for entry in metrics])


@pytest.mark.parametrize(("verb", "package"), [("search", "optuna"), ("ablate", "scipy")])
def test_a_missing_extra_is_said_before_any_work(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run(verb, "--data", tmp_path / "nowhere", "--out", tmp_path / "out")  # the data is looked at later
    assert result.code == 1
    assert result.err == f"error: {package} is not installed; pip install 'jmt-fast[protocols]'\n"
