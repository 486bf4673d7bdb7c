"""Which decoder reads a file, with a driver of this test's own: what it answers is what a GPU's would."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
from nvidia.dali import fn

from jmt_fast.media import dali, probe, route


class Driver:
    """libcuda and libnvcuvid of a GPU that decodes H.264 and HEVC between 48x16 and 4096x4096."""

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
        caps.supported = caps.codec in (4, 8)
        caps.min_width, caps.min_height, caps.max_width, caps.max_height = 48, 16, 4096, 4096
        caps.max_blocks = 65_536
        return 0


@pytest.fixture
def gpu(monkeypatch) -> route.Nvdec:
    driver = Driver()
    monkeypatch.setattr(route.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(dali, "trial", lambda device, encoder: None)
    return route.Nvdec()


def test_the_driver_is_asked_in_its_own_layout():
    """Offsets of cuviddec.h: 88 bytes, the answer from byte 24 on."""
    assert ctypes.sizeof(route._Caps) == 88
    offsets = {name: getattr(route._Caps, name).offset for name in ("supported", "formats", "max_width", "min_width")}
    assert offsets == {"supported": 24, "formats": 26, "max_width": 28, "min_width": 40}


def test_what_nvdec_does_well_goes_there(film, gpu):
    chosen = route.route(probe(film()), gpu)
    assert chosen.gpu and "h264" in chosen.reason and gpu.codecs() == ["h264", "hevc"]
    assert route.route(probe(film(codec="libx265")), gpu).gpu


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pixel_format": "yuv420p10le"}, "yuv420p10le is not 8-bit 4:2:0"),
        ({"pixel_format": "yuv422p"}, "yuv422p is not 8-bit 4:2:0"),
        ({"pixel_format": "yuv444p"}, "yuv444p is not 8-bit 4:2:0"),
        ({"rotation": 90}, "rotated by 90"),
        ({"suffix": "avi"}, "no presentation times"),
        ({"codec": "libvpx-vp9", "suffix": "webm"}, "vp9 is not among the codecs that are decoded by NVDEC"),
        ({"codec": "ffv1", "suffix": "mkv"}, "ffv1 is not among the codecs"),
        ({"size": (32, 32)}, "32x32 pixels: NVDEC takes h264 from 48x16 to 4096x4096"),
    ],
    ids=str,
)
def test_the_rest_goes_to_the_cpu_with_its_reason(film, gpu, fields, reason):
    chosen = route.route(probe(film(**fields)), gpu)
    assert not chosen.gpu and reason in chosen.reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_lost_data_inside_a_packet_goes_to_the_cpu(film, kit, gpu, codec, suffix):
    """The demuxer marks neither; NVDEC would patch the pictures."""
    path = film(codec=codec, suffix=suffix, times=kit.steps(30))
    assert route.route(probe(path), gpu).gpu
    for kept in (0.0, 0.5):
        assert "1 packets are damaged" in route.route(probe(kit.damaged(path, "video", [13], kept)), gpu).reason


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_size_that_changes_goes_to_the_cpu(film, kit, gpu, tmp_path, codec):
    first = film(codec=codec, suffix="ts", size=(160, 96), times=kit.steps(20))
    second = film(codec=codec, suffix="ts", size=(128, 96), times=kit.steps(20, start=20 / 30))
    assert route.route(probe(first), gpu).gpu
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    assert "changes on the way" in route.route(probe(joined), gpu).reason


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


@pytest.mark.parametrize(("encoder", "suffix"), [("libvpx-vp9", "webm"), ("libvpx", "mkv")])
def test_a_trial_decode_comes_out_right(encoder, suffix):
    """By the same reader on the CPU, which knows these codecs only."""
    assert dali.trial(None, encoder, suffix) is None


def test_a_trial_says_what_went_wrong(monkeypatch):
    assert "a trial decode fails: " in (dali.trial(None, "libx264", "mp4") or "")  # DALI's CPU decoder has no H.264
    assert "no clip for a trial decode can be made" in (dali.trial(None, "no such codec", "mp4") or "")
    right = dali.reader

    def stale(*arguments):
        """The second frame in the place of all."""
        return tuple(node if rank else node[1:2] for rank, node in enumerate(right(*arguments)))

    monkeypatch.setattr(dali, "reader", stale)
    assert "gives 1 frames of 72" in (dali.trial(None, "libvpx-vp9", "webm") or "")
    monkeypatch.setattr(dali, "reader", lambda *arguments: (right(*arguments)[0] // 2,))
    assert "other pictures" in (dali.trial(None, "libvpx-vp9", "webm") or "")

    def shifted(*arguments):
        """From the fortieth frame on each is the one before it, as after a packet that decodes to no picture."""
        frames = right(*arguments)[0]
        return (fn.cat(frames[:40], frames[39 : dali.FRAMES - 1], axis=0),)

    monkeypatch.setattr(dali, "reader", shifted)
    assert "in another order" in (dali.trial(None, "libvpx-vp9", "webm") or "")


def test_nvdec_is_tried_once_and_not_used_where_it_fails(film, gpu, monkeypatch):
    tried = []

    def trial(device: int, encoder: str) -> str | None:
        tried.append((device, encoder))
        return None if encoder == "libx265" else "a trial decode fails: out of order"

    monkeypatch.setattr(dali, "trial", trial)
    for _ in range(2):
        assert "out of order" in route.route(probe(film()), gpu).reason
        assert route.route(probe(film()), gpu, tried=False).gpu and route.route(probe(film(codec="libx265")), gpu).gpu
    assert tried == [(0, "libx264"), (0, "libx265")] and gpu.codecs() == ["hevc"]
