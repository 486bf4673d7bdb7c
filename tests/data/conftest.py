"""Small real files for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

CLOCK = 90_000
RATE = 16_000


def _add_sound(container: av.container.OutputContainer, sound: np.ndarray, start: float) -> None:
    stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
    stream.time_base = Fraction(1, RATE)
    frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, round(start * RATE), Fraction(1, RATE)
    for packet in (*stream.encode(frame), *stream.encode(None)):
        container.mux(packet)


@pytest.fixture
def make_video() -> Callable[..., Path]:
    """make_video(path, levels, timestamps, sound=None, sound_start=0.0): frame i is 64 x 48 pixels of grey `levels[i]`.

    `timestamps` are seconds; `sound` is float (N,) at 16 kHz, stored uncompressed from `sound_start` seconds on.
    """

    def make(
        path: Path,
        levels: list[int],
        timestamps: list[float],
        sound: np.ndarray | None = None,
        sound_start: float = 0.0,
    ) -> Path:
        with av.open(str(path), "w", format="mov") as container:
            stream = container.add_stream("mjpeg", rate=30)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
            if sound is not None:
                _add_sound(container, sound, sound_start)
            for level, time in zip(levels, timestamps, strict=True):
                picture = np.full((48, 64, 3), level, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round(time * CLOCK), Fraction(1, CLOCK)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def make_wav() -> Callable[[Path, np.ndarray], Path]:
    """make_wav(path, sound): float (N,) at 16 kHz, mono."""

    def make(path: Path, sound: np.ndarray) -> Path:
        with av.open(str(path), "w") as container:
            _add_sound(container, sound, 0.0)
        return path

    return make


@pytest.fixture
def make_crops() -> Callable[[Path, dict[int, int]], Path]:
    """make_crops(folder, {index: grey level}): 112 x 112 JPEGs, `00001.jpg` for index 0."""

    def make(folder: Path, levels: dict[int, int]) -> Path:
        folder.mkdir(parents=True)
        for index, level in levels.items():
            Image.new("RGB", (112, 112), (level, level, level)).save(folder / f"{index + 1:05d}.jpg")
        return folder

    return make
