"""`synth --layout affwild2`, `prepare`, and what comes after: features and a tiny model from face crops."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jmt_fast import media
from jmt_fast.data import OpenRecording, labelled, read_affwild2, read_manifest
from jmt_fast.data.synthetic import synthesise_affwild2
from jmt_fast.data.synthetic.traces import write_script

PLAIN = ("--device", "cpu", "--precision", "fp32", "--no-compile")
SMALL = ("--set", "dim=48", "--set", "ff_dim=48", "--set", "visual_dim=32", "--stride", 16)
ARGUMENTS = {"videos": 6, "seconds": 5.0, "seed": 11, "size": 48, "fps": 12}
FRAMES = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wild") / "set"
    assert synthesise_affwild2(out, **ARGUMENTS) == 8  # type: ignore[arg-type]
    return out


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_the_tree_is_that_of_affwild2(made: Path) -> None:
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.suffix not in (".jpg",))
    annotations = "VA_Estimation_Challenge"
    trials = ["000", "001_left", "001_right", "002", "003", "004", "005_left", "005_right"]
    assert names == sorted(
        ["recipe.json", "videos", annotations, f"{annotations}/Train_Set", f"{annotations}/Validation_Set",
         "cropped_aligned"]
        + [f"videos/synthetic_{index:03d}.{'avi' if index % 3 == 2 else 'mp4'}" for index in range(6)]
        + [f"{annotations}/{'Validation' if t[:3] == '005' else 'Train'}_Set/synthetic_{t}.txt" for t in trials]
        + [f"cropped_aligned/synthetic_{trial}" for trial in trials]
    )  # fmt: skip
    assert (
        media.probe(made / "videos" / "synthetic_001.mp4").width
        == 2 * media.probe(made / "videos" / "synthetic_000.mp4").width
    )
    for video in (made / "videos").iterdir():
        info = media.probe(video)
        assert info.frames == FRAMES
        assert info.audio is not None


def test_rows_crops_and_frames_are_those_of_the_scripts(made: Path) -> None:
    gaps = unlabelled = 0
    for index, person, trial, off in ((0, 0, "000", 0), (1, 0, "001_left", 0), (1, 1, "001_right", 0), (2, 0, "002", 2),
                                      (3, 0, "003", -1)):  # fmt: skip
        script = write_script(FRAMES, 12, np.random.default_rng((11, index, person)))
        rows = read_affwild2(made / "VA_Estimation_Challenge" / "Train_Set" / f"synthetic_{trial}.txt")
        assert len(rows) == FRAMES + off
        known = min(len(rows), FRAMES)
        np.testing.assert_allclose(rows[:known], script.labels[:known], atol=6e-5)
        crops = made / "cropped_aligned" / f"synthetic_{trial}"
        assert {int(file.stem) - 1 for file in crops.iterdir()} == set(np.flatnonzero(script.face_gap == 0).tolist())
        gaps += int((script.face_gap > 0).sum())
        unlabelled += int((rows == -5).all(axis=1).sum())
        assert {Image.open(file).size for file in crops.iterdir()} == {(112, 112)}
        video = next((made / "videos").glob(f"synthetic_{index:03d}.*"))
        for number, _, frame in media.frames(video):  # the crop shows this person in this frame
            half = frame[:, 48 * person :][:, :48].astype(float)
            file = crops / f"{number + 1:05d}.jpg"
            if file.exists():
                crop = np.asarray(Image.open(file).resize((48, 48), Image.Resampling.BILINEAR), float)
                assert np.abs(crop - half).mean() < 14
    assert gaps
    assert unlabelled


def test_prepare_reports_and_writes_a_manifest(run: Callable, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists" / "manifest.parquet"
    result = run("prepare", "affwild2", made, "--out", out, "--json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    recordings = read_manifest(out)
    assert answer["layout"] == "affwild2"
    assert answer["manifest"] == str(out)
    assert answer["trials"].keys() == {each.name for each in recordings}
    assert not answer["failed"]
    differing = {name: each["differences"] for name, each in answer["trials"].items() if each["differences"]}
    assert differing == {
        "synthetic_002": ["62 annotation rows for 60 frames; the last 2 rows are not used"],
        "synthetic_003": ["59 annotation rows for 60 frames; the last 1 frames count as not annotated"],
    }
    folds = {each.name: each.fold for each in recordings}
    assert folds["synthetic_001_left"] == folds["synthetic_001_right"]
    assert folds["synthetic_005_left"] == folds["synthetic_005_right"]
    assert {row["fold"]: row["labelled"] for row in answer["folds"]} == {
        fold: sum(each["labelled"] for each in answer["trials"].values() if each["fold"] == fold) for fold in range(5)
    }
    for each in recordings:
        counts = answer["trials"][each.name]
        assert counts["frames"] == FRAMES
        assert counts["jpegs"] + counts["no_jpeg"] == FRAMES
        rows = read_affwild2(each.annotation)[:FRAMES]  # type: ignore[arg-type]
        assert counts["labelled"] == labelled(rows).sum()


def test_prepare_shows_tables(run: Callable, made: Path, tmp_path: Path) -> None:
    for _ in range(2):  # a manifest that is there is replaced
        result = run("prepare", "affwild2", made, "--out", tmp_path / "m.csv", "--folds", 3, "--seed", 7)
        assert result.code == 0, result.err
    assert "Counts that differ: 2 of 8 trials" in result.out
    assert re.search(r"synthetic_002 .*62 annotation rows", result.out)
    assert re.search(r"train +│ +6 │ +5 │", result.out)
    assert re.search(r"8 trials written to .*m\.csv", result.out.replace("\n", ""))
    assert {each.fold for each in read_manifest(tmp_path / "m.csv")} == {0, 1, 2}


def test_rows_that_cannot_be_parsed_are_listed_and_the_rest_is_prepared(
    run: Callable, tree: Path, tmp_path: Path
) -> None:
    bad = tree / "VA_Estimation_Challenge" / "Train_Set" / "synthetic_000.txt"
    lines = bad.read_text().splitlines()
    lines[4], lines[9] = "0.1 0.2", "0.3,much"
    bad.write_text("\n".join(lines) + "\n")
    (tree / "videos" / "synthetic_004.mp4").write_bytes(b"")
    result = run("prepare", "affwild2", tree, "--out", tmp_path / "m.csv", "--folds", 2, "--json")
    assert result.code == 3
    assert re.search(r"^error: .*synthetic_000\.txt:5: expected 2 columns .*; 1 more rows are wrong, lines 10$",
                     result.err, re.M)  # fmt: skip
    assert re.search(r"^error: .*synthetic_004\.mp4: the file is empty", result.err, re.M)
    assert "2 of 8 trials failed" in result.err
    assert "Traceback" not in result.err
    assert json.loads(result.out)["failed"].keys() == {"synthetic_000", "synthetic_004"}
    assert len(read_manifest(tmp_path / "m.csv")) == 6

    for file in tree.glob("VA_Estimation_Challenge/*/*.txt"):
        file.write_text("no header\n")
    result = run("prepare", "affwild2", tree, "--out", tmp_path / "none.csv")
    assert result.code == 1
    assert result.err.splitlines()[-1] == "error: none of the 8 trials can be used"
    assert not (tmp_path / "none.csv").exists()


def test_wrong_use(run: Callable, made: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        (("affwild2", made, "--out", tmp_path / "m.json"), 2, "csv or .parquet"),
        (("affwild2", made, "--out", tmp_path / "m.csv", "--folds", 1), 2, "folds"),
        (("affwild2", made), 2, "--out"),
        (("affwild2", tmp_path / "gone", "--out", tmp_path / "m.csv"), 1, "not a folder"),
        (("afew-va", made, "--out", tmp_path / "m.csv"), 1, "no clips of AFEW-VA"),
        (("manifest", tmp_path / "gone.csv", "--out", tmp_path / "m.csv"), 1, "gone.csv"),
        (("affwild2", made, "--out", made / "recipe.json" / "m.csv"), 1, "cannot be written"),
    ):
        result = run("prepare", *arguments)
        assert result.code == code, result.err
        assert message in " ".join(result.err.replace("│", " ").split())
    assert not (tmp_path / "m.csv").exists()


def test_ctrl_c_leaves_no_manifest(run: Callable, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed = []

    def interrupted(path: Path) -> media.MediaInfo:
        probed.append(path)
        if len(probed) == 3:
            raise KeyboardInterrupt
        return media.probe(path)

    monkeypatch.setattr("jmt_fast.data.ingest.probe", interrupted)
    result = run("prepare", "affwild2", made, "--out", tmp_path / "m.csv")
    assert result.code == 130
    assert "interrupted" in result.err
    assert not list(tmp_path.iterdir())


def test_from_synth_to_a_model_that_reads_face_crops(
    run: Callable, tree: Path, backbones: Path, tmp_path: Path
) -> None:
    manifest, store, out = tmp_path / "manifest.csv", tmp_path / "store", tmp_path / "run"
    assert run("prepare", "affwild2", tree, "--out", manifest).code == 0
    result = run("features", "--data", manifest, "--store", store, "--backbones", backbones, "--stride", 16, *PLAIN)
    assert result.code == 0, result.err
    assert len(list(store.glob("*/*.safetensors"))) == 8
    result = run("train", "--data", manifest, "--out", out, "--backbones", backbones, "--store", store, *SMALL,
                 "--epochs", 2, *PLAIN)  # fmt: skip
    assert result.code == 0, result.err
    assert re.search(r"^warning: synthetic_002: 62 annotation rows for 60 frames", result.err, re.M)
    result = run("evaluate", "--data", manifest, "--checkpoint", out, "--store", store, "--stride", 16, "--json",
                 *PLAIN)  # fmt: skip
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    assert scores["per_video"].keys() == {"synthetic_005_left", "synthetic_005_right"}
    result = run("train", "visual", "--data", manifest, "--out", tmp_path / "visual", "--backbones", backbones,
                 "--epochs", 1, "--lr", 0.01, *PLAIN)  # fmt: skip
    assert result.code == 0, result.err


def test_features_come_from_the_crops(run: Callable, tree: Path, backbones: Path, small_features, tmp_path: Path
                                      ) -> None:  # fmt: skip
    """A JPEG that changes changes the features of this person alone; a missing one is black and marked as no face."""
    from jmt_fast.features import Extractor
    from jmt_fast.models import load_backbones
    from jmt_fast.runtime import Runtime

    manifest = tmp_path / "manifest.csv"
    assert run("prepare", "affwild2", tree, "--out", manifest).code == 0
    recordings = {each.name: each for each in read_manifest(manifest)}
    extractor = Extractor(small_features, load_backbones(small_features, "random", 0), Runtime.choose("cpu", "fp32"))
    people = [recordings[f"synthetic_001_{side}"] for side in ("left", "right")]

    def extracted() -> list:
        return [extractor.extract(OpenRecording(each), 32) for each in people]

    before = extracted()
    for file in people[0].crops.iterdir():
        Image.new("RGB", (112, 112), (250, 0, 0)).save(file)
    shutil.rmtree(people[1].crops)
    people[1].crops.mkdir()
    after = extracted()
    assert not before[0].visual.equal(after[0].visual)
    assert before[0].audio.equal(after[0].audio)
    assert before[0].face.any()
    assert not after[1].face.any()
    assert np.allclose(after[1].visual[0], after[1].visual[-1], atol=1e-5)


def test_own_manifests_with_tables_of_times(run: Callable, made: Path, tmp_path: Path) -> None:
    """A video with a trace at 10 Hz, through `prepare manifest`."""
    trace = tmp_path / "trace.csv"
    trace.write_text("time,valence,arousal\n" + "".join(f"{i / 10},0.5,-0.5\n" for i in range(51)))
    rows = [f"{made}/videos/synthetic_{index:03d}.{'avi' if index == 2 else 'mp4'},trace.csv,train"
            for index in range(4)]  # fmt: skip
    (tmp_path / "own.csv").write_text("\n".join(["video,annotation,split", *rows]) + "\n")
    result = run("prepare", "manifest", tmp_path / "own.csv", "--out", tmp_path / "m.parquet", "--folds", 2, "--json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert [each["labelled"] for each in answer["trials"].values()] == [FRAMES] * 4
    assert [each["rows"] for each in answer["trials"].values()] == [51] * 4
    assert sorted(each.fold or 0 for each in read_manifest(tmp_path / "m.parquet")) == [0, 0, 1, 1]


def test_afew_va_from_pictures_to_a_model(run: Callable, backbones: Path, tmp_path: Path) -> None:
    root = tmp_path / "AFEW-VA"
    values = np.random.default_rng().integers(-10, 11, (6, 30, 2))
    for clip in range(6):
        folder = root / f"{clip + 1:03d}"
        folder.mkdir(parents=True)
        frames = {}
        for index, (valence, arousal) in enumerate(values[clip].tolist()):
            Image.new("RGB", (40, 30), (100 + 10 * valence,) * 3).save(folder / f"{index:05d}.png")
            frames[f"{index:05d}"] = {"valence": float(valence), "arousal": float(arousal), "landmarks": []}
        (folder / f"{folder.name}.json").write_text(json.dumps({"actor": f"actor {clip % 4}", "frames": frames}))
    manifest = tmp_path / "manifest.csv"
    result = run("prepare", "afew-va", root, "--out", manifest, "--folds", 4, "--json")
    assert result.code == 0, result.err
    recordings = read_manifest(manifest)
    assert recordings[0].fold == recordings[4].fold
    np.testing.assert_allclose(OpenRecording(recordings[2]).labels(), values[2] / 10, atol=1e-6)
    splits = [*["train"] * 4, *["validation"] * 2]  # the data set has none: the user draws a fold
    lines = manifest.read_text().splitlines()
    column = lines[0].split(",").index('"split"')
    for number, split in enumerate(splits, start=1):
        fields = lines[number].split(",")
        fields[column] = split
        lines[number] = ",".join(fields)
    manifest.write_text("\n".join(lines) + "\n")
    out = tmp_path / "run"
    result = run("train", "--data", manifest, "--out", out, "--backbones", backbones, *SMALL, "--epochs", 1, *PLAIN)
    assert result.code == 0, result.err
