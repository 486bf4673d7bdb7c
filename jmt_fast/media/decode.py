"""Decoded frames with their exact indices, and nothing that was patched.

Index. A decoded frame's index is that of its presentation time among the times of `probe`, so a packet that is lost or
damaged leaves a hole and never shifts the frames behind it.

Damage. FFmpeg patches a damaged frame with pieces of older ones, and goes on from there as if nothing were wrong. Such
frames are left out, and so are all that may refer to them: every frame up to the next keyframe. What a codec without
checksums decodes to wrong pixels without noticing cannot be told.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from jmt_fast.media.container import ignore_others, open_media, packets, tick
from jmt_fast.media.probe import MediaInfo, video_stream

SAME_TIME = 1e-6  # seconds
SPARED = ("h264", "hevc")  # codecs whose decoders can leave out frames that no other refers to
# Half the cores: on two, one thread takes 0.75 of the time that FFmpeg's own choice of three takes together.
DECODERS = max(1, (os.cpu_count() or 1) // 2)
SEEK_FRAMES = 50  # a keyframe this far in is worth a seek


class Wanted:
    """Ascending indices of frames, read from their source as far as is asked."""

    def __init__(self, indices: Iterable[int]) -> None:
        self._source = self._checked(indices)
        self._read: deque[int] = deque()
        self.pass_by(0)

    @property
    def first(self) -> int | None:
        """The next one; None behind the last."""
        return self._read[0] if self._read else None

    def pass_by(self, index: int) -> None:
        """Forget what lies before `index`."""
        while self._read and self._read[0] < index:
            self._read.popleft()
        while not self._read or self._read[-1] < index:
            if (following := next(self._source, None)) is None:
                return
            if following >= index:
                self._read.append(following)

    def __contains__(self, index: int) -> bool:
        while self._read and self._read[-1] < index and (following := next(self._source, None)) is not None:
            self._read.append(following)
        return index in self._read  # a few: what lies between a packet and the frames that come out

    @staticmethod
    def _checked(indices: Iterable[int]) -> Iterator[int]:
        for before, index in pairwise(chain([-1], indices)):
            if index <= before:
                raise ValueError(f"indices must be >= 0 and ascend strictly, got {index} after {before}")
            yield int(index)


class _Origin(NamedTuple):
    """The packet that a frame was made of: its place in the order of decoding and its presentation time in ticks."""

    number: int
    pts: int | None


def _origin(frame: av.VideoFrame) -> _Origin:
    assert isinstance(frame.opaque, _Origin)
    return frame.opaque


class _DamageError(Exception):
    """A packet failed, or a frame is marked as patched, while several threads decoded."""


def decode(path: Path, info: MediaInfo, wanted: Wanted) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) of every wanted frame that decodes, and of others, as a linear decode gives them.

    With threads until something is wrong; from there on with one, which alone tells what packet it was.
    """
    first, last = wanted.first or 0, -1
    try:
        for last, frame in _from_nearest_key(path, info, first, wanted):
            yield last, frame
        return
    except _DamageError:
        pass
    for index, frame in _from_nearest_key(path, info, max(first, last + 1), None):
        if index > last:
            yield index, frame


