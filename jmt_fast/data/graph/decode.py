"""Decoding inside the graph: NVDEC on a GPU; on a CPU, DALI's own decoder of VP8, VP9 and MJPEG."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn

from jmt_fast.config import FrameConfig
from jmt_fast.data.graph import ops
from jmt_fast.errors import MediaError
from jmt_fast.media.dali import reader, reason
from jmt_fast.media.route import nvdec, route

if TYPE_CHECKING:
    from jmt_fast.media import MediaInfo

CPU_CODECS = ("vp8", "vp9", "mjpeg")
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
TIME_TOLERANCE = 2e-3  # seconds: Matroska keeps milliseconds, and two readers may round them differently
BLOCK_BYTES = 2**28  # of decoded frames: a block of 8K ones would take gigabytes
AHEAD = 2  # blocks in flight: one is decoded while the other is used


def can_decode(info: MediaInfo, device: torch.device | str) -> tuple[bool, str]:
    """Whether `decoded` can be expected to read this video on this device, and the reason, in words for a user.

    It looks at the probe only. A stream that fails later all the same makes `decoded` raise MediaError.
    """
    device = torch.device(device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False, "no CUDA device is available"
        chosen = route(info, nvdec(torch.cuda.current_device() if device.index is None else device.index))
        return chosen.gpu, chosen.reason
    if info.codec not in CPU_CODECS:
        return False, f"codec {info.codec} is not one of {', '.join(CPU_CODECS)}"
    if info.pixel_format not in PIXEL_FORMATS:
        return False, f"pixel format {info.pixel_format} is not 8-bit 4:2:0"
    if info.rotation % 360:
        return False, f"the video is rotated by {info.rotation} degrees"
    if not info.timed:
        return False, "the container has no presentation times"
    return True, f"{info.codec} is decoded by DALI on the CPU"


def decoded(
    info: MediaInfo, config: FrameConfig, device: torch.device, threads: int, block: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """See `ClipGraph.decoded`."""
    possible, why = can_decode(info, device)
    if not possible:
        raise MediaError(f"{info.path}: not decodable in the media graph on {device}: {why}; use the PyAV decoder")
    if block < 1:
        raise ValueError(f"block: need at least 1, got {block}")
    block = max(1, min(block, BLOCK_BYTES // (3 * info.width * info.height)))
    pipeline = _open(info, config, device, threads, block)
    firsts = range(0, info.frames, block)
    first = 0
    try:
        with ops.on(device):
            for _ in firsts[:AHEAD]:
                pipeline.schedule_run()
        for first in firsts:
            with ops.on(device):
                frames, *facts = pipeline.outputs(torch.cuda.current_stream(device) if device.type == "cuda" else None)
                # The reader starts anew after the last frame, and fills what it cannot decode with what it decoded
                # before: a frame counts only if number, time and size say that it is the one of the probe.
                count = min(block, info.frames - first)
                _verify(info, first, *(_host(fact)[:count] for fact in facts))
                pixels = ops.taken(frames, device)[:count]
            yield first, pixels
            if first + AHEAD * block < info.frames:
                with ops.on(device):
                    pipeline.schedule_run()
    except RuntimeError as error:
        raise MediaError(f"{info.path}: decoding fails after frame {first}: {reason(error)}; {_REMEDY}") from error


_REMEDY = "use the PyAV decoder, or re-encode the file"


def _open(info: MediaInfo, config: FrameConfig, device: torch.device, threads: int, block: int) -> Pipeline:
    """A pipeline for this one file, so that nothing of an earlier video can be left in it."""
    start, end = ops.crop_region((info.height, info.width), config.resize, config.crop, 0.5, 0.5)

    def define() -> tuple[Any, ...]:
        # a frame is a sample: the operators behind spread samples over the cores
        video, numbers, times = reader(info.path, "gpu" if device.type == "cuda" else "cpu", length=1)
        pixels = ops.resize(fn.squeeze(video, axes=[0]), [config.crop] * 2, start, end)
        return ops.normalise(pixels, config), numbers, times, video.shape(device="cpu")

    try:
        pipeline = ops.build(define, device, threads, min(block, max(1, info.frames)), depth=AHEAD)
        frames = pipeline.reader_meta("video")["epoch_size"]
    except RuntimeError as error:
        # DALI prints the cause on stderr and raises that it has no samples.
        raise MediaError(f"{info.path}: the media graph cannot open it ({reason(error)}); {_REMEDY}") from error
    if frames != info.frames:
        raise MediaError(f"{info.path}: {frames} frames in the media graph, {info.frames} in the probe; {_REMEDY}")
    return pipeline


def _verify(info: MediaInfo, first: int, numbers: np.ndarray, times: np.ndarray, shapes: np.ndarray) -> None:
    expected = np.arange(first, first + len(numbers))
    if not np.array_equal(numbers.ravel(), expected):
        raise MediaError(f"{info.path}: the stream ends or skips between frames {first} and {expected[-1]}; {_REMEDY}")
    drift = times.ravel() - (info.timestamps[expected] - info.timestamps[0])
    if np.abs(drift).max() > TIME_TOLERANCE:
        raise MediaError(f"{info.path}: frame times after frame {first} differ from the probe's; {_REMEDY}")
    if (shapes[:, 1:3] != (info.height, info.width)).any():
        raise MediaError(f"{info.path}: the frame size changes after frame {first}; {_REMEDY}")


def _host(batch: Any) -> np.ndarray:
    return np.asarray(batch.as_cpu().as_tensor())
