"""DALI's reader of video files, fed by NVDEC on a GPU, and a trial of whether it gives the right pictures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch  # noqa: F401 - before DALI, which otherwise loads other versions of shared libraries
from nvidia.dali import Pipeline, fn

WIDTH, HEIGHT = 256, 144  # the least that NVDEC takes is 144 x 144 in some codecs
LEVELS = np.arange(40, 200, 20)  # of the trial's frames, each flat and grey
TOLERANCE = 8  # levels; the next frame is 20 off


def reader(path: Path, device: str, length: int) -> tuple[Any, Any, Any]:
    """Graph nodes of a whole file: sequences of `length` frames (F, H, W, 3) uint8, first frame's number, times."""
    read: Any = fn.experimental.readers.video  # three outputs, which DALI's own annotations do not know
    return read(
        name="video",
        device=device,
        filenames=[str(path)],
        sequence_length=length,
        enable_frame_num="sequence",
        enable_timestamps=True,
    )


def reason(error: RuntimeError) -> str:
    """The line of a DALI error that says what went wrong; the rest is a traceback of the graph's definition."""
    lines = [line.strip() for line in str(error).split("encountered:")[-1].splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def trial(device: int | None = None, encoder: str = "libx264", suffix: str = "mp4") -> str | None:
    """Why a clip made here is not decoded rightly by a GPU, or with None by the CPU; None if it is. Takes a second."""
    with tempfile.TemporaryDirectory(prefix="jmt-fast-trial-") as folder:
        path = Path(folder) / f"trial.{suffix}"
        try:
            _write(path, encoder)
        except (OSError, ValueError) as error:  # as av's errors are
            return f"no clip for a trial decode can be made ({error})"
        try:
            pipeline = Pipeline(1, 1, device, prefetch_queue_depth=1, exec_dynamic=True)
            with pipeline:
                pipeline.set_outputs(reader(path, "cpu" if device is None else "gpu", len(LEVELS))[0])
            pipeline.build()
            [frames] = pipeline.run()
        except RuntimeError as error:
            return f"a trial decode fails: {reason(error)}"
        seen = np.asarray(frames.as_cpu().as_tensor())[0].astype(np.float32)
    if seen.shape != (len(LEVELS), HEIGHT, WIDTH, 3):
        return f"a trial decode gives {seen.shape[0]} frames of {len(LEVELS)}, {seen.shape[2]}x{seen.shape[1]} pixels"
    if np.abs(seen - LEVELS[:, None, None, None]).max() > TOLERANCE:
        return "a trial decode gives other pictures than were encoded"
    return None


def _write(path: Path, encoder: str) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for level in LEVELS:
            picture = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