def _from_nearest_key(
    path: Path, info: MediaInfo, first: int, wanted: Wanted | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    keys = set(info.keyframes.tolist())
    rank, back = int(np.searchsorted(info.keyframes, first, "right")) - 1, 1
    while info.timed and rank >= 0 and info.keyframes[rank] >= SEEK_FRAMES:
        begun = False
        for index, frame in _from_key(path, info, int(info.keyframes[rank]), wanted):
            if not begun and index > first:  # the keyframe is damaged, or the demuxer went elsewhere (MPEG-TS does)
                break
            begun = begun or index in keys  # frames shown before the keyframe may refer to others before it
            if begun:
                yield index, frame
        if begun:
            return
        rank, back = rank - back, 2 * back
    yield from _from_key(path, info, 0, wanted)


def _from_key(path: Path, info: MediaInfo, key: int, wanted: Wanted | None) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) of every frame that decodes from one keyframe on; from the beginning if it is 0.

    With `wanted` indices others may be left out, and damage raises _DamageError; without, damaged frames are left out.
    """
    with open_media(path) as container:
        stream = video_stream(container, path)
        unit = tick(stream)
        ignore_others(container, stream)
        if key:
            try:
                container.seek(round(info.timestamps[key] / unit), stream=stream)
            except av.FFmpegError:
                return
        context, exact = stream.codec_context, wanted is None
        fed = packets(container, stream)
        if wanted is not None and info.timed and info.codec in SPARED:
            fed = _spared(context, fed, info.timestamps, unit, wanted)
        least = 0  # no later frame can have a lower index
        for frame, whole in _decoded(context, fed, exact):
            # Once a packet has failed, FFmpeg's time for an MPEG-4 frame may be another's; its packet's own is right.
            ticks = None if frame is None else _origin(frame).pts if exact else frame.pts
            if frame is not None and info.timed and ticks is not None:
                index = max(_index(info.timestamps, ticks * unit), least)
                if index >= info.frames or info.timestamps[index] > ticks * unit + SAME_TIME:
                    continue  # a frame that `probe` saw no packet for
            elif frame is not None:
                index = least
            else:
                least += not info.timed
                continue
            if index < info.frames and whole:
                yield index, frame
            least = index + 1


def _index(timestamps: np.ndarray, seconds: float) -> int:
    return int(np.searchsorted(timestamps, seconds - SAME_TIME))


def _spared(
    context: VideoCodecContext, packets: Iterator[av.Packet], timestamps: np.ndarray, unit: float, wanted: Wanted
) -> Iterator[av.Packet]:
    """The packets; while one is used, the decoder is told to leave it out if nobody wants or refers to its frame."""
    for packet in packets:
        unwanted = packet.pts is not None and _index(timestamps, packet.pts * unit) not in wanted
        context.skip_frame = "NONREF" if unwanted else "DEFAULT"
        yield packet


def _decoded(
    context: VideoCodecContext, packets: Iterator[av.Packet], exact: bool
) -> Iterator[tuple[av.VideoFrame | None, bool]]:
    """Frames in order of presentation, and whether each is whole; (None, False) for every packet that failed.

    Not whole is a frame decoded after a failed packet, or after a patched frame, if no keyframe decoded still later has
    been shown yet. Raises _DamageError instead, if not `exact`, at the first sign of damage.
    """
    _prepare(context, exact)
    bad: list[int] = []  # numbers of the packets whose damage still matters
    held: list[av.VideoFrame | None] = []  # B-frames are shown before the frame that follows them, but refer to it
    for number, packet in enumerate(chain(packets, [None])):
        if packet is not None and exact:
            packet.opaque = _Origin(number, packet.pts)
        shown = _decode_one(context, packet)
        if not exact and (shown is None or any(frame.is_corrupt for frame in shown)):
            raise _DamageError
        if shown is None:
            bad.append(number)
            held.append(None)
        for frame in shown or ():
            if frame.is_corrupt:
                bad.append(_origin(frame).number)
            elif frame.pict_type == PictureType.B:
                held.append(frame)
                continue
            yield from _judged(held, bad)
            held.clear()
            if frame.key_frame and not frame.is_corrupt:
                bad = [each for each in bad if each > _origin(frame).number]
            yield from _judged([frame], bad)
    yield from _judged(held, bad)


def _judged(frames: Iterable[av.VideoFrame | None], bad: list[int]) -> Iterator[tuple[av.VideoFrame | None, bool]]:
    for frame in frames:
        yield frame, frame is not None and all(_origin(frame).number < each for each in bad)


def _prepare(context: VideoCodecContext, exact: bool) -> None:
    # On some damaged HEVC files the threads of FFmpeg 8 wait for each other for ever.
    if exact or context.name == "hevc":
        context.thread_count = 1
    else:
        context.thread_type, context.thread_count = "AUTO", DECODERS
    context.copy_opaque = exact  # with threads, PyAV may wait for ever for the lock that its own caller holds
    if context.name == "mjpeg":  # else the rest of a broken picture is whatever its memory held, without any mark
        context.options = {"err_detect": "explode"}


def _decode_one(context: VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame] | None:
    """What comes out when a packet goes in; None if it cannot be used.

    One that is cut short or marked as damaged is not tried: HEVC and VP9 decoders would patch it without a mark.
    """
    if packet is not None and packet.is_corrupt:
        return None
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return None
