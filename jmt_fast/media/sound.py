"""Sound as mono samples placed on the container's clock.

FFmpeg decodes, drops priming samples and applies edit lists. Mixing to mono follows ITU-R BS.775 with weights that add
up to 1, so a sample stays in [-1, 1]; of more than eight channels it is the mean. Blocks that follow each other within
`JITTER` are joined without a seam; a larger gap becomes silence, and what overlaps earlier sound is dropped.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from jmt_fast.media.container import open_media, packets, pick, tick

JITTER = 0.015  # seconds; below one AAC (21 ms) or Opus (20 ms) packet, so that a lost one is noticed
KEPT = 4.0  # seconds of sound kept before the last window
STANDARD = 8  # channels that the standard's mix covers; a recorder with more has a microphone on each
MISSING = 1.0  # seconds missing at the end that are worth a warning

Block = tuple[int, np.ndarray]  # index of the first sample on the clock, float32 samples


def audio(path: str | os.PathLike[str], sample_rate: int = 44_100) -> tuple[float, np.ndarray]:
    """The whole track: (time of the first sample in seconds on the container's clock, float32 (N,) mono in [-1, 1]).

    (0.0, no samples) if the file has no sound. Raises MediaError if the file cannot be opened.
    """
    blocks = list(_blocks(Path(path), sample_rate, []))
    if not blocks:
        return 0.0, np.zeros(0, np.float32)
    start, end = blocks[0][0], blocks[-1][0] + len(blocks[-1][1])
    return start / sample_rate, _assemble(blocks, start, end)


class SoundReader:
    """Windows of a sound track, decoded as a stream: memory stays at a few seconds of sound.

    `path` None, or a file without sound, gives silence. `offset` seconds are added to the track's own times, for sound
    in a file of its own. `warning` is one line if sound could not be decoded, else None; it is complete only when the
    track has been read to its end. Raises MediaError if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None, sample_rate: int = 44_100, offset: float = 0.0):
        if sample_rate < 1:
            raise ValueError(f"sample_rate={sample_rate} must be positive")
        self.sample_rate = sample_rate
        self.offset = offset
        self._path = Path(path) if path is not None else None
        self._open()

    def _open(self) -> None:
        self._notes: list[str] = []
        self._held: deque[Block] = deque()
        self._forgotten = -(2**62)  # samples before this index were dropped
        self._source: Iterator[Block] = iter(())
        if self._path is not None:
            self._source = _blocks(self._path, self.sample_rate, self._notes)
            self._hold_next()  # a bad file is noticed here, not at the first window

    @property
    def warning(self) -> str | None:
        return self._notes[0] if self._notes else None

    def window(self, end_seconds: float, samples: int) -> np.ndarray:
        """float32 (samples,): those that end at `end_seconds` on the clock; zeros where there is no sound.

        Ascending `end_seconds` read the file once; going back more than a few seconds reads it again from its start.
        """
        if samples < 0:
            raise ValueError(f"samples={samples} must not be negative")
        end = round((end_seconds - self.offset) * self.sample_rate)
        start = end - samples
        if start < self._forgotten:
            self.close()
            self._open()
        oldest = start - int(KEPT * self.sample_rate)
        self._forget(oldest)
        while (not self._held or _end(self._held[-1]) < end) and self._hold_next():
            self._forget(oldest)
        return _assemble(self._held, start, end)

    def _hold_next(self) -> bool:
        block = next(self._source, None)
        if block is not None:
            self._held.append(block)
        return block is not None

    def _forget(self, before: int) -> None:
        while self._held and _end(self._held[0]) <= before:
            self._forgotten = _end(self._held.popleft())

    def close(self) -> None:
        """Close the file. Windows read afterwards hold only what was decoded before."""
        close = getattr(self._source, "close", None)
        if close:
            close()

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(block: Block) -> int:
    return block[0] + len(block[1])


def _assemble(blocks, start: int, end: int) -> np.ndarray:
    out = np.zeros(max(end - start, 0), np.float32)
    for at, samples in blocks:
        low, high = max(at, start), min(at + len(samples), end)
        if low < high:
            out[low - start : high - start] = samples[low - at : high - at]
    return out


