"""The one rule by which a decoded frame becomes RGB.

Every YUV frame is converted with the BT.601 matrix, whatever matrix it is tagged with, because DALI does so and frames
must be equal on a CPU and on a GPU. The pixel format alone says the range: `yuvj*` is full, all else is limited. For
the same reason chroma samples are taken to lie in the middle of the pixels that share them, although H.264 and HEVC
put them to the left by default: FFmpeg would follow that, 6 levels off on average where every pixel differs in colour.
The scaler's settings are those of DALI's own decoder and give its values to the bit; FFmpeg's fastest settings take a
tenth of the time, but are 1 to 1.4 levels off on average (640x360 film, 12 at most).

A frame that is going to be shrunk is shrunk here, plane by plane after the conversion, for which FFmpeg has vector
instructions: in a fifth of the time that the media graph takes, with its filter, and within a level of what it gives
(8 in the frame's outermost rows and columns, of noise). Both in one step would take 0.3 ms instead of 0.75 (640x360),
but is another picture: where an edge leaves the range of RGB, FFmpeg would clip the mean and not the pixels, and colour
would be averaged over fewer pixels. That was 0.3 to 0.8 levels off on average, 10 to 25 in places (photographs), and
moved predictions by up to 0.025.
"""

from __future__ import annotations

import os
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from av.filter import Graph

RULE = "bt601, range by pixel format, chroma in the middle"  # keys stored features: to change with what it says
SETTINGS = "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp"
PLANES = "map1p=1:map2p=2"  # each stays in its place
# Slices of one frame, with the other half of the cores left to the decoder; the result does not depend on it.
THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))


@lru_cache(maxsize=4096)
def resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) after resizing the shorter side to `shorter`; the other side is rounded to nearest, halves up."""
    short = min(height, width)
    return (2 * height * shorter + short) // (2 * short), (2 * width * shorter + short) // (2 * short)


class ToRGB:
    """Decoded frame -> (H, W, 3) uint8 RGB. One per decode: it keeps the scaler's tables.

    Frames whose shorter side is longer than `shorter` are shrunk to it: linear with antialiasing (a triangle as wide as
    the step in the source), edge pixels repeated outside of the frame.
    """

    def __init__(self, shorter: int | None = None) -> None:
        self._shorter = shorter
        self._graph: Graph | None = None
        self._kind: tuple = ()

    def __call__(self, frame: av.VideoFrame, width: int | None = None, height: int | None = None) -> np.ndarray:
        """The frame in RGB, first scaled if a width or a height is given."""
        kind = (frame.format.name, frame.width, frame.height, width or frame.width, height or frame.height)
        if self._graph is None or kind != self._kind:
            self._graph, self._kind = _scaler(*kind, self._shorter), kind
        self._graph.push(frame)
        rgb = self._graph.pull()
        assert isinstance(rgb, av.VideoFrame)
        return rgb.to_ndarray()


def _scaler(pixel_format: str, width: int, height: int, to_width: int, to_height: int, shorter: int | None) -> Graph:
    graph = Graph()
    graph.threads = THREADS
    rule = f"w={to_width}:h={to_height}:{SETTINGS}"
    yuv = not av.VideoFormat(pixel_format).is_rgb
    if yuv:
        reach = "full" if pixel_format.startswith("yuvj") else "limited"
        rule += f":in_color_matrix=bt601:in_range={reach}:in_chroma_loc=center"
    # Planes first: half the time, as FFmpeg has vector instructions for planes alone, and the same to the bit; not so
    # where rows are uneven distances away from their chroma.
    planes = yuv and height % 2 == 0 and (width, height) == (to_width, to_height)
    steps = [("scale", rule), ("format", "gbrp" if planes else "rgb24")]
    if shorter is not None and shorter < min(to_width, to_height):
        tall, wide = resized_size(to_height, to_width, shorter)
        # FFmpeg would shrink RGB as YUV, losing colours. Called YUV, its planes are shrunk one by one.
        steps += [("scale", ""), ("format", "gbrp"), ("mergeplanes", f"{PLANES}:format=yuv444p")]
        steps += [("scale", f"w={wide}:h={tall}:{SETTINGS}"), ("mergeplanes", f"{PLANES}:format=gbrp")]
        planes = True
    if planes:
        steps += [("scale", ""), ("format", "rgb24")]
    # The frames' own times are passed through; the graph only wants some unit.
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat(pixel_format), time_base=Fraction(1, 1000)
    )
    graph.link_nodes(source, *(graph.add(name, options) for name, options in steps), graph.add("buffersink"))
    graph.configure()
    return graph
