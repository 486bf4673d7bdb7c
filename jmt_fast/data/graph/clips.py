"""Frames and sound windows in host memory -> the networks' inputs on the device."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.types import DALIDataType

from jmt_fast.config import FrameConfig, SpectrogramConfig
from jmt_fast.data.graph import ops
from jmt_fast.data.graph.decode import decoded
from jmt_fast.errors import DataError
from jmt_fast.media.colour import resized_size
from jmt_fast.media.dali import reason

if TYPE_CHECKING:
    from jmt_fast.media import MediaInfo

BATCH = 256  # samples a run: a call with fewer needs no copy
BATCH_BYTES = 2**30  # of input a run, which bounds the memory of calls with large frames
MAX_RESIZED = 2**16  # pixels of the longer side after `resized`: an extreme shape would take all memory

FrameSequence = np.ndarray | Sequence[np.ndarray]


class ClipGraph:
    """The one DALI graph, for a CPU or a GPU: frames and sound in host memory -> normalised tensors on the device.

    A frame is a sample of its own in the graph, so that one long sequence keeps every core busy. Pipelines are built at
    first use and reused; results stay valid for as long as they are held (on a CPU they are the graph's own memory, not
    copied). Calls from several threads are safe; calls of the same method take turns. Not usable across a fork.

    `threads`: DALI's worker threads, all usable cores by default.
    """

    def __init__(
        self,
        frames: FrameConfig | None = None,
        sound: SpectrogramConfig | None = None,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.frame_config = frames or FrameConfig()
        self.sound_config = sound or SpectrogramConfig()
        self.device = torch.device(device)
        self.threads = threads or len(os.sched_getaffinity(0))
        # What frames are best shrunk to before they come here: a CPU has done most of it once it has decoded them.
        self.shorter = self.frame_config.resize if self.device.type == "cpu" else None
        self._frames = _Stage(self._define_frames, self.device, self.threads)
        self._normalised = _Stage(self._define_normalised, self.device, self.threads)
        self._resized = _Stage(self._define_resized, self.device, self.threads)
        self._spectrograms = _Stage(self._define_spectrograms, self.device, self.threads)

    def frames(
        self,
        sequences: Sequence[FrameSequence],
        crop_x: Sequence[float] | np.ndarray | None = None,
        crop_y: Sequence[float] | np.ndarray | None = None,
        mirror: Sequence[bool] | np.ndarray | None = None,
    ) -> list[torch.Tensor]:
        """Resize, crop, flip, normalise: each sequence (F, H, W, 3) uint8 -> (F, 3, crop, crop) float32.

        A sequence is one array, or a list of (H, W, 3) arrays, which saves stacking decoded frames. Sizes and lengths
        may differ between sequences, and sizes between the frames of a list. `crop_x`, `crop_y` in [0, 1] (0.5, the
        centre, by default) and `mirror` (False by default) hold one value per sequence, the same for all its frames.

        Raises ValueError for wrong shapes, dtypes or ranges, DataError where the graph fails (out of memory).
        """
        config = self.frame_config
        count = len(sequences)
        flat = [frame for sequence in sequences for frame in _checked(sequence)]
        lengths = [len(sequence) for sequence in sequences]
        xs = np.repeat(_per_sequence("crop_x", crop_x, count, 0.5), lengths)
        ys = np.repeat(_per_sequence("crop_y", crop_y, count, 0.5), lengths)
        flips = np.repeat(_per_sequence("mirror", mirror, count, 0.0), lengths).astype(np.int32)
        regions = [
            ops.crop_region((frame.shape[0], frame.shape[1]), config.resize, config.crop, x, y)
            for frame, x, y in zip(flat, xs, ys, strict=True)
        ]
        if all(min(frame.shape[:2]) == config.resize for frame in flat):  # whole pixels: nothing to resample
            flat = [_part(frame, *region) for frame, region in zip(flat, regions, strict=True)]
            parts = [self._normalised(frames=flat[part], mirror=flips[part]) for part in _parts(flat)]
        else:
            starts, ends = (np.array([region[k] for region in regions], dtype=np.float32) for k in (0, 1))
            parts = [
                self._frames(frames=flat[part], start=starts[part], end=ends[part], mirror=flips[part])
                for part in _parts(flat)
            ]
        return list(self._joined(parts, (3, config.crop, config.crop), torch.float32).split(lengths))

    def resized(self, sequences: Sequence[FrameSequence]) -> list[torch.Tensor]:
        """`frames` up to the resize: each sequence (F, H, W, 3) uint8 -> (F, h, w, 3) uint8, min(h, w) = resize.

        `frames` of the result equals `frames` of the source up to one grey level (rounding), so that it can be cached.
        Raises as `frames` does; the frames of one sequence must have one size here.
        """
        return [self._resized_one(_checked(sequence)) for sequence in sequences]

    def _resized_one(self, frames: list[np.ndarray]) -> torch.Tensor:
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("sequences: the frames of one sequence have different sizes")
        if not frames:
            raise ValueError("sequences: a sequence without frames has no size to resize")
        source = frames[0].shape[:2]
        size = resized_size(*source, self.frame_config.resize)
        if max(size) > MAX_RESIZED:
            shown = f"{source[1]}x{source[0]} resized to {size[1]}x{size[0]}"
            raise DataError(f"frames of {shown} pixels: longer than {MAX_RESIZED}; crop the video first")
        if size == source:
            return torch.from_numpy(np.stack(frames)).to(self.device)
        ends, sizes = (np.tile(np.array(pair, dtype=np.float32), (len(frames), 1)) for pair in (source, size))
        starts = np.zeros_like(ends)
        parts = [
            self._resized(frames=frames[part], size=sizes[part], start=starts[part], end=ends[part])
            for part in _parts(frames)
        ]
        return self._joined(parts, (*size, 3), torch.uint8)

    def spectrograms(self, windows: np.ndarray) -> torch.Tensor:
        """Log-mel spectrograms, normalised: (B, samples) float32 in [-1, 1] -> (B, 1, mels, columns) float32.

        Raises ValueError for a wrong shape or dtype, DataError where the graph fails.
        """
        config = self.sound_config
        if windows.ndim != 2 or windows.shape[1] != config.samples or windows.dtype != np.float32:
            raise ValueError(f"windows: need float32 (B, {config.samples}), got {windows.dtype} {windows.shape}")
        rows = list(np.ascontiguousarray(windows))
        parts = [self._spectrograms(samples=rows[part]) for part in _parts(rows)]
        return self._joined(parts, (config.mels, config.columns), torch.float32).unsqueeze(1)

    def decoded(self, info: MediaInfo, block: int = 32) -> Iterator[tuple[int, torch.Tensor]]:
        """Decode a whole video inside the graph: (first index, (F, 3, crop, crop) float32) for consecutive blocks.

        The operators behind the decoder are those of `frames` with a centre crop. `block` frames are in a block, fewer
        in the last, and where frames are very large; two blocks are in flight, which bounds the memory. All info.frames
        frames come out, each checked by number, time and size against the probe. Colours: BT.601, whatever the file's
        tag.

        Raises MediaError where `can_decode` says no, where the file holds other frames than the probe found, and where
        the stream breaks; blocks yielded before that are good.
        """
        return decoded(info, self.frame_config, self.device, self.threads, block)

    def _joined(self, parts: list[torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, *shape, dtype=dtype, device=self.device)

    def _host_frames(self) -> Any:
        # On a CPU the graph reads the caller's memory. For a GPU it goes through DALI's pinned memory, so that the
        # caller's is free again on return while the transfer may still run.
        frames = ops.fed("frames", DALIDataType.UINT8, 3, "HWC", copy=self.device.type == "cuda")
        return frames.gpu() if self.device.type == "cuda" else frames

    def _define_frames(self) -> Any:
        start, end = (ops.fed(name, DALIDataType.FLOAT, 1) for name in ("start", "end"))
        crop = [self.frame_config.crop] * 2
        pixels = ops.resize(self._host_frames(), crop, start, end)
        return ops.normalise(pixels, self.frame_config, ops.fed("mirror", DALIDataType.INT32, 0))

    def _define_normalised(self) -> Any:
        return ops.normalise(self._host_frames(), self.frame_config, ops.fed("mirror", DALIDataType.INT32, 0))

    def _define_resized(self) -> Any:
        size, start, end = (ops.fed(name, DALIDataType.FLOAT, 1) for name in ("size", "start", "end"))
        return ops.resize(self._host_frames(), size, start, end)

    def _define_spectrograms(self) -> Any:
        samples = ops.fed("samples", DALIDataType.FLOAT, 1, copy=self.device.type == "cuda")
        return ops.log_mel(samples.gpu() if self.device.type == "cuda" else samples, self.sound_config)


class _Stage:
    """A pipeline that is built when first called: named batches of host arrays -> one tensor on the device."""

    def __init__(self, define: Callable[[], Any], device: torch.device, threads: int) -> None:
        self._define, self._device, self._threads = define, device, threads
        self._pipeline: Pipeline | None = None
        self._lock = threading.Lock()

    def __call__(self, **inputs: Any) -> torch.Tensor:
        with self._lock, ops.on(self._device):
            try:
                if self._pipeline is None:
                    self._pipeline = ops.build(self._define, self._device, self._threads, BATCH)
                for name, batch in inputs.items():
                    self._pipeline.feed_input(name, batch)
                return to_torch(self._pipeline, self._device)
            except BaseException as error:
                # A failed pipeline does not recover, and one interrupted by Ctrl-C would hand out this call's output
                # to the next.
                self._pipeline = None
                if not isinstance(error, RuntimeError):
                    raise
                message = f"media graph on {self._device}: {reason(error)}; try fewer or smaller frames a call"
                raise DataError(message) from error


def to_torch(pipeline: Pipeline, device: torch.device) -> torch.Tensor:
    """Run the pipeline once; its output as a tensor."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    (output,) = pipeline.run(stream)
    return ops.taken(output, device)


