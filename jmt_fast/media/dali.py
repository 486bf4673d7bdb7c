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
FRAMES = 72  # of the trial: more than any encoder looks ahead and reorders
BITS = 7  # of a frame's number, a black or white field each over a moving ground
BLACK, WHITE = 64, 192


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
    """Why a clip made here is not decoded rightly by a GPU, or with None by the CPU; None if it is. Takes a second.

    The encoder's settings are its defaults, with their reordered frames, and every frame carries its number.
    """
    with tempfile.TemporaryDirectory(prefix="jmt-fast-trial-") as folder:
        path = Path(folder) / f"trial.{suffix}"
        try:
            _write(path, encoder)
        except (OSError, ValueError) as error:  # as av's errors are
            return f"no clip for a trial decode can be made ({error})"
        try:
            pipeline = Pipeline(1, 1, device, prefetch_queue_depth=1, exec_dynamic=True)
            with pipeline:
                pipeline.set_outputs(reader(path, "cpu" if device is None else "gpu", FRAMES)[0])
            pipeline.build()
            [frames] = pipeline.run()
        except RuntimeError as error:
            return f"a trial decode fails: {reason(error)}"
        seen = np.asarray(frames.as_cpu().as_tensor())[0]
    if seen.shape != (FRAMES, HEIGHT, WIDTH, 3):
        return f"a trial decode gives {seen.shape[0]} frames of {FRAMES}, {seen.shape[2]}x{seen.shape[1]} pixels"
    fields = seen[:, 8 : HEIGHT // 2 - 8].reshape(FRAMES, -1, BITS + 1, WIDTH // (BITS + 1), 3)[..., 8:-8, :]
    bits = fields.mean((1, 3, 4))[:, :BITS] > (BLACK + WHITE) / 2
    if not np.array_equal(bits @ (1 << np.arange(BITS)), np.arange(FRAMES)):
        return "a trial decode gives other pictures than were encoded, or in another order"
    return None


def _write(path: Path, encoder: str) -> None:
    with av.open(str(path), "w") as container:
        quiet = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
        stream: Any = container.add_stream(encoder, rate=30, options=quiet)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        for number in range(FRAMES):
            picture = (128 + 60 * np.sin(rows / 9 + number / 3) * np.cos(columns / 13 - number / 5)).astype(np.uint8)
            bits = np.where(number >> np.arange(BITS) & 1, WHITE, BLACK)
            picture[: HEIGHT // 2, : BITS * WIDTH // (BITS + 1)] = bits.repeat(WIDTH // (BITS + 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1), "rgb24")))
        container.mux(stream.encode(None))
