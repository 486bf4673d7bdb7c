"""A synthetic collection on disk: MP4 files, annotations in Aff-Wild2's layout, and a manifest."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from jmt_fast.data.manifest import CHALLENGE, SPLIT_FOLDERS, Recording, write_manifest
from jmt_fast.data.synthetic.faces import film
from jmt_fast.data.synthetic.traces import write_script
from jmt_fast.data.synthetic.voice import SAMPLE_RATE, speak
from jmt_fast.errors import JMTError

Progress = Callable[[int, int, str], None]
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
    recipe.check()
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise JMTError(f"synthetic data: workers={workers} is too small; give at least 1")
    out = Path(out)
    recordings = [_recording(out, recipe, index) for index in range(videos)]
    try:
        _claim(out, recipe)
        missing = [index for index, recording in enumerate(recordings) if not recording.video.exists()]
        _render(out, recipe, missing, workers, progress)
        write_manifest(recordings, out / "manifest.csv")
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "make room or pass another folder, finished videos are kept"
        raise JMTError(f"{out}: cannot be written: {reason}; {remedy}") from error
    except BrokenProcessPool as error:
        remedy = "give fewer workers, finished videos are kept"
        raise JMTError(f"{out}: a rendering process was killed, perhaps for want of memory; {remedy}") from error
    return recordings


def _recording(out: Path, recipe: Recipe, index: int) -> Recording:
    name, split = f"synthetic_{index:03d}", recipe.split(index)
    annotation = out / CHALLENGE / FOLDERS[split] / f"{name}.txt"
    return Recording(name, out / "videos" / f"{name}.mp4", annotation, split, fold=index % FOLDS)


def _claim(out: Path, recipe: Recipe) -> None:
    """Make the folders; refuse one that holds another collection, whose videos would pass for this one's."""
    path, text = out / "recipe.json", json.dumps({"generator": GENERATOR, **asdict(recipe)})
    if path.exists() and path.read_text() != text:
        raise JMTError(f"{out}: holds another synthetic collection ({path.read_text()}); pass another folder")
    for folder in (out / "videos", *(out / CHALLENGE / folder for folder in FOLDERS.values())):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    temporary.replace(path)  # a full disk must not leave half a recipe, which would be refused from then on


def _render(out: Path, recipe: Recipe, missing: list[int], workers: int, progress: Progress | None) -> None:
    done = recipe.videos - len(missing)
    if progress:
        progress(done, recipe.videos, "")
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
                    progress(done, recipe.videos, _recording(out, recipe, futures[future]).name)
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
    rows = "".join(f"{valence:.4f},{arousal:.4f}\n" for valence, arousal in script.labels)
    recording.annotation.write_text("valence,arousal\n" + rows.replace("-5.0000", "-5"))
    temporary = recording.video.with_suffix(f".{os.getpid()}.part")
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            _encode(container, recipe, film(script, mouth, recipe.size, rng), samples)
        temporary.replace(recording.video)
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error
    finally:
        temporary.unlink(missing_ok=True)


def _encode(
    container: av.container.OutputContainer, recipe: Recipe, frames: Iterator[np.ndarray], samples: np.ndarray
) -> None:
    video = container.add_stream("libx264", rate=recipe.fps, options={"preset": "veryfast", "crf": "18"})
    video.width = video.height = recipe.size
    video.pix_fmt = "yuv420p"
    video.codec_context.thread_count = 1  # one process a core renders; and the same bits everywhere
    audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
    audio.codec_context.bit_rate = 96_000
    heard = 0
    for number, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame.pts = number
        container.mux(video.encode(frame))
        until = round((number + 1) / recipe.fps * SAMPLE_RATE)
        sound = av.AudioFrame.from_ndarray(samples[None, heard:until], "fltp", "mono")
        sound.sample_rate, sound.time_base, sound.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), heard
        container.mux(audio.encode(sound))
        heard = until
    container.mux(video.encode(None))
    container.mux(audio.encode(None))
