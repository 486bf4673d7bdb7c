"""Synthetic collections: real files, aligned, reproducible, resumable, and with the ceilings that are documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast import media
from jmt_fast.data import OpenRecording, Recording, affwild2, read_affwild2, read_manifest
from jmt_fast.data.synthetic import Recipe, synthesise
from jmt_fast.data.synthetic.ceilings import ceilings
from jmt_fast.data.synthetic.faces import film
from jmt_fast.data.synthetic.traces import FACE_GAPS, GAP_SHARE, write_script
from jmt_fast.data.synthetic.voice import SAMPLE_RATE, speak
from jmt_fast.errors import JMTError
from jmt_fast.training import ccc

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs" / "synthetic.md"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Recording]]:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    return out, synthesise(out, 5, 4.0, seed=3, size=64)


def test_the_collection_reads_as_a_manifest_and_as_affwild2(collection: tuple[Path, list[Recording]]) -> None:
    out, recordings = collection
    assert read_manifest(out / "manifest.csv") == recordings
    layout = {each.name: (each.video, each.annotation, each.split) for each in affwild2(out)}
    assert layout == {each.name: (each.video, each.annotation, each.split) for each in recordings}
    assert [each.split for each in recordings] == ["train", "train", "train", "validation", "test"]


def test_a_video_has_the_frames_sound_and_labels_of_its_script(collection: tuple[Path, list[Recording]]) -> None:
    _, recordings = collection
    for index, recording in enumerate(recordings):
        rng = np.random.default_rng((3, index))
        script = write_script(120, 30, rng)
        samples, mouth = speak(script, rng)
        opened = OpenRecording(recording)
        assert (opened.info.codec, opened.info.audio.codec, opened.info.width) == ("h264", "aac", 64)
        assert np.allclose(opened.timestamps, np.arange(120) / 30, atol=1e-4)
        assert np.allclose(read_affwild2(recording.annotation), script.labels, atol=6e-5)
        for (_, frame), drawn in zip(opened.frames(range(120)), film(script, mouth, 64, rng), strict=True):
            assert np.abs(frame.astype(float) - drawn).mean() < 12  # H.264 in 4:2:0
        start, heard = media.audio(recording.video)
        assert abs(_lag(heard, samples) / SAMPLE_RATE + start) < 0.002


def _lag(heard: np.ndarray, played: np.ndarray) -> int:
    """Samples by which `heard` lies behind `played`, by cross-correlation."""
    size = 2 ** int(np.ceil(np.log2(len(heard) + len(played))))
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size)), size)
    peak = int(product.argmax())
    return peak if peak < size // 2 else peak - size


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    collection: tuple[Path, list[Recording]], tmp_path: Path
) -> None:
    _, recordings = collection
    again = synthesise(tmp_path / "again", 5, 4.0, seed=3, size=64)
    other = synthesise(tmp_path / "other", 3, 4.0, seed=4, size=64)
    first = [each.video.read_bytes() for each in recordings]
    assert [each.video.read_bytes() for each in again] == first
    assert all(each.video.read_bytes() not in first for each in other)


def test_an_interrupted_call_goes_on_where_it_was(collection: tuple[Path, list[Recording]], tmp_path: Path) -> None:
    _, recordings = collection
    out = tmp_path / "set"

    class Stop(Exception):
        pass

    def interrupt(done: int, total: int, note: str) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        synthesise(out, 10, 4.0, seed=3, size=64, workers=1, progress=interrupt)
    finished = {path.name: path.stat().st_mtime_ns for path in (out / "videos").glob("*.mp4")}
    assert 2 <= len(finished) < 10  # a pool of one process has up to three videos under way
    assert not list((out / "videos").glob("*.part"))
    synthesise(out, 10, 4.0, seed=3, size=64)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "videos").glob("*.mp4")}
    assert len(after) == 10
    assert finished.items() <= after.items()
    for each in recordings:
        assert (out / "videos" / each.video.name).read_bytes() == each.video.read_bytes()


def test_a_folder_of_another_collection_is_refused(collection: tuple[Path, list[Recording]]) -> None:
    out, _ = collection
    with pytest.raises(JMTError, match="another synthetic collection"):
        synthesise(out, 5, 4.0, seed=4, size=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": 0}, "videos=0"),
        ({"seconds": 0.1}, "seconds=0.1"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": float("inf")}, "seconds=inf"),
        ({"size": 65}, "odd"),
        ({"size": 8}, "size=8"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, changes: dict[str, float], message: str) -> None:
    arguments = {"videos": 1, "seconds": 2.0, "size": 64, **changes}
    with pytest.raises(JMTError, match=message):
        synthesise(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JMTError, match="cannot be written"):
        synthesise(tmp_path / "file", 1, 2.0, size=64)


_LIMITED = """
import resource, sys
from jmt_fast.data.synthetic import synthesise
from jmt_fast.errors import JMTError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
if __name__ == "__main__":
    try:
        synthesise(sys.argv[2], 1, 4.0, seed=3, size=64)
    except JMTError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("limit", [50, 20_000])  # bytes: the recipe, a video
