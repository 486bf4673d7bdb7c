"""Which decoder reads a file, with a driver of this test's own: what it answers is what a GPU's would."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from jmt_fast.media import probe, route


class Driver:
    """libcuda and libnvcuvid of a GPU that decodes H.264 and VP9 between 48x16 and 4096x4096."""

    def __init__(self) -> None:
        self.contexts = 0

    def __getattr__(self, name: str):
        return lambda *_: 0

    def cuCtxPushCurrent_v2(self, _) -> int:
        self.contexts += 1
        return 0

    def cuCtxPopCurrent_v2(self, _) -> int:
        self.contexts -= 1
        return 0

    def cuvidGetDecoderCaps(self, pointer) -> int:
        assert self.contexts == 1, "no context on this thread"
        caps = pointer._obj
        assert (caps.chroma, caps.bits_minus_8) == (1, 0)
        caps.supported = caps.codec in (4, 10)
        caps.min_width, caps.min_height, caps.max_width, caps.max_height = 48, 16, 4096, 4096
        caps.max_blocks = 65_536
        return 0


@pytest.fixture
def gpu(monkeypatch) -> route.Nvdec:
    driver = Driver()
    monkeypatch.setattr(route.ctypes, "CDLL", lambda name: driver)
    return route.Nvdec()


def test_the_driver_is_asked_in_its_own_layout():
    """Offsets of cuviddec.h: 88 bytes, the answer from byte 24 on."""
    assert ctypes.sizeof(route._Caps) == 88
    offsets = {name: getattr(route._Caps, name).offset for name in ("supported", "formats", "max_width", "min_width")}
    assert offsets == {"supported": 24, "formats": 26, "max_width": 28, "min_width": 40}


def test_what_nvdec_does_well_goes_there(film, gpu):
    chosen = route.route(probe(film()), gpu)
    assert chosen.gpu and "h264" in chosen.reason and gpu.codecs() == ["h264", "vp9"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pixel_format": "yuv420p10le"}, "yuv420p10le is not 8-bit 4:2:0"),
        ({"pixel_format": "yuv422p"}, "yuv422p is not 8-bit 4:2:0"),
        ({"pixel_format": "yuv444p"}, "yuv444p is not 8-bit 4:2:0"),
        ({"rotation": 90}, "rotated by 90"),
        ({"suffix": "avi"}, "no presentation times"),
        ({"codec": "libx265"}, "does not decode hevc"),
        ({"codec": "ffv1", "suffix": "mkv"}, "does not know the codec ffv1"),
        ({"size": (32, 32)}, "32x32 pixels: NVDEC takes h264 from 48x16 to 4096x4096"),
    ],
    ids=str,
)
def test_the_rest_goes_to_the_cpu_with_its_reason(film, gpu, fields, reason):
    chosen = route.route(probe(film(**fields)), gpu)
    assert not chosen.gpu and reason in chosen.reason


def test_a_file_cut_short_goes_to_the_cpu(film, kit, gpu, tmp_path):
    data = film(times=kit.steps(90), options=(("movflags", "faststart"),)).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) * 3 // 4])
    assert "cut short" in route.route(probe(path), gpu).reason


@pytest.mark.parametrize("library", ["libcuda.so.1", "libnvcuvid.so.1"])
def test_without_the_libraries(film, monkeypatch, library):
    def load(name: str):
        if name == library:
            raise OSError(name)
        return SimpleNamespace()

    monkeypatch.setattr(route.ctypes, "CDLL", load)
    decoder = route.Nvdec()
    assert library in (decoder.missing or "") and decoder.codecs() == []
    assert library in route.route(probe(film()), decoder).reason
