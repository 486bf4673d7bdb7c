"""`synth`, `features`, `train`, `evaluate`: from a collection to a checkpoint, interrupted, resumed, on bad input."""

from __future__ import annotations

import csv
import json
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from jmt_fast.data import load, read_affwild2

PLAIN = ("--device", "cpu", "--precision", "fp32", "--no-compile")
SMALL = ("--set", "dim=48", "--set", "ff_dim=48", "--set", "visual_dim=32", "--stride", 8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def train(run: Callable, backbones: Path, store: Path) -> Callable:
    def call(data: Path, out: Path, *more: object) -> object:
        return run(
            "train", "--data", data, "--out", out, "--backbones", backbones, "--store", store, *SMALL, *PLAIN, *more
        )

    return call


def test_a_collection_becomes_a_checkpoint(
    train: Callable, run: Callable, collection: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(collection / "manifest.csv", out, "--epochs", 3, "--lr", 5e-3)
    assert result.code == 0, result.err
    assert re.search(r"best epoch \d: validation CCC valence -?0\.\d+, arousal", result.out)
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    best = max(epochs, key=lambda epoch: epoch["mean"])

    # evaluate on the same split and precision finds the same figure
    result = run("evaluate", "--data", collection / "manifest.csv", "--checkpoint", out, "--store", store,
                 "--stride", 8, "--json", *PLAIN)  # fmt: skip
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    assert scores["mean"] == pytest.approx(best["mean"], abs=1e-6)
    validation = [each for each in load(collection / "manifest.csv") if each.split == "validation"]
    assert scores["frames"] == sum(int((read_affwild2(each.annotation) != -5).all(1).sum()) for each in validation)
    assert scores["per_video"].keys() == {each.name for each in validation}
    shown = run(
        "evaluate",
        "--data",
        collection,
        "--checkpoint",
        out,
        "--store",
        store,
        "--split",
        "test",
        "--stride",
        8,
        *PLAIN,
    )
    assert shown.code == 0
    assert "pooled" in shown.out

    video = load(collection)[0].video
    assert run("predict", video, "--checkpoint", out, "--out", tmp_path / "traces", *PLAIN).code == 0


def test_an_interrupted_run_resumes_to_the_same_weights(
    train: Callable, start: Callable, collection: Path, backbones: Path, store: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--epochs", 40, "--seed", 5, "--set", "patience=40")
    assert train(collection, whole, *more).code == 0
    process = start("train", "--data", collection, "--out", parts, "--backbones", backbones, "--store", store, *SMALL,
                    *PLAIN, *more)  # fmt: skip
    metrics = parts / "metrics.jsonl"
    code, err = interrupted(process, lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2)
    assert code == 130, err
    assert 2 <= len(metrics.read_text().splitlines()) < 40
    assert train(collection, parts, *more, "--resume").code == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(first[name].equal(second[name]) for name in first)
    other = train(collection, parts, "--epochs", 40, "--seed", 6, "--set", "patience=40", "--resume")
    assert other.code == 1
    assert re.fullmatch(r"error: .*last\.pt.*seed=5, not 6.*\n", other.err)


def test_the_backbones_are_trained_before_it(
    run: Callable, collection: Path, backbones: Path, store: Path, tmp_path: Path
) -> None:
    visual, audio = tmp_path / "visual", tmp_path / "audio"
    result = run("train", "visual", "--data", collection, "--out", visual, "--backbones", backbones, "--epochs", 2,
                 "--lr", 0.01, *PLAIN)  # fmt: skip
    assert result.code == 0, result.err
    before, after = (load_file(folder / "visual.safetensors") for folder in (backbones, visual))
    assert any(not before[name].equal(after[name]) for name in before)
    result = run("train", "audio", "--data", collection, "--out", audio, "--backbones", visual, "--epochs", 2,
                 "--store", store, *PLAIN)  # fmt: skip
    assert result.code == 0, result.err
    before, after = (load_file(folder / "audio.safetensors") for folder in (visual, audio))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("gru.") for name in changed)


def test_fusion_and_backbones_are_trained_together(
    run: Callable, collection: Path, backbones: Path, tmp_path: Path
) -> None:
    def train(out: Path, *more: object) -> None:
        result = run(
            "train", "--unfreeze", "--data", collection, "--out", out, "--epochs", 1, "--stride", 8, *PLAIN, *more
        )
        assert result.code == 0, result.err
        assert re.search(r"best epoch 1: validation CCC valence -?0\.\d+, arousal", result.out)

    def changed(before: Path, after: Path, name: str) -> dict[str, float]:
        """By how much each weight did, at most."""
        one, two = (load_file(folder / name) for folder in (before, after))
        return {key: float((one[key].double() - two[key].double()).abs().max()) for key in one}

    out, second = tmp_path / "run", tmp_path / "second"
    train(out, "--backbones", backbones, *SMALL[:-2], "--set", "length=4", "--lr", 0.01, "--backbone-lr", 0.01)
    for name in ("visual.safetensors", "audio.safetensors"):
        trained = {key for key in changed(backbones, out, name) if key.endswith("weight")}
        assert trained and all(changed(backbones, out, name)[key] > 0 for key in trained)
    facts = json.loads((out / "training.json").read_text())
    assert facts["training"]["visual_lr"] == facts["training"]["audio_lr"] == 0.01
    result = run("evaluate", "--data", collection, "--checkpoint", out, "--stride", 8, "--json", *PLAIN)
    assert result.code == 0, result.err
    assert json.loads(result.out)["mean"] == pytest.approx(np.mean(facts["validation_ccc"]), abs=5e-3)
    assert run("report", "run", out).code == 0
    video = load(collection)[0].video
    assert run("predict", video, "--checkpoint", out, "--out", tmp_path / "traces", *PLAIN).code == 0

    train(
        second, "--backbones", out, "--lr", 1e-6, "--backbone-lr", 0.01, "--set", "freeze=visual"
    )  # a whole checkpoint
    assert not any(changed(out, second, "visual.safetensors").values())
    assert max(changed(out, second, "audio.safetensors").values()) > 1e-5
    assert 0 < max(changed(out, second, "model.safetensors").values()) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("visual", "--unfreeze"), "it is for the fusion"),
        (("--unfreeze", "--store", "x"), "no features are kept"),
        (("--backbone-lr", 0.1), "it needs --unfreeze"),
        (("--unfreeze", "--set", "visual_lr=0"), "visual_lr: Input should be greater than 0"),
    ],
)
def test_what_does_not_go_with_unfreeze(
    run: Callable, collection: Path, backbones: Path, tmp_path: Path, arguments: tuple, message: str
) -> None:
    result = run("train", *arguments, "--data", collection, "--out", tmp_path, "--backbones", backbones, *PLAIN)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", "").split())


