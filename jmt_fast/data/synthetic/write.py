"""A synthetic collection on disk: MP4 files, annotations in Aff-Wild2's layout, and a manifest."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from jmt_fast.data.layouts import CHALLENGE, SPLIT_FOLDERS
from jmt_fast.data.manifest import Recording, write_manifest
from jmt_fast.data.synthetic.faces import film
from jmt_fast.data.synthetic.traces import write_script
from jmt_fast.data.synthetic.voice import SAMPLE_RATE, speak
from jmt_fast.errors import JMTError

Progress = Callable[[int, int, str], None]
Render = Callable[[Path, "Recipe", int], None]
FOLDERS = {split: folder for folder, split in SPLIT_FOLDERS.items()}
FOLDS = 5
GENERATOR = 2  # raise it with any change of what a recipe gives: old and new videos must not mix in one folder


@dataclass(frozen=True)
class Recipe:
    """All that decides a collection: the same recipe gives the same frames, samples and labels."""

    videos: int
    seconds: float
    seed: int = 0
    size: int = 160
    fps: int = 30
    layout: str = "plain"

    def check(self) -> None:
        """Raises JMTError for what cannot be rendered or encoded."""
        for name, least in (("videos", 1), ("seconds", 1), ("seed", 0), ("size", 32), ("fps", 1)):
            if not getattr(self, name) >= least:
                raise JMTError(f"synthetic data: {name}={getattr(self, name)} is too small; give at least {least}")
        if math.isinf(self.seconds):
            raise JMTError(f"synthetic data: seconds={self.seconds} is no length; give a finite number")
        if self.size % 2:
            raise JMTError(f"synthetic data: size={self.size} is odd, which 4:2:0 cannot hold; give an even number")

    def split(self, index: int) -> str:
        """About 60/20/20 in the order of the videos; with three or more, each split has one at least."""
        held_out = max(1, round(0.2 * self.videos)) if self.videos >= 3 else 0
        if index >= self.videos - held_out:
            return "test"
        return "validation" if index >= self.videos - 2 * held_out else "train"


def synthesise(
    out: str | Path,
    videos: int,
    seconds: float,
    seed: int = 0,
    *,
    size: int = 160,
    fps: int = 30,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Recording]:
    """Render `videos` talking faces of `seconds` each, every one a new face and a new voice.

    Leaves `out/videos/<name>.mp4` (H.264 at `size` x `size`, AAC mono at 44.1 kHz),
    `out/VA_Estimation_Challenge/<split>/<name>.txt` and `out/manifest.csv`. A video is there whole or not at all; one
    that is there is kept, so that an interrupted call goes on where it was. `workers`: processes, by default one a
    core. As always with processes, a script that calls this needs its `if __name__ == "__main__"`.
    Raises JMTError for arguments that make no video, a folder of another collection or that cannot be written, and a
    process that was killed.
    """
    recipe = Recipe(videos, float(seconds), seed, size, fps)
    out = Path(out)
    recordings = [_recording(out, recipe, index) for index in range(videos)]
    folders = [Path("videos"), *(Path(CHALLENGE, folder) for folder in FOLDERS.values())]
    produce(out, recipe, folders, [each.video for each in recordings], render, workers, progress)
    write_manifest(recordings, out / "manifest.csv")
    return recordings


def produce(
    out: Path,
    recipe: Recipe,
    folders: Sequence[Path],
    videos: Sequence[Path],
    render: Render,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Make the `folders` below `out` and let `render(out, recipe, index)` make each of the `videos` that is not there.

    Raises JMTError as `synthesise` does.
    """
    recipe.check()
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise JMTError(f"synthetic data: workers={workers} is too small; give at least 1")
    try:
        _claim(out, recipe, folders)
        _render_missing(out, recipe, videos, render, workers, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "make room or pass another folder, finished videos are kept"
        raise JMTError(f"{out}: cannot be written: {reason}; {remedy}") from error
    except BrokenProcessPool as error:
        remedy = "give fewer workers, finished videos are kept"
        raise JMTError(f"{out}: a rendering process was killed, perhaps for want of memory; {remedy}") from error


def _recording(out: Path, recipe: Recipe, index: int) -> Recording:
    name, split = f"synthetic_{index:03d}", recipe.split(index)
    annotation = out / CHALLENGE / FOLDERS[split] / f"{name}.txt"
    return Recording(name, out / "videos" / f"{name}.mp4", annotation, split, fold=index % FOLDS)


def _claim(out: Path, recipe: Recipe, folders: Sequence[Path]) -> None:
    """Make the folders; refuse one that holds another collection, whose videos would pass for this one's."""
    facts = {key: value for key, value in asdict(recipe).items() if key != "layout" or value != "plain"}
    path, text = out / "recipe.json", json.dumps({"generator": GENERATOR, **facts})
    if path.exists() and path.read_text() != text:
        raise JMTError(f"{out}: holds another synthetic collection ({path.read_text()}); pass another folder")
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    temporary.replace(path)  # a full disk must not leave half a recipe, which would be refused from then on


def _render_missing(
    out: Path, recipe: Recipe, videos: Sequence[Path], render: Render, workers: int, progress: Progress | None
) -> None:
    missing = [index for index, video in enumerate(videos) if not video.exists()]
    done = len(videos) - len(missing)
    if progress:
        progress(done, len(videos), "")
    if not missing:
        return
    # forkserver: a fork of a process that runs threads (PyTorch, DALI) may hang
    with ProcessPoolExecutor(min(workers, len(missing)), multiprocessing.get_context("forkserver")) as pool:
        futures = {pool.submit(render, out, recipe, index): index for index in missing}
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                if progress:
                    progress(done, len(videos), videos[futures[future]].stem)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def render(out: Path, recipe: Recipe, index: int) -> None:
    """One video and its annotation; the video takes its name last, once both are whole."""
    recording = _recording(out, recipe, index)
    rng = np.random.default_rng((recipe.seed, index))
    script = write_script(round(recipe.seconds * recipe.fps), recipe.fps, rng)
    samples, mouth = speak(script, rng)
    assert recording.annotation is not None
    recording.annotation.write_text(annotation(script.labels))
    encode(recording.video, recipe.fps, film(script, mouth, recipe.size, rng), samples)


def annotation(labels: np.ndarray) -> str:
    """The text of an annotation file of the VA Estimation Challenge, from labels (rows, 2)."""
    rows = "".join(f"{valence:.4f},{arousal:.4f}\n" for valence, arousal in labels)
    return "valence,arousal\n" + rows.replace("-5.0000", "-5")


@dataclass(frozen=True)
class Coding:
    """What a kind of file holds, in FFmpeg's names."""

    container: str
    video: str
    options: dict[str, str]
    audio: str


MP4 = Coding("mp4", "libx264", {"preset": "veryfast", "crf": "18"}, "aac")
AVI = Coding("avi", "mpeg4", {"qmin": "2", "qmax": "3", "b": "4M"}, "pcm_s16le")


def encode(path: Path, fps: int, frames: Iterator[np.ndarray], samples: np.ndarray, coding: Coding = MP4) -> None:
    """Frames (H, W, 3) uint8 and float32 samples (N,) into a video that is there whole or not at all.

    Raises OSError.
    """
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        with av.open(str(temporary), "w", format=coding.container) as container:
            _mux(container, fps, frames, samples, coding)
        temporary.replace(path)
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error
    finally:
        temporary.unlink(missing_ok=True)


def _mux(
    container: av.container.OutputContainer,
    fps: int,
    frames: Iterator[np.ndarray],
    samples: np.ndarray,
    coding: Coding,
) -> None:
    first = next(frames)
    video: Any = container.add_stream(coding.video, rate=fps, options=coding.options)
    video.height, video.width = first.shape[:2]
    video.pix_fmt = "yuv420p"
    video.codec_context.thread_count = 1  # one process a core renders; and the same bits everywhere
    audio: Any = container.add_stream(coding.audio, rate=SAMPLE_RATE, layout="mono")
    audio.codec_context.bit_rate = 96_000
    heard = 0
    for number, picture in enumerate(chain([first], frames)):
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame.pts = number
        container.mux(video.encode(frame))
        until = round((number + 1) / fps * SAMPLE_RATE)
        sound = av.AudioFrame.from_ndarray(samples[None, heard:until], "fltp", "mono")
        sound.sample_rate, sound.time_base, sound.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), heard
        container.mux(audio.encode(sound))
        heard = until
    container.mux(video.encode(None))
    container.mux(audio.encode(None))
