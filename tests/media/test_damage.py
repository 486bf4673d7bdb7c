"""Files cut short, with flipped bits, with lost packets: what is given out is right, and the rest is missing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from jmt_fast.errors import MediaError
from jmt_fast.media import frames, probe

ROOT = Path(__file__).parents[2]
FRONT = (("movflags", "faststart"),)
FILMS = {
    "h264 mp4": {"options": FRONT, "codec_options": (("preset", "medium"),)},
    "h264 mp4, no B-frames": {"options": FRONT, "b_frames": 0},
    "h264 mkv": {"suffix": "mkv"},
    "h264 ts": {"suffix": "ts"},
    "hevc mp4": {"codec": "libx265", "options": FRONT},
    "hevc mkv": {"codec": "libx265", "suffix": "mkv"},
    "vp9 webm": {"codec": "libvpx-vp9", "suffix": "webm"},
    "vp8 webm": {"codec": "libvpx", "suffix": "webm"},
    "mpeg4 avi": {"codec": "mpeg4", "suffix": "avi", "b_frames": 0},
    "mpeg4 mp4": {"codec": "mpeg4", "options": FRONT},
    "mjpeg avi": {"codec": "mjpeg", "suffix": "avi", "pixel_format": "yuvj420p"},
}
FUZZED = ("h264 mp4", "hevc mkv", "vp9 webm", "mpeg4 avi")
FUZZES = 75  # files of each


@pytest.fixture(scope="module")
def whole(film, kit):
    """whole(case) -> (path, time -> frame)."""
    known: dict[str, tuple[Path, dict[float, np.ndarray]]] = {}

    def make(case: str) -> tuple[Path, dict[float, np.ndarray]]:
        if case not in known:
            path = film(times=kit.steps(30), keyframes=10, **FILMS[case])
            known[case] = path, {seconds: frame for _, seconds, frame in frames(path)}
            assert len(known[case][1]) == 30
        return known[case]

    return make


def one_line(message: str, path: Path) -> None:
    assert message.startswith(f"{path}: ") and "\n" not in message and "; " in message, message


def right(path: Path, truth: dict[float, np.ndarray]) -> int:
    """How many frames come out, each to the bit that of the undamaged file at its time; 0 for an error."""
    try:
        info = probe(path)
        seen = list(frames(path))
    except MediaError as error:
        one_line(str(error), path)
        return 0
    indices = [index for index, _, _ in seen]
    assert indices == sorted(set(indices)) and all(0 <= index < info.frames for index in indices)
    for index, seconds, frame in seen:
        assert seconds == info.timestamps[index]
        np.testing.assert_array_equal(frame, truth[seconds], err_msg=f"frame {index}")
    return len(seen)


@pytest.mark.parametrize("case", FILMS, ids=str)
def test_cut_at_every_twentieth(whole, tmp_path, case):
    path, truth = whole(case)
    data = path.read_bytes()
    counts = []
    for part in range(1, 20):
        cut = tmp_path / f"cut-{part}.{path.suffix[1:]}"
        cut.write_bytes(data[: len(data) * part // 20])
        counts.append(right(cut, truth))
    assert counts == sorted(counts), "more of a file gives fewer frames"
    assert counts[13] > 3 and counts[18] > 17, counts


@pytest.mark.parametrize("case", [case for case in FILMS if "ts" not in case], ids=str)
def test_one_packet_lost(whole, kit, case):
    """Zeros in its place. Frames that could refer to it are missing, up to the next keyframe; the others are intact."""
    path, truth = whole(case)
    for lost in (0, 3, 4, 10, 15, 29):
        count = right(kit.damaged(path, "video", [lost]), truth)
        assert 17 <= count < 30 or (count == lost == 0), (lost, count)  # some need the first packet's headers


@pytest.mark.parametrize("case", [case for case in FILMS if "ts" not in case], ids=str)
def test_a_packet_half_lost(whole, kit, case):
    """FFmpeg conceals what is missing, marked or not. The groups of pictures before and behind it are intact."""
    path, truth = whole(case)
    cut = kit.damaged(path, "video", [13], kept=0.5)
    seen = {index: (seconds, frame) for index, seconds, frame in frames(cut) if not 8 <= index < 21}
    assert len(seen) >= 15
    for seconds, frame in seen.values():
        np.testing.assert_array_equal(frame, truth[seconds])


@pytest.mark.parametrize("case", ["h264 mp4", "hevc mp4"], ids=str)
def test_damage_is_noticed_where_frames_are_left_out(whole, kit, case):
    path, truth = whole(case)
    given = 0
    for number in range(0, 30, 3):
        for _, seconds, frame in frames(kit.damaged(path, "video", [number]), step=4):
            np.testing.assert_array_equal(frame, truth[seconds], err_msg=f"{seconds} s without packet {number}")
            given += 1
    assert given > 40


@pytest.mark.parametrize("case", FUZZED, ids=str)
def test_flipped_bits(whole, tmp_path, case):
    """Anywhere in the file, headers included, so that times and sizes may be others. What is given out must be the very
    frame that FFmpeg decodes for that time and does not mark, once, in order. Neither a crash nor a hang."""
    path, _ = whole(case)
    data = path.read_bytes()
    chance = random.Random(f"flipped bits of {case}")
    paths = []
    for number in range(FUZZES):
        flipped = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            place = chance.randrange(min(len(data), 600)) if chance.random() < 0.2 else chance.randrange(len(data))
            flipped[place] ^= 1 << chance.randrange(8)
        paths.append(tmp_path / f"flipped-{number}.{path.suffix[1:]}")
        paths[-1].write_bytes(flipped)
    given = 0
    for flipped_path, result in zip(paths, in_a_process(paths, seconds=120), strict=True):
        if "error" in result:
            one_line(result["error"], flipped_path)
            continue
        consistent(result, exact="vp9" in case or "mpeg4" in case)
        given += len(result["ours"])
    assert given > 10 * FUZZES, "most of most files can be read"


def consistent(result: dict, exact: bool) -> None:
    """`exact`: the pixels, too. FFmpeg's HEVC decoder fills what it cannot read from memory that differs from run to
    run, and its H.264 decoder may give other pixels with threads where it notices no damage."""
    indices = [index for index, *_ in result["ours"]]
    assert indices == sorted(set(indices)) and all(0 <= index < result["frames"] for index in indices)
    assert np.isfinite(result["times"]).all() and result["times"] == sorted(result["times"]) and result["sound"]
    shown: dict[float, set[int]] = {}
    for seconds, checksum in result["theirs"]:
        shown.setdefault(round(seconds, 6), set()).add(checksum)
    for index, seconds, checksum, shape in result["ours"]:
        assert seconds == result["times"][index] and shape == result["size"]
        same_time = shown.get(round(seconds, 6), ())
        assert not result["timed"] or (checksum in same_time if exact else same_time), (index, seconds)


def in_a_process(paths: Iterable[Path], seconds: float) -> list[dict]:
    """What worker.py says of each file."""
    names = "".join(f"{path}\n" for path in paths)
    script = str(Path(__file__).with_name("worker.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        run = subprocess.run(
            [sys.executable, script], input=names, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"hangs at {_last(error.stdout)}")
    assert run.returncode == 0, f"ends with {run.returncode} at {_last(run.stdout)}\n{run.stderr[-2000:]}"
    return [json.loads(line) for line in run.stdout.splitlines() if not line.startswith("START")]


def _last(output: bytes | str | None) -> str:
    text = output.decode() if isinstance(output, bytes) else output or ""
    return next((line for line in reversed(text.splitlines()) if line.startswith("START")), "the start")