def test_a_write_that_fails_is_one_line_and_leaves_no_half_file(tmp_path: Path, limit: int) -> None:
    script, out = tmp_path / "limited.py", tmp_path / "set"
    script.write_text(_LIMITED)
    command = [sys.executable, str(script), str(limit), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert done.returncode == 1
    assert re.fullmatch(r".*set: cannot be written: File too large; make room .*", done.stderr.strip())
    assert not list((out / "videos").iterdir())
    assert synthesise(out, 1, 4.0, seed=3, size=64)[0].video.exists()


@pytest.mark.parametrize("videos", [1, 2, 3, 7, 30])
def test_splits_are_about_60_20_20(videos: int) -> None:
    splits = [Recipe(videos, 1.0).split(index) for index in range(videos)]
    assert splits == sorted(splits, key=["train", "validation", "test"].index)
    if videos >= 3:
        assert splits.count("validation") == splits.count("test") == max(1, round(0.2 * videos))


def test_traces_and_gaps_are_as_documented() -> None:
    scripts = [write_script(1800, 30, np.random.default_rng()) for _ in range(100)]
    valence, arousal = (np.stack([getattr(each, name) for each in scripts]) for name in ("valence", "arousal"))
    assert abs(valence).max() < 1
    assert valence.std() == pytest.approx(0.482, abs=0.03)  # of tanh(0.62 g), by quadrature
    assert abs(np.corrcoef(valence.ravel(), arousal.ravel())[0, 1]) < 0.12
    lagged = np.corrcoef(valence[:, 66:].ravel(), valence[:, :-66].ravel())[0, 1]
    assert lagged == pytest.approx(0.48, abs=0.08)
    shares = [np.mean([getattr(each, name) for each in scripts]) for name in ("silent", "unlabelled")]
    faceless = np.mean([each.face_gap > 0 for each in scripts])
    assert [faceless, *shares] == pytest.approx([GAP_SHARE["face"], GAP_SHARE["voice"], GAP_SHARE["label"]], abs=0.025)


def test_black_gaps_are_black_and_silent_ones_quiet() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        script = write_script(300, 30, rng)
        if (script.face_gap == 1 + FACE_GAPS.index("black")).any() and script.silent.any():
            break
    samples, mouth = speak(script, rng)
    for number, picture in enumerate(film(script, mouth, 64, rng)):
        assert (picture.max() == 0) == (script.face_gap[number] == 1 + FACE_GAPS.index("black"))
    silent = np.repeat(np.convolve(script.silent, np.ones(7), "same") == 7, SAMPLE_RATE // 30)
    assert np.abs(samples[: len(silent)][silent]).mean() < 0.1 * np.abs(samples[: len(silent)][~silent]).mean()


def test_light_never_overflows() -> None:
    """A bright wall under strong light saturates; it must not wrap round to dark."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        script = write_script(2, 30, rng)
        script.face_gap[:] = 0
        picture = next(film(script, np.zeros(2), 64, rng)).astype(int)
        steps = np.abs(np.diff(picture, axis=1))
        assert np.mean(steps > 150) < 0.03


def test_the_documented_ceilings_are_those_of_the_generator() -> None:
    rows = re.findall(r"^\| (?:the )?(face|voice|both)[ a-z]* \| ([\d.]+) \| ([\d.]+) \|", DOCS.read_text(), re.M)
    assert len(rows) == 3
    seeds = np.random.default_rng().integers(1000, size=4).tolist()
    print("seeds", seeds)
    found = [ceilings(seed=seed) for seed in seeds]  # one seed's may be off by 0.03, of a hundred once
    for name, valence, arousal in rows:
        mean = np.mean([each[name] for each in found], axis=0)
        assert mean == pytest.approx([float(valence), float(arousal)], abs=0.03)


def _pictures_and_sound(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey pictures (40, 32 * 32) and log energies of sound bands (40, 32), one a half second, and labels (40, 2)."""
    rng = np.random.default_rng(seed)
    script = write_script(40, 2, rng)
    samples, mouth = speak(script, rng)
    pictures = np.stack([picture.astype(float).mean(2).ravel() for picture in film(script, mouth, 32, rng)])
    pictures = (pictures - pictures.mean(1, keepdims=True)) / (pictures.std(1, keepdims=True) + 5)
    power = np.abs(np.fft.rfft(samples.reshape(40, -1), axis=1)) ** 2
    edges = (np.geomspace(60, 12_000, 33) / 2).astype(int)  # a bin is 2 Hz
    bands = np.log10(np.stack([power[:, low : high + 1].mean(1) for low, high in pairwise(edges)], axis=1) + 1e-6)
    return pictures, bands, np.stack([script.valence, script.arousal], axis=1)


def test_linear_readers_find_valence_in_new_faces_and_arousal_in_new_voices_and_not_the_other_way_round() -> None:
    train, test = ([_pictures_and_sound(seed) for seed in seeds] for seeds in (range(40), range(40, 60)))
    target, truth = (np.concatenate([labels for _, _, labels in part]) for part in (train, test))
    scores = []
    for kind, penalty in ((0, 300.0), (1, 10.0)):
        seen, new = (np.concatenate([each[kind] for each in part]) for part in (train, test))
        centred = seen - seen.mean(0)
        weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(seen.shape[1]), centred.T @ target)
        scores.append(ccc(torch.from_numpy((new - seen.mean(0)) @ weights), torch.from_numpy(truth)).tolist())
    (face_valence, face_arousal), (voice_valence, voice_arousal) = scores
    assert face_valence > 0.45
    assert voice_arousal > 0.75
    assert max(abs(face_arousal), abs(voice_valence)) < 0.25