def _checked(sequence: FrameSequence) -> list[np.ndarray]:
    """The frames of a sequence, each (H, W, 3) uint8 and contiguous."""
    for frame in sequence[:1] if isinstance(sequence, np.ndarray) else sequence:
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            raise ValueError(f"sequences: need uint8 arrays, got {getattr(frame, 'dtype', type(frame).__name__)}")
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"sequences: need frames of shape (H, W, 3), got {frame.shape}")
    return [np.ascontiguousarray(frame) for frame in sequence]


def _part(frame: np.ndarray, start: list[float], end: list[float]) -> np.ndarray:
    rows, columns = (slice(int(first), int(last)) for first, last in zip(start, end, strict=True))
    return np.ascontiguousarray(frame[rows, columns])


def _per_sequence(name: str, values: Sequence[Any] | np.ndarray | None, count: int, default: float) -> np.ndarray:
    array = np.full(count, default) if values is None else np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name}: need one value per sequence, {count}, got shape {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name}: need values in [0, 1]")
    return array


def _parts(samples: list[np.ndarray]) -> Iterator[slice]:
    """Consecutive slices of at most BATCH samples and, unless one sample alone is larger, BATCH_BYTES."""
    first, size = 0, 0
    for index, sample in enumerate(samples):
        if index > first and (index - first == BATCH or size + sample.nbytes > BATCH_BYTES):
            yield slice(first, index)
            first, size = index, 0
        size += sample.nbytes
    if first < len(samples):
        yield slice(first, len(samples))
