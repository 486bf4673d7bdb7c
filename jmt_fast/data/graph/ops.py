"""The definition of the DALI graph. Every pipeline, on a CPU or a GPU, decoding or fed, is made of these functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

from jmt_fast.config import FrameConfig, SpectrogramConfig
from jmt_fast.media.colour import resized_size
from jmt_fast.media.dali import reason


def build(define: Callable[[], Any], device: torch.device, threads: int, batch: int, depth: int = 1) -> Pipeline:
    """A built pipeline whose output, or tuple of outputs, is what `define()` returns.

    The dynamic executor gives every output its own reference-counted memory, so that one that is `taken` without a copy
    is not overwritten by later runs.
    """
    index = None
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
    pipeline = Pipeline(batch, threads, index, prefetch_queue_depth=depth, exec_dynamic=True)
    with pipeline:
        outputs = define()
        pipeline.set_outputs(*(outputs if isinstance(outputs, tuple) else (outputs,)))
    pipeline.build()
    return pipeline


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Where pipelines run: DALI takes a default stream to be the current device's, which is a thread's own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache
def refusal(device: torch.device) -> str | None:
    """Why DALI cannot compute on a device that PyTorch can use, as with a driver too old for it; None if it can.

    A small pipeline is tried, once a process.
    """
    if device.type != "cuda":
        return None
    config = FrameConfig()
    try:
        with on(device):
            pipeline = build(lambda: normalise(fed("frame", DALIDataType.UINT8, 3, "HWC").gpu(), config), device, 1, 1)
            pipeline.feed_input("frame", [np.zeros((8, 8, 3), np.uint8)])
            pipeline.run()[0].as_cpu()
    except RuntimeError as error:
        return reason(error)
    return None


def taken(output: Any, device: torch.device) -> torch.Tensor:
    """An output of a pipeline as a tensor: on a CPU without a copy, it keeps the output's memory alive.

    On a GPU it is a copy. Given back memory that it has lent, DALI waits for the whole device in a thread of its own,
    which would break off any capture of a CUDA graph by another thread.
    """
    tensor = output.as_tensor()
    if device.type != "cuda":
        return torch.from_dlpack(tensor)
    copy = torch.empty(tensor.shape(), dtype=to_torch_type[tensor.dtype], device=device)
    return feed_ndarray(tensor, copy, torch.cuda.current_stream(device))


def fed(name: str, dtype: DALIDataType, ndim: int, layout: str | None = None, copy: bool = True) -> Any:
    """A batch that the caller feeds from host memory by `name`."""
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout, no_copy=not copy)


def jpeg(data: Any, device: torch.device) -> Any:
    """The bytes of JPEGs in host memory, uint8 (n,) -> (H, W, 3) uint8 RGB, by nvJPEG where the device is a GPU.

    Full range BT.601, as JPEG has it. Chroma is interpolated on both devices, nvJPEG's default is to repeat it.
    """
    return fn.decoders.image(
        data,
        device="mixed" if device.type == "cuda" else "cpu",
        output_type=DALIImageType.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )


def crop_region(size: tuple[int, int], shorter: int, crop: int, x: float, y: float) -> tuple[list[float], list[float]]:
    """Start and end (row, column), in pixels of a source of `size` (height, width), of the part that becomes the crop.

    `x` and `y` in [0, 1] place the crop between the left (top) and the right (bottom) edge of the resized frame, on
    whole pixels of it.
    """
    height, width = size
    tall, wide = resized_size(height, width, shorter)
    top, left = int(y * (tall - crop) + 0.5), int(x * (wide - crop) + 0.5)
    rows, columns = height / tall, width / wide
    return [top * rows, left * columns], [(top + crop) * rows, (left + crop) * columns]


def resize(frames: Any, size: Any, start: Any, end: Any) -> Any:
    """The part of (H, W, 3) uint8 frames between `start` and `end` resampled to `size`, uint8, rounded.

    Linear with antialiasing (a triangle as wide as the source step where it shrinks), in two passes. Pixels outside
    the part but inside the frame are read by the filter, so that resampling a part gives the same pixels as resampling
    the frame and cropping, at a fraction of the work. At the frame's edge the edge pixels are repeated.
    """
    linear = DALIInterpType.INTERP_LINEAR
    return fn.resize(frames, size=size, roi_start=start, roi_end=end, interp_type=linear, antialias=True)


def normalise(frames: Any, config: FrameConfig, mirror: Any = 0) -> Any:
    """(H, W, 3) uint8 -> (3, H, W) float32, mirrored left to right where `mirror` is 1, (x / 255 - mean) / std."""
    return fn.crop_mirror_normalize(
        frames,
        mirror=mirror,
        mean=[255 * value for value in config.mean],
        std=[255 * value for value in config.std],
        output_layout="CHW",
        dtype=DALIDataType.FLOAT,
    )


def log_mel(samples: Any, config: SpectrogramConfig) -> Any:
    """(samples,) float32 in [-1, 1] -> (mels, columns) float32: the log-mel spectrogram of `SpectrogramConfig`.

    DALI's own Hann window is sampled half a step off the periodic one, which is why it is passed.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
    power = fn.spectrogram(
        samples,
        nfft=config.n_fft,
        window_length=config.window,
        window_step=config.hop,
        window_fn=hann.tolist(),
        power=2,
        center_windows=True,
        reflect_padding=True,
    )
    mel = fn.mel_filter_bank(
        power,
        nfilter=config.mels,
        sample_rate=config.sample_rate,
        freq_low=0.0,
        freq_high=config.high_hz,
        mel_formula="htk",
        normalize=False,
    )
    decibels = fn.to_decibels(mel, multiplier=10.0, reference=1.0, cutoff_db=config.floor_db)
    return (decibels - config.mean_db) / config.std_db
