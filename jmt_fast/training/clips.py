"""Clips of video for training: where they are, what they show, what is said of them."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jmt_fast.config import CLIP_FRAMES, DetectorName, Region
from jmt_fast.data import OpenRecording, Recording, clip_frames, clip_labels, clip_times
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import DataError, MediaError
from jmt_fast.faces import Cropper, Person, detector, find_people, looked_at, meant
from jmt_fast.media.images import Jpeg
from jmt_fast.runtime import Runtime
from jmt_fast.threads import ahead
from jmt_fast.training.distributed import of_all, own

CHUNK = 32  # decoded frames held at once: 200 MB at 1920 x 1080
Chunk = list[tuple[int, np.ndarray | Jpeg | None]]
Pictures = Iterator[tuple[list[int], np.ndarray | None]]  # indices of n frames, and the frames, uint8 (n, h, w, 3)
Progress = Callable[[int, int, str], None]


class Clips(ABC):
    """Clips of 8 resized frames (h, w, 3) uint8, by video and time.

    `targets` float32 (C, 2), -5 where there is no label; `times` float64 (C,), seconds; `videos` int64 (C,): of each
    clip, which of the recordings `opened`, whose labels of frames are `labels`, each float32 (F, 2). `workers`: threads
    that are worth their while in making batches.
    """

    targets: np.ndarray
    times: np.ndarray
    videos: np.ndarray
    workers: int

    def __init__(self, graph: ClipGraph) -> None:
        self.graph = graph
        self.opened: list[OpenRecording] = []
        self.labels: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def frames(self, clip: int) -> list[np.ndarray]:
        """The eight frames of a clip, black where one is missing."""

    def inputs(
        self,
        clips: np.ndarray,
        crop_x: np.ndarray | None = None,
        crop_y: np.ndarray | None = None,
        mirror: np.ndarray | None = None,
    ) -> Tensor:
        """The pictures of some clips: uint8 (n, 8, crop, crop, 3), by default the centre crop.

        `crop_x`, `crop_y` in [0, 1] and `mirror`, one value a clip, place and flip the crop of all its frames.
        """
        side = self.graph.frame_config.crop
        middle = np.full(len(clips), 0.5)
        x, y = middle if crop_x is None else crop_x, middle if crop_y is None else crop_y
        pinned = self.graph.device.type == "cuda"  # or the copy to the device would wait for the step before
        found = torch.empty(len(clips), CLIP_FRAMES, side, side, 3, dtype=torch.uint8, pin_memory=pinned)
        pictures = found.numpy()
        for number, clip in enumerate(clips):
            across = slice(None, None, -1 if mirror is not None and mirror[number] else 1)
            for position, frame in enumerate(self.frames(clip)):
                height, width, _ = frame.shape
                top, left = int(y[number] * (height - side) + 0.5), int(x[number] * (width - side) + 0.5)
                pictures[number, position] = frame[top : top + side, left : left + side][:, across]
        return found

    def black(self) -> np.ndarray:
        return np.zeros((self.graph.frame_config.resize, self.graph.frame_config.resize, 3), np.uint8)


class ClipReader(Clips):
    """The clips of some recordings, at `stride`, decoded when they are asked for.

    Each clip is a seek to the keyframe before it. Safe to use from several threads. Clips without a label are left out
    unless `every`. Of raw videos with region `face` the faces are looked for here, once, by the ranks together, on
    `runtime`, with the detector that `find` names. A recording that cannot be probed, or whose person is not there, is
    passed over with a warning; frames that cannot be decoded are black. Raises DataError when no clip is left, JMTError
    when the face detector cannot be had; `frames` raises MediaError for a file that has become unreadable.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        graph: ClipGraph,
        stride: int,
        label: Literal["end", "mean"] = "end",
        label_lag: float = 0.0,
        progress: Progress | None = None,
        *,
        every: bool = False,
        region: Region = "center",
        find: DetectorName = "centerface",
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(graph)
        self.workers = len(os.sched_getaffinity(0))
        self._open(recordings, progress)
        self._croppers: list[Cropper | None] = [None] * len(self.opened)
        if region != "center":
            self._crop(region, find, runtime, progress)
        targets, times = [np.zeros((0, 2), np.float32)], [np.zeros(0)]
        rows, videos = [np.zeros((0, CLIP_FRAMES), np.int64)], [np.zeros(0, np.int64)]
        for number, opened in enumerate(self.opened):
            ends = clip_times(opened.timestamps, stride)
            target, known = clip_labels(self.labels[number], opened.timestamps, ends, mode=label, lag=label_lag)
            known |= every
            targets.append(target[known])
            times.append(ends[known])
            rows.append(clip_frames(opened.timestamps, ends[known]))
            videos.append(np.full(known.sum(), number))
        self.targets, self.times, self.rows = np.concatenate(targets), np.concatenate(times), np.concatenate(rows)
        self.videos = np.concatenate(videos)
        if not len(self):
            raise DataError(f"no labelled clip in {len(recordings)} recordings; check splits and annotations")

    def _open(self, recordings: Sequence[Recording], progress: Progress | None) -> None:
        for number, recording in enumerate(recordings):
            try:
                opened = OpenRecording(recording)
                self.labels.append(opened.labels())
                self.opened.append(opened)
            except MediaError as error:
                _pass_over(error)
            if progress:
                progress(number + 1, len(recordings), f"clips of {recording.name}")

    def frames(self, clip: int) -> list[np.ndarray]:
        row = self.rows[clip]
        pictures: dict[int, np.ndarray] = {}
        for indices, resized in self.pictures(int(self.videos[clip]), np.unique(row)):
            if resized is not None:
                pictures.update(zip(indices, resized, strict=True))
        return [pictures[index] if index in pictures else self.black() for index in row.tolist()]

    def pictures(self, number: int, indices: np.ndarray) -> Pictures:
        """Frames of the recording `opened[number]`, resized or cropped to the shorter side that the graph resizes to.

        `indices` sorted. None stands for frames without a picture; what the stream does not have is left out.
        """
        cropper = self._croppers[number]
        frames = self.opened[number].pictures(indices, self.graph.shorter if cropper is None else None)
        while chunk := list(islice(frames, CHUNK)):
            try:
                runs = list(self._resized(chunk, cropper))
            except DataError:
                runs = list(self._resized(self.graph.decodable(chunk), cropper))
            yield from runs

    def _resized(self, chunk: Chunk, cropper: Cropper | None) -> Pictures:
        for shape, run in groupby(chunk, lambda frame: None if frame[1] is None else frame[1].shape):
            places, shown = zip(*run, strict=True)
            if shape is None:
                yield list(places), None
            elif cropper is None:
                yield list(places), self.graph.resized([shown])[0].cpu().numpy()
            else:
                cut = cropper.cut(list(zip(places, shown, strict=True)))
                yield list(places), cut.round().byte().permute(0, 2, 3, 1).cpu().numpy()

    @property
    def size(self) -> int:
        """Bytes of all resized frames that the clips need, about."""
        side = self.graph.frame_config.resize
        total = 0
        for number, opened in enumerate(self.opened):
            square = opened.recording.crops is not None or self._croppers[number] is not None
            sides = (1, 1) if square else (opened.info.height, opened.info.width)
            count = len(np.unique(self.rows[self.videos == number]))
            total += count * 3 * side * side * max(sides) // min(sides)
        return total

    def _crop(self, region: Region, name: DetectorName, runtime: Runtime | None, progress: Progress | None) -> None:
        """Cut faces, or whole pictures in squares, out of raw videos from now on."""
        raw = [number for number, opened in enumerate(self.opened) if opened.recording.crops is None]
        people: dict[int, Person | MediaError] = {}
        if region == "face" and raw:
            assert runtime is not None
            find, mine = detector(runtime, name), own(raw)
            for done, number in enumerate(mine):
                opened = self.opened[number]
                try:
                    frames = ahead(opened.frames(looked_at(opened.timestamps)))
                    people[number] = shown = meant(find_people(frames, opened.timestamps, find), opened)
                    if not shown.valid.any():
                        warnings.warn(
                            f"{opened.recording.video}: no face found, so its clips are black; --crop center takes the "
                            "picture's middle",
                            stacklevel=3,
                        )
                except MediaError as error:
                    people[number] = error
                if progress:
                    progress(done + 1, len(mine), f"faces of {opened.recording.name}")
            people = {number: found for part in of_all(people) for number, found in part.items()}
        config = self.graph.frame_config
        whole = config.model_copy(update={"crop": config.resize})
        before, self._croppers = list(zip(self.opened, self.labels, strict=True)), []
        self.opened, self.labels = [], []
        for number, (opened, labels) in enumerate(before):
            person = people.get(number)
            if isinstance(person, MediaError):
                _pass_over(person)
                continue
            self.opened.append(opened)
            self.labels.append(labels)
            self._croppers.append(Cropper(whole, self.graph.device, person) if number in raw else None)


def _pass_over(error: MediaError) -> None:
    warnings.warn(f"{error}; training goes on without it", stacklevel=4)
