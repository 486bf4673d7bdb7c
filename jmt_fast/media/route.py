"""Which decoder reads a file, and why: NVDEC on a GPU, or PyAV on the CPU.

What NVDEC can do is asked of the driver for the very codec, chroma, depth and size, not looked up in a table of GPUs;
and of each codec a clip made on the spot must come out right before any file goes there.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

from jmt_fast.media.info import MediaInfo

# cudaVideoCodec of those in which every packet decodes to one picture. DALI's reader takes times and pictures off two
# queues by their number, and would shift all that follow a packet that repeats a picture (AV1, VP9) or hides one (VP8).
CODECS = {"h264": 4, "hevc": 8}
ENCODERS = {"h264": "libx264", "hevc": "libx265"}  # of the clips for trials
CHROMA_420 = 1  # cudaVideoChromaFormat


@dataclass(frozen=True)
class Route:
    """`gpu` is whether NVDEC decodes; `reason` is a line for a user."""

    gpu: bool
    reason: str


class _Caps(ctypes.Structure):
    """CUVIDDECODECAPS of the Video Codec SDK (cuviddec.h)."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bits_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("decoders", ctypes.c_ubyte),
        ("formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_blocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("reserved2", ctypes.c_uint * 11),
    )


class Nvdec:
    """The video decoder of one GPU; `missing` is None, or why there is none."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.missing: str | None = None
        self._tried: dict[str, str | None] = {}
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            self.missing = "no NVIDIA driver: libcuda.so.1 cannot be loaded"
            return
        try:
            self._cuvid = ctypes.CDLL("libnvcuvid.so.1")
        except OSError:
            self.missing = "libnvcuvid.so.1 (the NVDEC part of the NVIDIA driver) cannot be loaded"

    def refuses(self, codec: str, width: int, height: int) -> str | None:
        """Why it cannot decode 8-bit 4:2:0 video of this codec and size; None if it can."""
        if self.missing:
            return self.missing
        if codec not in CODECS:
            return f"{codec} is not among the codecs that are decoded by NVDEC ({', '.join(CODECS)})"
        caps = self._caps(CODECS[codec])
        if isinstance(caps, str):
            return caps
        if not caps.supported:
            return f"the NVDEC of this GPU does not decode {codec}"
        smallest, largest = (caps.min_width, caps.min_height), (caps.max_width, caps.max_height)
        if width < smallest[0] or height < smallest[1] or width > largest[0] or height > largest[1]:
            return f"{width}x{height} pixels: NVDEC takes {codec} from {_size(smallest)} to {_size(largest)}"
        if -(-width // 16) * -(-height // 16) > caps.max_blocks:
            return f"{width}x{height} pixels are too many for NVDEC's {codec} ({caps.max_blocks} blocks)"
        return None

    def fails(self, codec: str) -> str | None:
        """Why a clip made here comes out wrong; None if it does not. Each codec is tried once, which takes a second."""
        if codec not in self._tried:
            from jmt_fast.media.dali import trial  # slow to import, and of use only where there is a GPU

            self._tried[codec] = trial(self.device, ENCODERS[codec])
        return self._tried[codec]

    def codecs(self) -> list[str]:
        """Those that it decodes rightly at 8 bits 4:2:0 and 640x360."""
        return [codec for codec in CODECS if not (self.refuses(codec, 640, 360) or self.fails(codec))]

    def _caps(self, codec: int) -> _Caps | str:
        """What the driver says; it wants the GPU's context on this thread while it is asked."""
        context = ctypes.c_void_p()
        if code := self._cuda.cuInit(0) or self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), self.device):
            return f"CUDA device {self.device} cannot be used (error {code})"
        try:
            self._cuda.cuCtxPushCurrent_v2(context)
            caps = _Caps(codec=codec, chroma=CHROMA_420, bits_minus_8=0)
            code = self._cuvid.cuvidGetDecoderCaps(ctypes.byref(caps))
            self._cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        finally:
            self._cuda.cuDevicePrimaryCtxRelease_v2(self.device)
        return f"the driver does not say what NVDEC decodes (error {code})" if code else caps


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@lru_cache(maxsize=16)
def nvdec(device: int = 0) -> Nvdec:
    """The decoder of a GPU, opened and tried out once a process."""
    return Nvdec(device)


def route(info: MediaInfo, decoder: Nvdec, tried: bool = True) -> Route:
    """NVDEC for 8-bit 4:2:0 files that it decodes like FFmpeg does, frame for frame; else PyAV. Reads no file.

    NVDEC patches or repeats frames of damaged files without a word, decodes 10-bit H.264 and 4:2:2 on few GPUs, and
    leaves rotation to others. A file that fails in NVDEC all the same is for the caller to read with PyAV.
    `tried`: by a trial decode, too, of a codec that the driver says is decoded.
    """
    why = None
    if info.bits != 8 or info.chroma != "4:2:0":
        why = f"{info.pixel_format} is not 8-bit 4:2:0"
    elif info.rotation:
        why = f"the video is rotated by {info.rotation} degrees"
    elif not info.timed:
        why = "the container has no presentation times"
    elif info.changes:
        why = "its format, the size for instance, changes on the way"
    elif info.damaged:
        why = f"{info.damaged} packets are damaged or cut short"
    elif info.undecodable:
        why = f"{info.undecodable} frames before the first keyframe cannot be decoded"
    else:
        why = decoder.refuses(info.codec, info.width, info.height) or (decoder.fails(info.codec) if tried else None)
    if why:
        return Route(False, f"PyAV on the CPU: {why}")
    return Route(True, f"NVDEC: it decodes {info.codec}, 8-bit 4:2:0, {info.width}x{info.height}")
