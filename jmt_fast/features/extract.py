"""From a recording to the two CNN features of each of its clips, in blocks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from jmt_fast.config import CLIP_FRAMES, FeatureConfig
from jmt_fast.data.graph import ClipGraph
from jmt_fast.data.recording import OpenRecording
from jmt_fast.data.windows import clip_frames, clip_times
from jmt_fast.errors import MediaError
from jmt_fast.faces import Cropper, Detector, Person, detector, find_people, looked_at, meant
from jmt_fast.features.frames import FrameSource, choose_decoder
from jmt_fast.features.store import VideoFeatures
from jmt_fast.features.turns import Turns
from jmt_fast.models import Backbones, Clips, fast_inference
from jmt_fast.runtime import Runtime
from jmt_fast.threads import ahead

CLIPS_PER_BLOCK = 32  # the float32 frames of such a block take 42 MB at 224 x 224 and a stride of 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """Consecutive clips: `first` is the index of the first, `times` float64 (n,) seconds, features float32 (n, D)."""

    first: int
    times: np.ndarray
    visual: torch.Tensor
    audio: torch.Tensor

    @property
    def clips(self) -> torch.Tensor:
        """Both side by side, float32 (n, D_visual + D_audio)."""
        return torch.cat((self.visual, self.audio), 1)


class Extractor:
    """Frozen backbones behind the media graph. One instance serves any number of recordings, in several threads too."""

    def __init__(self, config: FeatureConfig, backbones: Backbones, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime
        self.turns = Turns()
        self.graph = ClipGraph(config.frames, config.sound, runtime.device)
        crop, sound = config.frames.crop, config.sound
        # On a CPU each thread takes whole clips, so a batch is a multiple of the threads.
        batch = 32 if runtime.device.type == "cuda" else 2 * torch.get_num_threads()
        clips = torch.randn(batch, 3, CLIP_FRAMES, crop, crop, device=runtime.device)
        spectrograms = torch.randn(max(batch, 16), 1, sound.mels, sound.columns, device=runtime.device)
        self.visual = self.turns.shared(fast_inference(backbones.visual, clips, runtime), Clips.cat)
        self.audio = self.turns.shared(fast_inference(backbones.audio, spectrograms, runtime), torch.cat)

    def people(self, recording: OpenRecording, progress: Progress | None = None) -> list[Person]:
        """Everybody whose face is in the video, the largest first; `progress(done, total)` counts frames.

        Raises JMTError when the detector's weights cannot be had, MediaError when nothing decodes.
        """
        times = recording.timestamps
        frames = ahead(recording.frames(looked_at(times)))
        return find_people(
            frames, times, self._detector, lambda index: progress(index + 1, len(times)) if progress else None
        )

    @cached_property
    def _detector(self) -> Detector:
        found = detector(self.runtime, self.config.detector)
        return lambda pictures: self.turns(found, pictures)

    def looks_for_faces(self, recording: OpenRecording) -> bool:
        """Prepared crops are faces already."""
        return self.config.region == "face" and recording.recording.crops is None

    def stream(self, recording: OpenRecording, stride: int, person: Person | None = None) -> ClipStream:
        """The clips of a recording. Where faces are looked for, of `person`, by default the recording's own."""
        if person is None and self.looks_for_faces(recording):
            person = meant(self.people(recording), recording)
        return ClipStream(self, recording, stride, person)

    def extract(self, recording: OpenRecording, stride: int, progress: Progress | None = None) -> VideoFeatures:
        """All clips of one recording, features (N, D) in the runtime's precision on the CPU.

        Raises MediaError when nothing decodes.
        """
        stream = self.stream(recording, stride)
        blocks = []
        for block in stream:
            blocks.append(block)
            if progress:
                progress(block.first + len(block.times), stream.clips)
        return VideoFeatures(
            name=recording.recording.name,
            stride=stride,
            times=np.concatenate([block.times for block in blocks]),
            clips=torch.cat([block.clips for block in blocks]).to("cpu", self.runtime.dtype),
            visual_dim=blocks[0].visual.shape[1],
            timestamps=stream.timestamps,
            face=stream.face(),
        )


class ClipStream:
    """Iterates over the blocks of one recording, in the order of their times.

    `timestamps` float64 (F,) are the recording's, less those of frames that its stream turned out not to have;
    `clips` is the number of clips that they make.
    """

    def __init__(
        self, extractor: Extractor, recording: OpenRecording, stride: int, person: Person | None = None
    ) -> None:
        self._extractor = extractor
        self._recording = recording
        self._stride = stride
        self._plan(recording.timestamps)
        self._wanted = np.unique(self._frames)
        self._person = person
        graph, config, cropper = extractor.graph, extractor.config, None
        if person is not None or (config.region == "none" and recording.recording.crops is None):
            cropper = Cropper(config.frames, graph.device, person)
        in_graph = choose_decoder(recording, graph, cropper).gpu
        self._source = FrameSource(recording, self._wanted, graph, in_graph, cropper)

    def _plan(self, timestamps: np.ndarray) -> None:
        self.timestamps = timestamps
        self._times = clip_times(timestamps, self._stride)
        self._frames = clip_frames(timestamps, self._times)

    @property
    def clips(self) -> int:
        return len(self._times)

    @property
    def lost(self) -> int:
        """Frames that the file's index promises and its stream does not have."""
        return len(self._recording.timestamps) - len(self.timestamps) + len(self._source.missing)

    def face(self) -> np.ndarray:
        """bool (F,): the frame was there, and the face on it where faces are looked for.

        A frame between two sampled ones is there if the earlier one is.
        """
        there = np.ones(len(self.timestamps), bool)
        for index in self._source.missing:
            following = self._wanted[np.searchsorted(self._wanted, index, "right") :]
            there[index : following[0] if len(following) else None] = False
        return there if self._person is None else there & self._person.valid[: len(there)]

    def __iter__(self) -> Iterator[Block]:
        networks = self._extractor
        for first, times, clips, spectrograms in ahead(self._prepared()):  # the next one while the networks run
            yield Block(first, times, networks.visual(clips), networks.audio(spectrograms))

    def _prepared(self) -> Iterator[tuple[int, np.ndarray, Clips, torch.Tensor]]:
        """What the networks take, block by block: index of the first clip, times, frames, spectrograms."""
        config = self._extractor.config
        sound = self._recording.sound(config.sound.sample_rate)
        first = 0
        with closing(self._source):
            while first < len(self._times):
                clips = self._source.clips(self._frames[first : first + CLIPS_PER_BLOCK])
                if self._source.ended is not None and self._source.ended < len(self.timestamps):
                    if not self._source.ended:
                        raise MediaError(
                            f"{self._recording.recording.video}: no frame can be decoded; convert or replace the file"
                        )
                    self._plan(self.timestamps[: self._source.ended])
                    continue
                times = self._times[first : first + CLIPS_PER_BLOCK]
                windows = np.stack([sound.window(time, config.sound.samples) for time in times])
                yield first, times, clips, self._extractor.graph.spectrograms(windows)
                first += len(times)
