"""Frames and sound windows in host memory -> the networks' inputs on the device."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.types import DALIDataType

from jmt_fast.config import FrameConfig, SpectrogramConfig
from jmt_fast.data.graph import ops
from jmt_fast.data.graph.decode import decoded
from jmt_fast.data.graph.inputs import (
    BATCH,
    Frame,
    FrameSequence,
    checked,
    data_of,
    part_of,
    parts_of,
    per_sequence,
    sound_jpeg,
)
from jmt_fast.errors import DataError
from jmt_fast.media.colour import resized_size
from jmt_fast.media.dali import reason
from jmt_fast.media.images import Jpeg

if TYPE_CHECKING:
    from jmt_fast.media import MediaInfo

log = logging.getLogger(__name__)
MAX_RESIZED = 2**16  # pixels of the longer side after `resized`: an extreme shape would take all memory


class ClipGraph:
    """The one DALI graph, for a CPU or a GPU: frames and sound in host memory -> normalised tensors on the device.

    A frame is a sample of its own in the graph, so that one long sequence keeps every core busy. Pipelines are built at
    first use and reused; results stay valid for as long as they are held (on a CPU they are the graph's own memory, not
    copied). Calls from several threads are safe; calls of the same method take turns. Not usable across a fork.

    `threads`: DALI's worker threads, all usable cores by default. `runs_on` is the device, or the CPU where DALI cannot
    use that one; results are then moved there.
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
        why = ops.refusal(self.device)
        if why:
            log.debug("the media graph runs on the CPU, as DALI cannot use %s: %s", self.device, why)
        self.runs_on = torch.device("cpu") if why else self.device
        # What frames are best shrunk to before they come here: a CPU has done most of it once it has decoded them.
        self.shorter = self.frame_config.resize if self.runs_on.type == "cpu" else None
        self._frames = self._stage(self._define_frames, self._host_frames)
        self._jpeg_frames = self._stage(self._define_frames, self._jpegs)
        self._normalised = self._stage(self._define_normalised)
        self._resized = self._stage(self._define_resized, self._host_frames)
        self._jpeg_resized = self._stage(self._define_resized, self._jpegs)
        self._spectrograms = self._stage(self._define_spectrograms)

    def frames(
        self,
        sequences: Sequence[FrameSequence],
        crop_x: Sequence[float] | np.ndarray | None = None,
        crop_y: Sequence[float] | np.ndarray | None = None,
        mirror: Sequence[bool] | np.ndarray | None = None,
    ) -> list[torch.Tensor]:
        """Resize, crop, flip, normalise: each sequence (F, H, W, 3) uint8 -> (F, 3, crop, crop) float32.

        A sequence is one array, or a list of (H, W, 3) arrays, which saves stacking decoded frames, or of Jpegs, which
        are decoded here. Sizes and lengths may differ between sequences, and sizes between the frames of a list.
        `crop_x`, `crop_y` in [0, 1] (0.5, the centre, by default) and `mirror` (False by default) hold one value per
        sequence, the same for all its frames.

        Raises ValueError for wrong shapes, dtypes or ranges, DataError where the graph fails: out of memory, or a Jpeg
        cannot be decoded (see `decodable`).
        """
        config = self.frame_config
        count = len(sequences)
        flat = [frame for sequence in sequences for frame in checked(sequence)]
        lengths = [len(sequence) for sequence in sequences]
        xs = np.repeat(per_sequence("crop_x", crop_x, count, 0.5), lengths)
        ys = np.repeat(per_sequence("crop_y", crop_y, count, 0.5), lengths)
        flips = np.repeat(per_sequence("mirror", mirror, count, 0.0), lengths).astype(np.int32)
        regions = [
            ops.crop_region((frame.shape[0], frame.shape[1]), config.resize, config.crop, x, y)
            for frame, x, y in zip(flat, xs, ys, strict=True)
        ]
        data, encoded = data_of(flat)
        if not encoded and all(min(frame.shape[:2]) == config.resize for frame in flat):  # nothing to resample
            data = [part_of(frame, *region) for frame, region in zip(data, regions, strict=True)]
            parts = [self._normalised(frames=data[part], mirror=flips[part]) for part in parts_of(data)]
        else:
            stage = self._jpeg_frames if encoded else self._frames
            starts, ends = (np.array([region[k] for region in regions], dtype=np.float32) for k in (0, 1))
            parts = [
                stage(frames=data[part], start=starts[part], end=ends[part], mirror=flips[part])
                for part in parts_of(flat)
            ]
        return list(self._joined(parts, (3, config.crop, config.crop), torch.float32).split(lengths))

    def resized(self, sequences: Sequence[FrameSequence]) -> list[torch.Tensor]:
        """`frames` up to the resize: each sequence (F, H, W, 3) uint8 -> (F, h, w, 3) uint8, min(h, w) = resize.

        `frames` of the result equals `frames` of the source up to one grey level (rounding), so that it can be cached.
        Raises as `frames` does; the frames of one sequence must have one size here.
        """
        return [self._resized_one(checked(sequence)) for sequence in sequences]

    def decodable(self, numbered: Iterable[tuple[int, Frame | None]]) -> list[tuple[int, Frame | None]]:
        """The same with None for each Jpeg that does not decode, found one by one: one of them fails a whole call.

        Raises DataError where the graph does not decode a sound one either.
        """
        kept = [(index, frame if self._decodes(frame) else None) for index, frame in numbered]
        self.frames([[sound_jpeg()]])
        return kept

    def _decodes(self, frame: Frame | None) -> bool:
        if isinstance(frame, Jpeg):
            try:
                self.frames([[frame]])
            except DataError:
                return False
        return True

    def _resized_one(self, frames: list[Frame]) -> torch.Tensor:
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("sequences: the frames of one sequence have different sizes")
        if not frames:
            raise ValueError("sequences: a sequence without frames has no size to resize")
        source = frames[0].shape[:2]
        size = resized_size(*source, self.frame_config.resize)
        if max(size) > MAX_RESIZED:
            shown = f"{source[1]}x{source[0]} resized to {size[1]}x{size[0]}"
            raise DataError(f"frames of {shown} pixels: longer than {MAX_RESIZED}; crop the video first")
        data, encoded = data_of(frames)
        if size == source and not encoded:
            return torch.from_numpy(np.stack(data)).to(self.device)
        stage = self._jpeg_resized if encoded else self._resized
        ends, sizes = (np.tile(np.array(pair, dtype=np.float32), (len(frames), 1)) for pair in (source, size))
        starts = np.zeros_like(ends)
        parts = [
            stage(frames=data[part], size=sizes[part], start=starts[part], end=ends[part]) for part in parts_of(frames)
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
        parts = [self._spectrograms(samples=rows[part]) for part in parts_of(rows)]
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
        blocks = decoded(info, self.frame_config, self.runs_on, self.threads, block)
        return ((first, frames.to(self.device)) for first, frames in blocks)

    def _joined(self, parts: list[torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, *shape, dtype=dtype, device=self.device)

    def _stage(self, define: Callable[..., Any], *arguments: Any) -> _Stage:
        return _Stage(partial(define, *arguments), self.runs_on, self.device, self.threads)

    def _fed(self, name: str, dtype: DALIDataType, ndim: int, layout: str | None = None) -> Any:
        # On a CPU the graph reads the caller's memory. For a GPU it goes through DALI's pinned memory, so that the
        # caller's is free again on return while the transfer may still run.
        return ops.fed(name, dtype, ndim, layout, copy=self.runs_on.type == "cuda")

    def _host_frames(self) -> Any:
        return self._moved(self._fed("frames", DALIDataType.UINT8, 3, "HWC"))

    def _jpegs(self) -> Any:
        return ops.jpeg(self._fed("frames", DALIDataType.UINT8, 1), self.runs_on)

    def _moved(self, data: Any) -> Any:
        return data.gpu() if self.runs_on.type == "cuda" else data

    def _define_frames(self, pictures: Callable[[], Any]) -> Any:
        start, end = (ops.fed(name, DALIDataType.FLOAT, 1) for name in ("start", "end"))
        crop = [self.frame_config.crop] * 2
        pixels = ops.resize(pictures(), crop, start, end)
        return ops.normalise(pixels, self.frame_config, ops.fed("mirror", DALIDataType.INT32, 0))

    def _define_normalised(self) -> Any:
        return ops.normalise(self._host_frames(), self.frame_config, ops.fed("mirror", DALIDataType.INT32, 0))

    def _define_resized(self, pictures: Callable[[], Any]) -> Any:
        size, start, end = (ops.fed(name, DALIDataType.FLOAT, 1) for name in ("size", "start", "end"))
        return ops.resize(pictures(), size, start, end)

    def _define_spectrograms(self) -> Any:
        return ops.log_mel(self._moved(self._fed("samples", DALIDataType.FLOAT, 1)), self.sound_config)


class _Stage:
    """A pipeline that is built when first called: named batches of host arrays -> one tensor on `target`."""

    def __init__(self, define: Callable[[], Any], device: torch.device, target: torch.device, threads: int) -> None:
        self._define, self._device, self._target, self._threads = define, device, target, threads
        self._pipeline: Pipeline | None = None
        self._lock = threading.Lock()

    def __call__(self, **inputs: Any) -> torch.Tensor:
        with self._lock, ops.on(self._device):
            try:
                if self._pipeline is None:
                    self._pipeline = ops.build(self._define, self._device, self._threads, BATCH)
                for name, batch in inputs.items():
                    self._pipeline.feed_input(name, batch)
                return to_torch(self._pipeline, self._device).to(self._target)
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
