"""What a video file holds, read from its packets: exact frame times, rate, size, rotation, and where its sound lies."""

from __future__ import annotations

import os
from array import array
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from jmt_fast.errors import MediaError
from jmt_fast.media.container import MAX_SIDE, open_media, packets, pick, tick
from jmt_fast.media.info import MATRICES, RANGES, UNTAGGED, AudioInfo, MediaInfo, StreamInfo
from jmt_fast.media.nal import Units

FIRST_FRAME_PACKETS = 250  # packets to try for a first decoded frame
ANIMATIONS = {"gif", "apng"}  # containers that usually hold a single picture
NO_TIME = -(2**63)  # as FFmpeg writes that a packet has none
KEY, CUT = 1, 2  # CUT: an edit list takes the packet away: it is decoded, not shown


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Read the packets of a video file; only the first frame is decoded (the rotation is attached to it).

    Raises MediaError if the file cannot be opened, has no video stream or no frame, or has an absurd size.
    """
    path = Path(path)
    with open_media(path) as container:
        name = container.format.name
        video = _VideoScan(video_stream(container, path), name)
        track = pick([stream for stream in container.streams.audio if stream.codec_context is not None])
        sound = _SoundScan(track) if track else None
        for packet in packets(container, *([video.stream, track] if track else [video.stream])):
            if sound and packet.stream_index == sound.stream.index:
                sound.add(packet)
            else:
                video.add(packet)
        if len(video.flags) == 1 and name in ANIMATIONS:
            raise MediaError(f"{path}: a picture ({name}), not a video; give a video file")
        streams = tuple(_describe(stream, used=stream in (video.stream, track)) for stream in container.streams)
        return video.info(path, sound.info() if sound else None, streams)


def _describe(stream: Stream, used: bool) -> StreamInfo:
    context = getattr(stream, "codec_context", None)
    return StreamInfo(stream.index, stream.type, context.codec.canonical_name if context else "unknown", used)


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


class _FirstFrame:
    """Decodes the first frame of a stream from its packets; `frame` is None until then, or for good if none comes."""

    def __init__(self) -> None:
        self.frame: Any = None
        self.left = FIRST_FRAME_PACKETS

    def offer(self, packet: av.Packet) -> None:
        if self.frame is None and self.left:
            self.left -= 1
            try:
                self.frame = next(iter(packet.decode()), None)
            except av.FFmpegError:
                return


class _VideoScan:
    """Gathers the times of a video stream from its packets, in the order of decoding: 17 bytes each, where objects took
    ten times that, 40 MB for two hours. Times are in ticks of the stream."""

    def __init__(self, stream: VideoStream, container: str):
        self.stream, self.container = stream, container
        self.first = _FirstFrame()
        self.shown, self.decoded, self.flags = array("q"), array("q"), array("B")
        self.units = Units(stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
        self.damaged = 0
        stream.codec_context.thread_count = 1  # no delay before the first frame

    def add(self, packet: av.Packet) -> None:
        self.first.offer(packet)
        if self._is_hidden(packet):
            return
        self.damaged += packet.is_corrupt or self.units.damaged(memoryview(packet), packet.is_keyframe)
        self.shown.append(NO_TIME if packet.pts is None else packet.pts)
        self.decoded.append(NO_TIME if packet.dts is None else packet.dts)
        self.flags.append(KEY * packet.is_keyframe | CUT * packet.is_discard)

    def _is_hidden(self, packet: av.Packet) -> bool:
        """A VP8 reference frame that is never shown (RFC 6386, 9.1: bit 4 of the first byte is show_frame).

        Bit 0 is 0 in a keyframe, which has a start code: without one the packet is damaged and had been a frame.
        """
        if self.stream.codec_context.name != "vp8":
            return False
        head = bytes(memoryview(packet)[:6])
        return not head[0] & 0x10 and (bool(head[0] & 1) or head[3:] == b"\x9d\x01\x2a")

    def _timed(self, times: np.ndarray) -> bool:
        """Whether the presentation times of the packets that are not cut can be used."""
        if (times == NO_TIME).any():
            return False
        # AVI keeps no presentation times. FFmpeg derives them where its parser tells B-frames (MPEG-4 part 2); of H.264
        # it leaves the decoding order, which cannot be the order of presentation if frames are reordered.
        in_order = bool((times[1:] > times[:-1]).all())
        return not (self.container == "avi" and self.stream.codec_context.has_b_frames and in_order)

    def info(self, path: Path, audio: AudioInfo | None, streams: tuple[StreamInfo, ...]) -> MediaInfo:
        unit, first = self.stream.time_base or Fraction(1), self.first.frame
        shown, decoded, flags = (np.array(each) for each in (self.shown, self.decoded, self.flags))
        key, uncut = flags & KEY > 0, flags & CUT == 0
        timed = self._timed(shown[uncut])
        # Packets decoded or shown before the first keyframe refer to frames that are not there: H.264, HEVC, VP8 and
        # VP9 decoders show none of these; that of MPEG-4 shows inventions on a grey ground. A stream without any
        # keyframe (it may be refreshed bit by bit) is left as it is.
        begin = int(key.argmax()) if len(key) else 0
        usable = uncut & (np.arange(len(key)) >= begin)
        if timed:
            usable &= shown >= shown[begin : begin + 1]
        if not usable.any():
            raise MediaError(f"{path}: the video stream has no frames; record or convert the file again")
        times = (shown if timed else decoded)[usable]
        if (times == NO_TIME).any():  # a bare stream: nothing but its nominal rate
            times, unit = np.arange(len(times)), 1 / _nominal_rate(self.stream)
        # Without presentation times, the n-th frame shown takes the n-th decoding time.
        order = np.argsort(times, kind="stable")
        ticks = times[order].astype(np.float64)
        timestamps = ticks * unit.numerator / unit.denominator  # in this order the nearest float to the exact time
        timestamps.flags.writeable = False
        fps, constant = _rate(timestamps, float(unit), self.stream)
        context = self.stream.codec_context
        rotation = round(-first.rotation / 90) * 90 % 360 if first else 0
        turned = rotation in (90, 270)
        tags = first or context
        return MediaInfo(
            path=path,
            container=self.container,
            frames=len(timestamps),
            fps=fps,
            timestamps=timestamps,
            width=context.height if turned else context.width,
            height=context.width if turned else context.height,
            rotation=rotation,
            codec=context.codec.canonical_name,
            pixel_format=first.format.name if first else context.pix_fmt or "unknown",
            constant_rate=constant,
            audio=audio,
            timed=timed,
            keyframes=np.flatnonzero(key[usable][order]),
            streams=streams,
            colour_matrix=MATRICES.get(int(tags.colorspace), UNTAGGED),
            colour_range=RANGES.get(int(tags.color_range), UNTAGGED),
            declared=self.stream.frames or None,
            undecodable=int(uncut.sum()) - len(times),
            damaged=self.damaged,
            changes=self.units.changes,
        )


class _SoundScan:
    """Gathers the extent of a sound stream from its packets."""

    def __init__(self, stream: AudioStream):
        self.stream = stream
        self.first = _FirstFrame()
        self.start: int | None = None
        self.end = 0

    def add(self, packet: av.Packet) -> None:
        self.first.offer(packet)
        if packet.pts is None or packet.is_discard:
            return
        end = packet.pts + (packet.duration or 0)
        self.start, self.end = (packet.pts, end) if self.start is None else (self.start, max(self.end, end))

    def info(self) -> AudioInfo | None:
        if self.start is None:
            return None
        unit, context, first = tick(self.stream), self.stream.codec_context, self.first.frame
        # A decoder drops priming samples and moves the first frame's time accordingly.
        offset = (self.start if first is None or first.pts is None else first.pts) * unit
        duration = max(self.end * unit - offset, 0.0)
        return AudioInfo(offset, duration, context.sample_rate, context.channels, context.codec.canonical_name)


def _nominal_rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _rate(timestamps: np.ndarray, unit: float, stream: VideoStream) -> tuple[float, bool]:
    """Average frames a second, and whether the rate is constant, up to rounding to the container's tick."""
    if len(timestamps) < 2 or timestamps[-1] <= timestamps[0]:
        return float(_nominal_rate(stream)), True
    steps = np.diff(timestamps)
    mean = float(timestamps[-1] - timestamps[0]) / len(steps)
    rounding = unit if unit < mean / 5 else 0.0  # rounding makes the steps differ by one tick, where ticks are fine
    return 1 / mean, bool(np.ptp(steps) <= 1.01 * rounding + 1e-9)
