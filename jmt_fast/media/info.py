"""What `probe` tells of a file: plain records, with the names that FFmpeg gives codecs and pixel formats."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

SUBSAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (4, 1): "4:1:1", (1, 2): "4:4:0", (4, 4): "4:1:0"}
# ISO/IEC 23091-2: both codes of 601 have the same coefficients, and so have both of 2020 for 8-bit pictures.
MATRICES = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020",
    10: "bt2020",
}
RANGES = {1: "limited", 2: "full"}
UNTAGGED = "untagged"


@dataclass(frozen=True)
class StreamInfo:
    """A stream of the container, whether it is used or not; `kind` is video, audio, subtitle, data or attachment."""

    index: int
    kind: str
    codec: str
    used: bool


@dataclass(frozen=True)
class AudioInfo:
    """A sound track: `offset` is the time of its first sample on the container's clock; both times in seconds."""

    offset: float
    duration: float
    rate: int
    channels: int
    codec: str


def bits_and_chroma(pixel_format: str) -> tuple[int, str]:
    """Bits a sample and kind of chroma (4:2:0, 4:2:2, 4:4:4, ..., grey, rgb); (0, "unknown") for an unknown format."""
    try:
        layout = av.VideoFormat(pixel_format, 64, 64)
    except ValueError:
        return 0, "unknown"
    bits = max(part.bits for part in layout.components)
    if layout.is_rgb or layout.has_palette:
        return bits, "rgb"
    if len(layout.components) < 3:
        return bits, "grey"
    part = layout.components[1]
    return bits, SUBSAMPLING.get((64 // part.width, 64 // part.height), "other")


@dataclass(frozen=True, eq=False)
class MediaInfo:
    """A video file. `timestamps` (frames,) float64, ascending, are presentation times in seconds on the container's
    clock (not shifted to zero); `width` and `height` are those after a clockwise turn by `rotation` degrees.

    `frames` counts what a decoder can show: not the frames that an edit list cuts off, nor those (`undecodable` of
    them) that come before the first keyframe. `damaged` counts packets that are cut short, marked as damaged, or
    not what an encoder of H.264 or HEVC writes: their frames are counted, but `frames()` leaves out what FFmpeg cannot
    decode or marks. `changes`: the format, the size for instance, changes on the way (H.264 and HEVC). `declared` is
    what the header claims, None if it claims nothing.

    `colour_matrix` (bt601, bt709, bt2020, ...) and `colour_range` (limited, full) are the file's tags, or "untagged";
    the conversion to RGB does not follow them (`colour.py`).

    `timed` is false where the container has no usable presentation times (some AVI): the times are then its decoding
    times in order, and decoded frames are counted instead of being matched by time. `keyframes` are the indices at
    which decoding can start.
    """

    path: Path
    container: str
    frames: int
    fps: float
    timestamps: np.ndarray = field(repr=False)
    width: int
    height: int
    rotation: int
    codec: str
    pixel_format: str
    constant_rate: bool
    audio: AudioInfo | None
    timed: bool = True
    keyframes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    streams: tuple[StreamInfo, ...] = ()
    colour_matrix: str = UNTAGGED
    colour_range: str = UNTAGGED
    declared: int | None = None
    undecodable: int = 0
    damaged: int = 0
    changes: bool = False

    @property
    def bits(self) -> int:
        """Bits a sample, 0 if the pixel format is unknown."""
        return bits_and_chroma(self.pixel_format)[0]

    @property
    def chroma(self) -> str:
        """4:2:0, 4:2:2, 4:4:4, ..., grey, rgb, or "unknown"."""
        return bits_and_chroma(self.pixel_format)[1]

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which is taken to last 1 / fps."""
        return float(self.timestamps[-1] - self.timestamps[0]) + 1 / self.fps

    def facts(self) -> dict[str, Any]:
        """All of it, but for the arrays, as values that JSON can hold."""
        return {
            "path": str(self.path),
            "container": self.container,
            "streams": [asdict(stream) for stream in self.streams],
            "codec": self.codec,
            "pixel_format": self.pixel_format,
            "bits": self.bits,
            "chroma": self.chroma,
            "colour_matrix": self.colour_matrix,
            "colour_range": self.colour_range,
            "width": self.width,
            "height": self.height,
            "rotation": self.rotation,
            "frames": self.frames,
            "declared_frames": self.declared,
            "undecodable_frames": self.undecodable,
            "damaged_packets": self.damaged,
            "changes_format": self.changes,
            "keyframes": len(self.keyframes),
            "fps": round(self.fps, 6),
            "constant_rate": self.constant_rate,
            "presentation_times": self.timed,
            "start": float(self.timestamps[0]),
            "end": float(self.timestamps[-1]),
            "duration": self.duration,
            "audio": None if self.audio is None else asdict(self.audio),
        }