def rewrite(collection: Path, folder: Path, change: Callable[[list[dict[str, str]]], None]) -> Path:
    """A copy of the manifest with absolute paths and a change."""
    with (collection / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for column in ("video", "annotation"):
            row[column] = str(collection / row[column])
    change(rows)
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def annotated(row: dict[str, str], folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = change(Path(row["annotation"]).read_text().splitlines())
    path = folder / "changed.txt"
    path.write_text("\n".join(lines) + "\n")
    row["annotation"] = str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:4], "nan,0.1", *lines[5:]], r"changed\.txt:5"),
        (lambda lines: [*lines[:4], "word,0.1", *lines[5:]], r"changed\.txt:5"),
        (lambda lines: [*lines[:4], "0.5,1.5", *lines[5:]], r"changed\.txt:5"),
        (lambda lines: [*lines[:4], "0.5", *lines[5:]], r"changed\.txt:5"),
        (lambda lines: [], r"changed\.txt"),
    ],
)
def test_wrong_annotations_name_file_and_line(
    train: Callable, collection: Path, tmp_path: Path, change: Callable, message: str
) -> None:
    manifest = rewrite(collection, tmp_path, lambda rows: annotated(rows[0], tmp_path, change))
    result = train(manifest, tmp_path / "run", "--epochs", 1)
    assert result.code == 1
    assert re.search(rf"^error: .*{message}", result.err, re.M)
    assert "Traceback" not in result.err


@pytest.mark.parametrize("change", [lambda lines: lines[:-3], lambda lines: [*lines, "0.1,0.1", "0.2,0.2"]])
def test_too_few_or_too_many_rows_are_a_warning(
    train: Callable, collection: Path, tmp_path: Path, change: Callable
) -> None:
    manifest = rewrite(collection, tmp_path, lambda rows: annotated(rows[0], tmp_path, change))
    result = train(manifest, tmp_path / "run", "--epochs", 1)
    assert result.code == 0, result.err
    assert re.search(r"^warning: .*synthetic_000.*\b(87|92)\b.*\b90\b", result.err, re.M)


