"""One video in, one trace out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
import torch

from jmt_fast.config import CLIP_STEP, DetectorName, Region
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.data.traces import to_frames
from jmt_fast.errors import MediaError
from jmt_fast.faces import Person
from jmt_fast.features import Block, Extractor, VideoFeatures, run_sequences
from jmt_fast.inference.trace import Trace
from jmt_fast.models import Checkpoint, prepare_fusion
from jmt_fast.runtime import Runtime
from jmt_fast.threads import threads

Progress = Callable[[int, int], None]
LOOKING = 0.1  # of the bar; what finding faces takes of the time on a processor, or less


@dataclass(frozen=True)
class Outcome:
    """What became of one video: the trace of a person in it, or the reason why there is none."""

    video: Path
    trace: Trace | None = None
    error: MediaError | None = None


class Predictor:
    """A loaded checkpoint, ready for any number of videos."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: Runtime,
        region: Region | None = None,
        detector: DetectorName | None = None,
    ) -> None:
        """`region`: what to see of a frame, `detector`: what looks for faces; by default what the checkpoint was
        trained with (`FeatureConfig`)."""
        changes = {"region": region, "detector": detector}
        features = checkpoint.features.model_copy(update={name: new for name, new in changes.items() if new})
        self.fusion = prepare_fusion(checkpoint.fusion, runtime)
        self.audio = checkpoint.backbones.audio.to(runtime.device)
        self.extractor = Extractor(features, checkpoint.backbones.to(runtime.device), runtime)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: str = "auto",
        compile: bool | None = None,
        region: Region | None = None,
        detector: DetectorName | None = None,
    ) -> Predictor:
        """Load a checkpoint folder.

        Raises CheckpointError when a part is missing, damaged or of another configuration.
        """
        return cls(Checkpoint.load(folder), Runtime.choose(device, precision, compile), region, detector)

    def predict(
        self,
        path: str | Path,
        stride: int = 8,
        sound: str | Path | None = None,
        progress: Progress | None = None,
        person: str = "largest",
    ) -> Trace:
        """Valence and arousal of every decoded frame of a video: `predict_people` for one person, not all."""
        [trace] = self.predict_people(path, stride, sound, progress, person)
        return trace

    def predict_people(
        self,
        path: str | Path,
        stride: int = 8,
        sound: str | Path | None = None,
        progress: Progress | None = None,
        person: str = "all",
    ) -> Iterator[Trace]:
        """Valence and arousal of every decoded frame of a video, one trace a person, the largest first.

        `stride`: thirtieths of a second between clips, one of 1, 2, 4, 8, 16, 32; frames between clips are interpolated
        by timestamp. `sound`: a file to take the sound from instead. Frames and features pass through in blocks; what
        grows with the video is the trace itself, some 40 bytes a frame, and the places of the face in work, some 50.

        `person`, where faces are looked for: `largest`, `all`, or the number of one, "0" being the largest. Where a
        person is not seen, rows are not valid; a video without any face gives one trace of such rows. Raises MediaError
        when the file cannot be used or has no such person.
        """
        path = Path(path)
        recording = OpenRecording(Recording(path.stem, path, sound=Path(sound) if sound else None))
        if not self.extractor.looks_for_faces(recording):
            yield self._trace(path, recording, stride, None, progress)
            return
        looking = _share(progress, 0, LOOKING)
        people = self.extractor.people(recording, looking)
        chosen = _chosen(path, people, person) or [Person.nobody(len(recording.timestamps))]
        for number, each in enumerate(chosen):
            part = (1 - LOOKING) / len(chosen)
            trace = self._trace(path, recording, stride, each, _share(progress, LOOKING + number * part, part))
            yield replace(trace, warnings=trace.warnings + _remarks(path, each, people, person))

    def predict_many(
        self, paths: Iterable[str | Path], stride: int = 8, person: str = "largest", together: int = 2
    ) -> Iterator[Outcome]:
        """`predict_people` for each video, in the order in which they are finished; one that cannot be used is an
        outcome with its error.

        `together` videos are in work at the same time: one is opened, decoded or interpolated while another one is in
        the networks, and clips that wait for those at the same time share a batch. `paths` is read as videos finish.
        """

        stopped = Event()

        def check(done: int, total: int) -> None:
            if stopped.is_set():  # nobody waits for the rest of a long video
                raise CancelledError

        def one(path: Path) -> list[Outcome]:
            try:
                return [
                    Outcome(path, trace) for trace in self.predict_people(path, stride, progress=check, person=person)
                ]
            except MediaError as error:
                return [Outcome(path, error=error)]

        left = map(Path, paths)
        with threads(together, "video") as pool:
            try:
                work: set[Future[list[Outcome]]] = {pool.submit(one, path) for path in islice(left, together)}
                while work:
                    done, work = wait(work, return_when=FIRST_COMPLETED)
                    work |= {pool.submit(one, path) for path in islice(left, len(done))}
                    for future in done:
                        yield from future.result()
            finally:
                stopped.set()

    def _trace(
        self, path: Path, recording: OpenRecording, stride: int, person: Person | None, progress: Progress | None
    ) -> Trace:
        stream = self.extractor.stream(recording, stride, person)
        length = self.fusion.config.length
        times, values = [], []
        # so many consecutive clips hold exactly one sequence of each interleaved phase
        for part in _regrouped(stream, CLIP_STEP // stride * length, recording.recording.name, stride):
            times.append(part.times)
            values.append(self.extractor.turns(run_sequences, self.fusion, self.audio, part, length))
            if progress:
                progress(sum(map(len, times)), stream.clips)
        frames = to_frames(np.concatenate(times), np.concatenate(values), stream.timestamps)
        warnings = []
        if stream.lost:
            warnings.append(
                f"{path}: {stream.lost} of {len(recording.timestamps)} frames cannot be decoded (file damaged)"
            )
        return Trace.build(path, stream.timestamps, frames, stream.face(), person.id if person else "0", warnings)


def _share(progress: Progress | None, begin: float, size: float) -> Progress | None:
    """A progress of its own for a part of the work, in thousandths of the whole."""
    return progress and (lambda done, total: progress(round(1000 * (begin + size * done / max(total, 1))), 1000))


def _chosen(path: Path, people: list[Person], person: str) -> list[Person]:
    if person == "all":
        return people
    if person == "largest":
        return people[:1]
    if found := [each for each in people if each.id == person]:
        return found
    there = f"its people are {', '.join(each.id for each in people)}" if people else "it shows no face"
    raise MediaError(f"{path}: no person {person}: {there}")


def _remarks(path: Path, person: Person, people: list[Person], asked: str) -> list[str]:
    if not people:
        return [f"{path}: no face found, so the picture was black throughout; --crop center takes the picture's middle"]
    remarks = []
    share = person.valid.mean()
    if share < 0.5:
        remarks.append(f"{path}: person {person.id} is seen in {share:.0%} of the frames")
    if len(people) > 1 and asked == "largest":
        remarks.append(f"{path}: {len(people)} people are seen, this is the largest; --person all takes each")
    return remarks


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
    clips = torch.cat((visual, audio), 1)
    return VideoFeatures(name, stride, times, clips, visual.shape[1], timestamps=times, face=np.ones(len(times), bool))
