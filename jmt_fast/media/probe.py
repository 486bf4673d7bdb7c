"""What a video file holds, read from its packets: exact frame times, rate, size, rotation, and where its sound lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from jmt_fast.errors import MediaError
from jmt_fast.media.container import MAX_SIDE, open_media, packets, pick, tick

FIRST_FRAME_PACKETS = 250  # packets to try for a first decoded frame
ANIMATIONS = {"gif", "apng"}  # containers that usually hold a single picture


@dataclass(frozen=True)
class AudioInfo:
    """A sound track: `offset` is the time of its first sample on the container's clock; both times in seconds."""

    offset: float
    duration: float
    rate: int
    channels: int
    codec: str


@dataclass(frozen=True, eq=False)
class MediaInfo:
    """A video file. `timestamps` (frames,) float64, ascending, are presentation times in seconds on the container's
    clock (not shifted to zero); `width` and `height` are those after a clockwise turn by `rotation` degrees.

    `timed` is false where the container has no usable presentation times (some AVI): the times are then its decoding
    times in order, and decoded frames are counted instead of being matched by time. `keyframes` are the indices at
    which decoding can start.
    """

    path: Path
    container: str
    frames: int
    fps: float
    timestamps: np.ndarray
    width: int
    height: int
    rotation: int
    codec: str
    pixel_format: str
    constant_rate: bool
    audio: AudioInfo | None
    timed: bool
    keyframes: np.ndarray

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which is taken to last 1 / fps."""
        return float(self.timestamps[-1] - self.timestamps[0]) + 1 / self.fps


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Read the packets of a video file; only the first frame is decoded (the rotation is attached to it).

    Raises MediaError if the file cannot be opened, has no video stream or no frame, or has an absurd size.
    """
    path = Path(path)
    with open_media(path) as container:
        video = video_stream(container, path)
        sound = pick(container.streams.audio)
        scan = _Scan(video, sound)
        for packet in packets(container, video, sound) if sound else packets(container, video):
            scan.add(packet)
        if not scan.times:
            raise MediaError(f"{path}: the video stream has no frames; record or convert the file again")
        name = container.format.name
        if len(scan.times) == 1 and name in ANIMATIONS:
            raise MediaError(f"{path}: a picture ({name}), not a video; give a video file")
        return scan.info(path, name)


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The video stream to use (`pick`). Raises MediaError if there is none, no decoder for it, or an absurd size."""
    stream = pick(container.streams.video)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream"
        raise MediaError(f"{path}: no video stream (the file has: {kinds}); give a file with moving pictures")
    if stream.codec_context is None:
        raise MediaError(f"{path}: no decoder for its video codec; convert it to H.264")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width > MAX_SIDE or height > MAX_SIDE:
        raise MediaError(f"{path}: {width}x{height} pixels, more than {MAX_SIDE} a side; scale the video down")
    if width < 1 or height < 1:
        raise MediaError(f"{path}: the video stream has no frames of known size; record or convert the file again")
    return stream


class _Scan:
    """Gathers what the packets of a video stream and of a sound stream tell."""

    def __init__(self, video: VideoStream, sound: AudioStream | None):
        self.video, self.sound = video, sound
        self.times: list[tuple[int, bool]] = []  # (pts, is keyframe)
        self.timed = True
        self.decode_times: list[int] = []
        self.first_frame: av.VideoFrame | None = None
        self.first_sound: av.AudioFrame | None = None
        self.sound_start: int | None = None
        self.sound_end: int | None = None
        self.tries = {s.index: 0 for s in (video, sound) if s is not None}
        video.codec_context.thread_count = 1  # no delay before the first frame

    def add(self, packet: av.Packet) -> None:
        if packet.stream_index == self.video.index:
            self._add_video(packet)
        else:
            self._add_sound(packet)

    def _add_video(self, packet: av.Packet) -> None:
        if self.first_frame is None:
            self.first_frame = self._try_decode(packet)
        if packet.is_discard or self._is_hidden(packet):
            return
        self.decode_times.append(packet.dts if packet.dts is not None else len(self.decode_times))
        if packet.pts is None:
            self.timed = False
        self.times.append((packet.pts if packet.pts is not None else self.decode_times[-1], packet.is_keyframe))

    def _is_hidden(self, packet: av.Packet) -> bool:
        """A VP8 reference frame that is never shown (RFC 6386, 9.1: bit 4 of the first byte is show_frame)."""
        return self.video.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10

    def _add_sound(self, packet: av.Packet) -> None:
        if self.first_sound is None:
            self.first_sound = self._try_decode(packet)
        if packet.pts is None or packet.is_discard:
            return
        if self.sound_start is None:
            self.sound_start = packet.pts
        self.sound_end = max(self.sound_end or packet.pts, packet.pts + (packet.duration or 0))

    def _try_decode(self, packet: av.Packet):
        if self.tries[packet.stream_index] >= FIRST_FRAME_PACKETS:
            return None
        self.tries[packet.stream_index] += 1
        try:
            return next(iter(packet.decode()), None)
        except av.FFmpegError:
            return None

    def info(self, path: Path, container: str) -> MediaInfo:
        unit = tick(self.video)
        if self.timed:
            ordered = sorted(self.times)
        else:  # the n-th frame shown takes the n-th decoding time
            ordered = sorted(zip(self.decode_times, (key for _, key in self.times), strict=True))
        timestamps = np.array([time for time, _ in ordered], np.float64) * unit
        timestamps.flags.writeable = False
        fps, constant = _rate(timestamps, unit, self.video)
        context, first = self.video.codec_context, self.first_frame
        rotation = round(-first.rotation / 90) * 90 % 360 if first else 0
        width, height = context.width, context.height
        if rotation in (90, 270):
            width, height = height, width
        return MediaInfo(
            path=path,
            container=container,
            frames=len(timestamps),
            fps=fps,
            timestamps=timestamps,
            width=width,
            height=height,
            rotation=rotation,
            codec=context.codec.canonical_name,
            pixel_format=first.format.name if first else context.pix_fmt or "unknown",
            constant_rate=constant,
            audio=self._sound_info(),
            timed=self.timed,
            keyframes=np.array([i for i, (_, key) in enumerate(ordered) if key], np.int64),
        )

    def _sound_info(self) -> AudioInfo | None:
        if self.sound is None or self.sound.codec_context is None or self.sound_start is None:
            return None
        unit = tick(self.sound)
        first = self.first_sound
        # A decoder drops priming samples and moves the first frame's time accordingly.
        offset = (first.pts if first is not None and first.pts is not None else self.sound_start) * unit
        context = self.sound.codec_context
        end = (self.sound_end or 0) * unit
        codec = context.codec.canonical_name
        return AudioInfo(offset, max(end - offset, 0.0), context.sample_rate, context.channels, codec)


def _rate(timestamps: np.ndarray, unit: float, stream: VideoStream) -> tuple[float, bool]:
    """Average frames a second, and whether the rate is constant, up to rounding to the container's tick."""
    if len(timestamps) < 2 or timestamps[-1] <= timestamps[0]:
        return float(stream.average_rate or stream.guessed_rate or 30), True
    steps = np.diff(timestamps)
    mean = float(timestamps[-1] - timestamps[0]) / len(steps)
    rounding = unit if unit < mean / 5 else 0.0  # rounding makes the steps differ by one tick, where ticks are fine
    return 1 / mean, bool(np.ptp(steps) <= 1.01 * rounding + 1e-9)