def test_bad_manifests(train: Callable, collection: Path, tmp_path: Path) -> None:
    def column(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row["split"]

    def file(rows: list[dict[str, str]]) -> None:
        rows[1]["video"] = "nowhere.mp4"

    for change, message in ((column, "split"), (file, "nowhere.mp4")):
        result = train(rewrite(collection, tmp_path, change), tmp_path / "run")
        assert result.code == 1
        assert re.fullmatch(rf"error: .*{message}.*\n", result.err)
    result = train(tmp_path / "none.csv", tmp_path / "run")
    assert result.code == 1
    assert re.fullmatch(r"error: .*none\.csv.*\n", result.err)


def test_a_bad_video_in_a_collection_is_listed(train: Callable, collection: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")

    def change(rows: list[dict[str, str]]) -> None:
        rows[0]["video"] = str(broken)

    result = train(rewrite(collection, tmp_path, change), tmp_path / "run", "--epochs", 1)
    assert result.code == 3
    assert sum("broken.mp4" in line for line in result.err.splitlines()) == 1
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_parquet_manifest_and_features_alone(
    run: Callable, collection: Path, backbones: Path, tmp_path: Path
) -> None:
    rows = [
        {"video": str(each.video), "annotation": str(each.annotation), "split": each.split, "name": each.name}
        for each in load(collection)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    result = run(
        "features",
        "--data",
        tmp_path / "manifest.parquet",
        "--store",
        tmp_path / "store",
        "--backbones",
        backbones,
        "--stride",
        16,
        *PLAIN,
    )
    assert result.code == 0, result.err
    assert len(list((tmp_path / "store").glob("*/*.safetensors"))) == 5


def test_pretrained_weights_that_cannot_be_had_say_which_file_to_fetch(
    run: Callable, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    result = run("features", "--data", collection, "--store", tmp_path / "store", *PLAIN)
    assert result.code == 1
    last = result.err.splitlines()[-1]  # torch announces the download before
    assert re.fullmatch(r"error: .*fetch https://\S+\.pth.* put it at .*checkpoints/\S+\.pth.*", last)


def interrupted(process, ready: Callable[[], bool]) -> tuple[int, str]:  # type: ignore[no-untyped-def]
    """Ctrl-C as soon as `ready`; exit code and stderr."""
    deadline = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_keeps_what_was_done(start: Callable, run: Callable, backbones: Path, tmp_path: Path) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    arguments = ("synth", "--out", data, "--videos", 14, "--seconds", 12, "--size", 64)
    code, err = interrupted(start(*arguments), lambda: len(list(data.glob("videos/*.mp4"))) >= 2)
    assert code == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert 2 <= len(list(data.glob("videos/*.mp4"))) < 14
    assert run(*arguments).code == 0
    assert len(list(data.glob("videos/*.mp4"))) == 14

    arguments = ("features", "--data", data, "--store", store, "--backbones", backbones, "--stride", 1, *PLAIN)
    code, err = interrupted(start(*arguments), lambda: len(list(store.glob("*/*.safetensors"))) >= 2)
    assert code == 130, err
    assert "Traceback" not in err
    done = {path: path.stat().st_mtime_ns for path in store.glob("*/*.safetensors")}
    assert 2 <= len(done) < 14
    assert not list(store.glob("*/*.part"))
    assert run(*arguments).code == 0
    after = {path: path.stat().st_mtime_ns for path in store.glob("*/*.safetensors")}
    assert len(after) == 14
    assert done.items() <= after.items()


def test_a_full_disk_keeps_the_features_that_were_done(
    start: Callable, collection: Path, backbones: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk; a long video's features do not fit."""
    store = tmp_path / "store"
    shutil.copytree(collection, tmp_path / "set")
    sizes = [path.stat().st_size for path in (tmp_path / "set" / "videos").iterdir()]
    assert max(sizes) > 0
    process = start(
        "features", "--data", tmp_path / "set", "--store", store, "--backbones", backbones, "--stride", 1, *PLAIN,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "cannot be written" in line
    assert "Traceback" not in err
    assert not [path for path in store.glob("*/*") if path.suffix == ".part"]


def test_synth_is_announced_and_reproducible(run: Callable, tmp_path: Path) -> None:
    arguments = ("--videos", 3, "--seconds", 2, "--seed", 4, "--size", 48, "--fps", 15)
    for name in ("a", "b"):
        result = run("synth", "--out", tmp_path / name, *arguments)
        assert result.code == 0
        assert "3 synthetic videos" in result.out
    labels = [np.stack([read_affwild2(each.annotation) for each in load(tmp_path / name)]) for name in ("a", "b")]
    assert np.array_equal(*labels)
    refused = run("synth", "--out", tmp_path / "a", "--videos", 3, "--seconds", 2, "--seed", 5)
    assert refused.code == 1
    assert "another" in refused.err
