"""One video in, one trace out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from jmt_fast.config import CLIP_STEP
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.data.traces import to_frames
from jmt_fast.features import Block, Extractor, VideoFeatures, run_sequences
from jmt_fast.inference.trace import Trace
from jmt_fast.models import Checkpoint, prepare_fusion
from jmt_fast.runtime import Runtime

Progress = Callable[[int, int], None]


class Predictor:
    """A loaded checkpoint, ready for any number of videos."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.fusion = prepare_fusion(checkpoint.fusion, runtime)
        self.audio = checkpoint.backbones.audio.to(runtime.device)
        self.extractor = Extractor(checkpoint.features, checkpoint.backbones.to(runtime.device), runtime)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "auto", precision: str = "auto", compile: bool | None = None
    ) -> Predictor:
        """Load a checkpoint folder.

        Raises CheckpointError when a part is missing, damaged or of another configuration.
        """
        return cls(Checkpoint.load(folder), Runtime.choose(device, precision, compile))

    def predict(
        self, path: str | Path, stride: int = 8, sound: str | Path | None = None, progress: Progress | None = None
    ) -> Trace:
        """Valence and arousal of every decoded frame of a video.

        `stride`: thirtieths of a second between clips, one of 1, 2, 4, 8, 16, 32; frames between clips are interpolated
        by timestamp. `sound`: a file to take the sound from instead. Frames and features pass through in blocks; what
        grows with the video is the trace itself, some 40 bytes a frame. Raises MediaError when the file cannot be used.
        """
        path = Path(path)
        recording = OpenRecording(Recording(path.stem, path, sound=Path(sound) if sound else None))
        stream = self.extractor.stream(recording, stride)
        length = self.fusion.config.length
        times, values = [], []
        # so many consecutive clips hold exactly one sequence of each interleaved phase
        for part in _regrouped(stream, CLIP_STEP // stride * length, recording.recording.name, stride):
            times.append(part.times)
            values.append(run_sequences(self.fusion, self.audio, part, length))
            if progress:
                progress(sum(map(len, times)), stream.clips)
        frames = to_frames(np.concatenate(times), np.concatenate(values), stream.timestamps)
        warnings = []
        if stream.lost:
            warnings.append(
                f"{path}: {stream.lost} of {len(recording.timestamps)} frames cannot be decoded (file damaged)"
            )
        return Trace.build(path, stream.timestamps, frames, stream.face(), warnings=warnings)


def _regrouped(blocks: Iterable[Block], size: int, name: str, stride: int) -> Iterator[VideoFeatures]:
    """Blocks of any length -> parts of `size` consecutive clips; the last one may be shorter."""
    times, visual, audio = np.empty(0), torch.empty(0), torch.empty(0)
    for block in blocks:
        times = np.concatenate([times, block.times])
        visual = torch.cat([visual.to(block.visual.device), block.visual])
        audio = torch.cat([audio.to(block.audio.device), block.audio])
        while len(times) >= size:
            yield _part(name, stride, times[:size], visual[:size], audio[:size])
            times, visual, audio = times[size:], visual[size:], audio[size:]
    if len(times):
        yield _part(name, stride, times, visual, audio)


def _part(name: str, stride: int, times: np.ndarray, visual: torch.Tensor, audio: torch.Tensor) -> VideoFeatures:
    return VideoFeatures(name, stride, times, visual, audio, timestamps=times, face=np.ones(len(times), bool))