def _blocks(path: Path, sample_rate: int, notes: list[str]) -> Iterator[Block]:
    """Blocks of mono samples in order, none overlapping another. A line is added to `notes` for sound that is lost."""
    with open_media(path) as container:
        stream = pick([stream for stream in container.streams.audio if stream.codec_context is not None])
        if stream is None:
            if container.streams.audio:
                notes.append(f"{path}: no decoder for its sound: silence is used")
            return
        unit = tick(stream)
        track = _Track(sample_rate)
        failed = 0
        for packet in chain(packets(container, stream), [None]):
            try:
                decoded = stream.codec_context.decode(packet)
            except av.FFmpegError:
                failed += 1
                continue
            for frame in decoded:
                yield from track.add(frame, None if frame.pts is None else frame.pts * unit)
        yield from track.flush()
        declared = ((stream.start_time or 0) + stream.duration) * unit if stream.duration else 0.0
        if failed:
            notes.append(f"{path}: {failed} packets of sound cannot be decoded: silence is used there")
        elif track.end / sample_rate < declared - MISSING:
            end = max(track.end, 0) / sample_rate
            notes.append(f"{path}: the sound breaks off at {end:.1f} s of {declared:.1f} s: silence from there on")


class _Track:
    """Resamples decoded frames and gives each block its place on the clock."""

    def __init__(self, sample_rate: int):
        self.rate = sample_rate
        self.resampler: AudioResampler | None = None
        self.kind: tuple = ()
        self.began = 0.0  # time of the first sample of the current seamless run
        self.taken = 0.0  # seconds that the run has taken in
        self.position = 0  # index of the next sample out of the resampler
        self.end = -(2**62)  # index behind the last sample given out

    def add(self, frame: av.AudioFrame, time: float | None) -> Iterator[Block]:
        expected = self.began + self.taken
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        time = expected if time is None else time
        if self.resampler is None or kind != self.kind or abs(time - expected) > JITTER:
            yield from self.flush()
            self.kind, self.began, self.taken = kind, time, 0.0
            self.position = round(time * self.rate)
            # Without this limit FFmpeg mixes floating point with weights whose sum is above 1.
            self.resampler = AudioResampler("flt", "mono", self.rate, options={"rematrix_maxval": "1.0"})
        self.taken += frame.samples / frame.sample_rate
        yield from self._place(_finite(frame if len(frame.layout.channels) <= STANDARD else _mean(frame)))

    def flush(self) -> Iterator[Block]:
        if self.resampler is not None:
            yield from self._place(None)
            self.resampler = None

    def _place(self, frame: av.AudioFrame | None) -> Iterator[Block]:
        assert self.resampler is not None
        if frame is not None:
            frame.pts = None  # the place is kept here
        for out in self.resampler.resample(frame):
            if out is None:
                continue
            samples = np.clip(out.to_ndarray()[0], -1.0, 1.0)
            start = self.position
            self.position += len(samples)
            samples = samples[max(self.end - start, 0) :]
            if len(samples):
                self.end = self.position
                yield self.position - len(samples), samples


def _mean(frame: av.AudioFrame) -> av.AudioFrame:
    """Mono: the mean of all channels, for which FFmpeg's mix would take the front ones alone."""
    channels = len(frame.layout.channels)
    [packed] = AudioResampler("flt", frame.layout, frame.sample_rate).resample(frame)
    samples = packed.to_ndarray().reshape(-1, channels).mean(axis=1, dtype=np.float32)
    mono = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
    mono.sample_rate = frame.sample_rate
    return mono


def _finite(frame: av.AudioFrame) -> av.AudioFrame:
    """The frame, with 0 for every sample that is not finite: the resampler would spread it."""
    if not frame.format.name.startswith(("flt", "dbl")):
        return frame
    samples: Any = frame.to_ndarray()
    if np.isfinite(samples).all():
        return frame
    clean = av.AudioFrame.from_ndarray(
        np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), frame.format.name, frame.layout.name
    )
    clean.sample_rate = frame.sample_rate
    return clean
