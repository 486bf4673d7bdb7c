"""A synthetic Aff-Wild2: its folders, and the irregularities that the real one has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jmt_fast.data.layouts import CHALLENGE, CROPS
from jmt_fast.data.synthetic.faces import film
from jmt_fast.data.synthetic.traces import Script, write_script
from jmt_fast.data.synthetic.voice import speak
from jmt_fast.data.synthetic.write import AVI, FOLDERS, MP4, Progress, Recipe, annotation, encode, produce

CROP = 112  # pixels, as in Aff-Wild2
ROWS_OFF = {2: 2, 3: -1}  # of every fourth video: rows of annotation beyond the last frame, or missing


def synthesise_affwild2(
    out: str | Path,
    videos: int,
    seconds: float,
    seed: int = 0,
    *,
    size: int = 160,
    fps: int = 30,
    workers: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Render `videos` videos as Aff-Wild2 lies on disk, without a manifest; returns the number of trials.

    Leaves `out/videos/<video>.mp4` (every third one .avi), `out/VA_Estimation_Challenge/{Train_Set,Validation_Set}/
    <trial>.txt` (a quarter for validation) and `out/cropped_aligned/<trial>/00001.jpg`, ..., 112 x 112, none for frames
    without a face. In every fourth video, from the second on, two people talk: trials `<video>_left` and
    `<video>_right`. Of the third video in four the annotation has two rows too many, of the fourth one row too few.
    Otherwise as `synthesise`, which says what it raises.
    """
    recipe = Recipe(videos, float(seconds), seed, size, fps, layout="affwild2")
    out = Path(out)
    folders = [Path(CHALLENGE, FOLDERS[split]) for split in ("train", "validation")]
    folders += [Path("videos"), *(Path(CROPS, trial) for index in range(videos) for trial in trials(index))]
    produce(out, recipe, folders, [video_path(out, index) for index in range(videos)], render, workers, progress)
    return sum(len(trials(index)) for index in range(videos))


def trials(index: int) -> list[str]:
    """The trials of a video, one a person."""
    name = f"synthetic_{index:03d}"
    return [f"{name}_left", f"{name}_right"] if index % 4 == 1 else [name]


def video_path(out: Path, index: int) -> Path:
    return out / "videos" / f"synthetic_{index:03d}{'.avi' if index % 3 == 2 else '.mp4'}"


def render(out: Path, recipe: Recipe, index: int) -> None:
    """One video with its annotations and face crops; the video takes its name last, once all is whole."""
    people, voices, films = [], [], []
    for person, trial in enumerate(trials(index)):
        rng = np.random.default_rng((recipe.seed, index, person))
        script = write_script(round(recipe.seconds * recipe.fps), recipe.fps, rng)
        samples, mouth = speak(script, rng)
        people.append((out / CROPS / trial, script))
        voices.append(samples)
        films.append(film(script, mouth, recipe.size, rng))
        folder = FOLDERS["validation" if index >= recipe.videos - recipe.videos // 4 else "train"]
        labels = _off(script.labels, ROWS_OFF.get(index % 4, 0))
        (out / CHALLENGE / folder / f"{trial}.txt").write_text(annotation(labels))
    path = video_path(out, index)
    frames = _cropped(people, films)
    encode(path, recipe.fps, frames, np.stack(voices).mean(axis=0), AVI if path.suffix == ".avi" else MP4)


def _off(labels: np.ndarray, rows: int) -> np.ndarray:
    return labels[:rows] if rows < 0 else np.concatenate([labels, np.repeat(labels[-1:], rows, axis=0)])


def _cropped(people: list[tuple[Path, Script]], films: list[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The people's frames side by side; on the way each face's crop is written."""
    for number, pictures in enumerate(zip(*films, strict=True)):
        for (folder, script), picture in zip(people, pictures, strict=True):
            if not script.face_gap[number]:
                crop = Image.fromarray(picture).resize((CROP, CROP), Image.Resampling.BILINEAR)
                crop.save(folder / f"{number + 1:05d}.jpg", quality=90)
        yield np.concatenate(pictures, axis=1)
