"""A copy of the video that carries its trace: an MP4 (H.264, AAC) that every player shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from PIL import Image, ImageDraw, ImageFont

from jmt_fast.errors import JMTError
from jmt_fast.inference.formats import whole
from jmt_fast.inference.trace import Trace
from jmt_fast.media import SoundReader, probe
from jmt_fast.media.video import select

Progress = Callable[[int, int], object]

CLOCK = Fraction(1, 90_000)
RATE = 44_100
LEAST = 480  # pixels across; smaller pictures are enlarged, so that the figures can be read
PANEL = 0.26  # height of the panel over its width
SPAN = 10.0  # seconds of the trace in sight, now in the middle
FINE = 2  # the panel is drawn so many times larger: its lines get smooth edges, which large pictures do not need
LARGE = 1920  # pixels across
PAPER, INK, FAINT = "#15171a", "#e8e9ea", "#4b5058"
COLOURS = ("#7fb0ff", "#ffa14f", "#4cc79a", "#e58ad3", "#d8c64a", "#55c6dd")  # a person each, as the page's dark ones


def write_overlay(traces: Sequence[Trace], video: Path, out: Path, progress: Progress | None = None) -> None:
    """Write `video` with a panel below the picture: valence and arousal of each person around now, and the plane.

    Frames keep their times, and the sound (mono) its place. Raises MediaError for a video that cannot be decoded, and
    JMTError when `out` cannot be written.
    """
    info = probe(video)
    width = max(info.width, LEAST) // 2 * 2
    height = round(info.height * width / info.width) // 2 * 2
    panel = _Panel(traces, width)
    begin, tail = float(info.timestamps[0]), 1 / info.fps
    with whole(out) as temporary, SoundReader(video if info.audio else None, RATE) as sound:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                film = container.add_stream("libx264", rate=Fraction(info.fps).limit_denominator(1001))
                film.width, film.height, film.pix_fmt = width, height + panel.height, "yuv420p"
                film.codec_context.time_base = CLOCK
                film.options = {"crf": "20", "preset": "veryfast"}
                track = container.add_stream("aac", rate=RATE, layout="mono") if info.audio else None
                heard = 0
                for index, time, frame in select(video, range(info.frames), info):
                    picture = Image.fromarray(frame)
                    if picture.size != (width, height):
                        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
                    shown = np.concatenate([np.asarray(picture), panel.draw(index, time)])
                    image = av.VideoFrame.from_ndarray(shown, "rgb24")
                    image.pts, image.time_base = round((time - begin) / CLOCK), CLOCK
                    container.mux(film.encode(image))
                    if track is not None:
                        heard = _add_sound(container, track, sound, heard, time + tail, begin)
                    if progress:
                        progress(index + 1, info.frames)
                container.mux(film.encode(None))
                if track is not None:
                    container.mux(track.encode(None))
        except av.FFmpegError as error:
            raise JMTError(f"{out}: the overlay cannot be written: {error.strerror}; free some space") from error


def _add_sound(
    container: OutputContainer, track: av.AudioStream, sound: SoundReader, heard: int, until: float, begin: float
) -> int:
    """Encode what is heard up to `until` seconds; returns the number of samples since `begin`."""
    count = round((until - begin) * RATE) - heard
    if count > 0:
        block = av.AudioFrame.from_ndarray(sound.window(until, count)[None], "fltp", "mono")
        block.sample_rate, block.time_base, block.pts = RATE, Fraction(1, RATE), heard
        container.mux(track.encode(block))
    return heard + max(count, 0)


class _Panel:
    """Draws uint8 (height, width, 3): the plane on the left, valence above arousal on the right."""

    def __init__(self, traces: Sequence[Trace], width: int) -> None:
        self.traces = traces
        self.values = [np.where(trace.valid[:, None], trace.values, np.nan) for trace in traces]
        self.height = round(width * PANEL / 2) * 2
        self.fine = FINE if width <= LARGE else 1
        self.size = (width * self.fine, self.height * self.fine)
        self.unit = self.size[1] / 100  # a hundredth of the height
        self.font = ImageFont.load_default(8.5 * self.unit)

    def draw(self, index: int, now: float) -> np.ndarray:
        picture = Image.new("RGB", self.size, PAPER)
        pen = ImageDraw.Draw(picture)
        across, down = self.size
        u = self.unit
        plane = (6 * u, 6 * u, down - 6 * u, down - 6 * u)
        pen.rectangle(plane, outline=FAINT)
        self._cross(pen, plane)
        boxes = [(down + 42 * u, top * u, across - 6 * u, (top + 41) * u) for top in (6, 53)]
        for dimension, box in enumerate(boxes):
            middle = (box[1] + box[3]) / 2
            pen.line((box[0], middle, box[2], middle), fill=FAINT)
            pen.text((down, box[1] + u), ("valence", "arousal")[dimension], INK, self.font)
        for person, (trace, values) in enumerate(zip(self.traces, self.values, strict=True)):
            row, colour = min(index, len(values) - 1), COLOURS[person % len(COLOURS)]
            first, after = np.searchsorted(trace.times, (now - SPAN / 2, now + SPAN / 2))
            for dimension, box in enumerate(boxes):
                x = box[0] + ((trace.times[first:after] - now) / SPAN + 0.5) * (box[2] - box[0])
                y = box[1] + (1 - values[first:after, dimension]) / 2 * (box[3] - box[1])
                _curve(pen, x, y, colour, round(1.4 * u))
                # several people share the column: one line each, as far as there is room
                if person < 3:
                    value = values[row, dimension]
                    text = "no face" if np.isnan(value) else f"{value:+.2f}"
                    pen.text((down, box[1] + (11 + 10 * person) * u), text, colour, self.font)
            if not np.isnan(values[row, 0]):
                at = [plane[0] + (values[row, 0] + 1) / 2 * (plane[2] - plane[0])]
                at.append(plane[1] + (1 - values[row, 1]) / 2 * (plane[3] - plane[1]))
                pen.ellipse((at[0] - 3 * u, at[1] - 3 * u, at[0] + 3 * u, at[1] + 3 * u), fill=colour)
        middle = (boxes[0][0] + boxes[0][2]) / 2
        pen.line((middle, boxes[0][1], middle, boxes[1][3]), fill=INK, width=round(u))
        return np.asarray(picture.resize((across // self.fine, down // self.fine), Image.Resampling.BOX))

    def _cross(self, pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        pen.line((x, box[1], x, box[3]), fill=FAINT)
        pen.line((box[0], y, box[2], y), fill=FAINT)


def _curve(pen: ImageDraw.ImageDraw, x: np.ndarray, y: np.ndarray, colour: str, width: int) -> None:
    """A line through the points, with gaps where y is NaN."""
    for run in np.ma.clump_unmasked(np.ma.masked_invalid(y)):
        pen.line(np.stack([x[run], y[run]], axis=1).ravel().tolist(), fill=colour, width=width, joint="curve")
