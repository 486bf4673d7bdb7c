"""Decoded frames with their exact indices.

Index. A decoded frame's index is that of its presentation time among the times of `probe`, so a packet that is lost or
damaged leaves a hole and never shifts the frames behind it.

Colour follows the rule in `colour.py`. Pixels are taken as square. The display matrix turns a frame, to the nearest
quarter turn, and never mirrors it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from jmt_fast.errors import MediaError
from jmt_fast.media.colour import ToRGB
from jmt_fast.media.container import ignore_others, open_media, packets, tick
from jmt_fast.media.probe import MediaInfo, probe, video_stream

SAME_TIME = 1e-6  # seconds
SEEK_FRAMES = 50  # a keyframe this far in is worth a seek


def frames(
    path: str | os.PathLike[str], start: int = 0, stop: int | None = None, step: int = 1
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield (index, seconds, frame) for the indices start, start + step, ... below stop; frame (H, W, 3) uint8 RGB.

    Frames that cannot be decoded are left out. Raises MediaError as `select` does, ValueError for a negative `start` or
    `stop` or a step below 1.
    """
    if start < 0 or step < 1 or (stop is not None and stop < 0):
        raise ValueError(f"start={start}, stop={stop}, step={step}: start and stop must be >= 0, step >= 1")
    return _frames(Path(path), start, stop, step)


def _frames(path: Path, start: int, stop: int | None, step: int) -> Iterator[tuple[int, float, np.ndarray]]:
    info = probe(path)
    yield from select(path, range(start, info.frames if stop is None else min(stop, info.frames), step), info)


def select(
    path: str | os.PathLike[str], indices: Iterable[int], info: MediaInfo | None = None
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield (index, seconds, frame) for the wanted frames of a video; frame (H, W, 3) uint8 RGB, rotation applied.

    `indices` must ascend strictly (else ValueError) and are read lazily. Decoding is linear, from the last keyframe
    before the first wanted frame; only wanted frames are converted. Frames that cannot be decoded are left out, and the
    iteration ends with the stream. Raises MediaError if the file cannot be opened or none of its frames can be decoded.
    FFmpeg patches a damaged frame from frames before it: only such a frame can depend on where decoding began.
    """
    path = Path(path)
    wanted = _ascending(indices)
    first = next(wanted, None)
    if first is None:
        return
    info = info or probe(path)
    if first >= info.frames:
        return
    to_rgb = ToRGB()
    turns = -info.rotation // 90  # numpy turns counter-clockwise
    width, height = (info.height, info.width) if turns % 2 else (info.width, info.height)
    target: int | None = first
    decoded = False
    for index, frame in _decode(path, info, first):
        decoded = True
        while target is not None and target < index:
            target = next(wanted, None)
        if target == index:
            # A stream may change its size on the way: every frame comes out in the size that `probe` tells.
            rgb = to_rgb(frame, width, height)
            yield index, float(info.timestamps[index]), np.ascontiguousarray(np.rot90(rgb, turns))
            target = next(wanted, None)
        if target is None:
            return
    if not decoded:
        raise MediaError(f"{path}: none of its {info.codec} frames can be decoded; convert or record the file again")


def _ascending(indices: Iterable[int]) -> Iterator[int]:
    for before, index in pairwise(chain([-1], indices)):
        if index <= before:
            raise ValueError(f"indices must be >= 0 and ascend strictly, got {index} after {before}")
        yield int(index)


def _decode(path: Path, info: MediaInfo, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) of every frame that decodes, beginning at `first` or before it."""
    before = np.searchsorted(info.keyframes, first, "right")
    key = int(info.keyframes[before - 1]) if before and info.timed else 0
    if key >= SEEK_FRAMES:
        found = False
        for index, frame in _from_key(path, info, key):
            # Frames shown before the keyframe may refer to others before it. If the keyframe itself does not come, the
            # demuxer went elsewhere or it is damaged: what follows could then differ from a linear decode.
            if not found and index > key:
                break
            if index >= key:
                found = True
                yield index, frame
        if found:
            return
    yield from _from_key(path, info, 0)


def _from_key(path: Path, info: MediaInfo, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) of every frame that decodes from one keyframe on; from the beginning if it is 0."""
    with open_media(path) as container:
        stream = video_stream(container, path)
        unit = tick(stream)
        ignore_others(container, stream)
        if key:
            try:
                container.seek(round(info.timestamps[key] / unit), stream=stream)
            except av.FFmpegError:
                return
        stream.thread_type = "AUTO"
        least = 0  # no later frame can have a lower index
        for frame in _decoded(stream, packets(container, stream)):
            if frame is not None and info.timed and frame.pts is not None:
                seconds = frame.pts * unit
                index = max(int(np.searchsorted(info.timestamps, seconds - SAME_TIME)), least)
                if index >= info.frames or info.timestamps[index] > seconds + SAME_TIME:
                    continue  # a frame that `probe` saw no packet for
            elif frame is not None:
                index = least
            else:
                least += not info.timed
                continue
            if index < info.frames:
                yield index, frame
            least = index + 1


def _decoded(stream: VideoStream, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame | None]:
    """Frames in order of presentation; None for every packet that failed."""
    for packet in chain(packets, [None]):
        try:
            yield from stream.codec_context.decode(packet)
        except av.FFmpegError:
            yield None
