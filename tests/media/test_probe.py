from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from jmt_fast.media import frames, probe

VARYING = tuple(np.cumsum([0.0] + [(33, 40, 17, 50)[n % 4] / 1000 for n in range(49)]).tolist())
NTSC = Fraction(30_000, 1001)

CONSTANT = {
    "h264 mp4": {},
    "h264 mp4 odd": {"size": (97, 65), "pixel_format": "yuv444p"},
    "hevc mov": {"codec": "libx265", "suffix": "mov"},
    "vp9 webm odd": {"codec": "libvpx-vp9", "suffix": "webm", "size": (97, 65)},
    "vp8 webm": {"codec": "libvpx", "suffix": "webm"},
    "mpeg4 avi": {"codec": "mpeg4", "suffix": "avi", "b_frames": 0},
    "mjpeg avi": {"codec": "mjpeg", "suffix": "avi", "pixel_format": "yuvj420p"},
    "h264 avi, B-frames": {"suffix": "avi"},
    "h264 mkv 29.97": {"suffix": "mkv", "rate": NTSC, "times": tuple(float(n / NTSC) for n in range(40))},
    "h264 ts from 1.5 s": {"suffix": "ts", "times": tuple(1.5 + n / 25 for n in range(40)), "rate": Fraction(25)},
}
NAMES = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libvpx": "vp8"}


@pytest.mark.parametrize("case", CONSTANT, ids=str)
def test_constant_rate(film, kit, case):
    spec = kit.Film(**CONSTANT[case])
    info = probe(film(**CONSTANT[case]))
    assert info.frames == len(spec.times)
    # Matroska and WebM round times to a millisecond.
    np.testing.assert_allclose(
        info.timestamps, spec.times, rtol=0, atol=6e-4 if spec.suffix in ("mkv", "webm") else 1e-9
    )
    assert info.constant_rate
    assert info.fps == pytest.approx(float(spec.rate), rel=2e-3)
    assert (info.width, info.height, info.rotation) == (*spec.size, 0)
    assert info.codec == NAMES.get(spec.codec, spec.codec)
    assert info.pixel_format == spec.pixel_format
    assert info.audio is None
    assert info.duration == pytest.approx(len(spec.times) / float(spec.rate), rel=2e-3)
    assert info.keyframes[0] == 0


@pytest.mark.parametrize("fields", [{"codec": "libx265", "suffix": "mov"}, {}, {"suffix": "mkv"}], ids=str)
def test_variable_rate(film, fields):
    info = probe(film(times=VARYING, **fields))
    np.testing.assert_allclose(info.timestamps, VARYING, rtol=0, atol=1e-9)
    assert not info.constant_rate
    assert info.fps == pytest.approx(49 / VARYING[-1])


def test_a_missing_frame_makes_the_rate_variable(film, kit):
    times = [time for n, time in enumerate(kit.steps(40)) if n != 20]
    assert not probe(film(times=tuple(times))).constant_rate


def test_mpeg4_with_b_frames_in_avi(film):
    """AVI has no presentation times; FFmpeg counts the delay of the first B-frame as one frame."""
    info = probe(film(codec="mpeg4", suffix="avi"))
    np.testing.assert_allclose(info.timestamps, (np.arange(40) + 1) / 30, atol=1e-9)
    assert info.constant_rate


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(film, rotation):
    path = film(rotation=rotation, size=(96, 64))
    # ISO 14496-12, 8.3.2: x' = a x + c y, y' = b x + d y, y downwards: a quarter turn clockwise is (0, 1, -1, 0).
    at = path.read_bytes().index(b"tkhd") + 4 + 40
    a, b, _, c, d = struct.unpack(">5i", path.read_bytes()[at : at + 20])
    one = 1 << 16
    assert (a, b, c, d) == {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[rotation]
    info = probe(path)
    assert info.rotation == rotation
    assert (info.width, info.height) == ((96, 64) if rotation == 180 else (64, 96))


def test_sound(film, kit):
    info = probe(film(times=kit.steps(60), sound=kit.Sound(kit.clicks([0.5], 1.5, 48_000), 48_000)))
    assert info.audio is not None
    assert (info.audio.rate, info.audio.channels, info.audio.codec) == (48_000, 2, "aac")
    assert info.audio.offset == pytest.approx(0, abs=1e-3)
    assert info.audio.duration == pytest.approx(1.5, abs=0.025)


def test_sound_later_and_earlier(film, kit):
    sound = kit.clicks([0.5], 1.5, 48_000)
    later = probe(film(times=kit.steps(60), sound=kit.Sound(sound, 48_000, start=0.4, codec="pcm_s16le"), suffix="mkv"))
    assert later.audio is not None and later.audio.offset == pytest.approx(0.4, abs=1e-3)
    earlier = probe(film(times=kit.steps(60, start=0.5), sound=kit.Sound(sound, 48_000)))
    assert earlier.audio is not None and earlier.audio.offset == pytest.approx(0, abs=1e-3)
    assert earlier.timestamps[0] == pytest.approx(0.5)


def test_frames_cut_by_an_edit_list_do_not_count(film, kit):
    """Half a second before time 0 is written as an edit list that begins inside a group of pictures."""
    path = film(times=kit.steps(60, start=-0.5), keyframes=24)
    with av.open(str(path)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0)), "the file has no edit list to test"
    info = probe(path)
    assert info.frames == 45
    np.testing.assert_allclose(info.timestamps, np.arange(45) / 30, atol=1e-9)


def test_hidden_vp8_frames_do_not_count(film, kit, tmp_path):
    """Before each later keyframe, a copy of it that is decoded but never shown (as an alternate reference frame is)."""
    path = tmp_path / "hidden.webm"
    with av.open(str(film(codec="libvpx", suffix="webm"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            if packet.is_keyframe and packet.pts:
                data = bytearray(bytes(packet))
                data[0] &= ~0x10
                hidden = av.Packet(bytes(data))
                hidden.pts = hidden.dts = packet.pts - 1
                hidden.time_base, hidden.stream = packet.time_base, stream
                target.mux(hidden)
            packet.stream = stream
            target.mux(packet)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) > 40
    assert probe(path).frames == 40
    assert [(index, kit.number_of(frame)) for index, _, frame in frames(path)] == [(n, n) for n in range(40)]


def test_tags_in_an_old_code_page(film, tmp_path):
    path = film(suffix="avi", codec="mpeg4", metadata=(("title", "Zuerich"),))
    odd = tmp_path / "title.avi"
    odd.write_bytes(path.read_bytes().replace(b"Zuerich", b"Z\xfcr\xefch\xff"))
    assert b"\xfc" in odd.read_bytes()
    assert probe(odd).frames == 40


@pytest.mark.parametrize("name", ["take:1.mp4", "100%d.mp4", "Gesicht-Ä.mp4", "file:x.mp4", "-", "http:x"])
def test_names(film, tmp_path, monkeypatch, name):
    """A relative name that FFmpeg could take for an address, a pattern or the standard input."""
    (tmp_path / name).write_bytes(film().read_bytes())
    monkeypatch.chdir(tmp_path)
    assert probe(name).frames == 40
    assert str(probe(tmp_path / name).path) == str(tmp_path / name)


def test_the_default_stream_is_taken_and_cover_art_is_not(kit, tmp_path):
    """A picture, then a stream of 10 frames, then one of 20 that is marked default."""
    path = tmp_path / "streams.mkv"
    with av.open(str(path), "w") as container:
        packets = []
        for count, disposition in ((1, "attached_pic"), (10, None), (20, "default")):
            made = kit.video_packets(
                container, kit.Film(times=kit.steps(count), codec="mjpeg", pixel_format="yuvj420p")
            )
            made[0].stream.disposition = getattr(av.stream.Disposition, disposition) if disposition else 0
            packets += made
        for packet in sorted(packets, key=lambda p: p.dts):
            container.mux(packet)
    assert probe(path).frames == 20


def test_timestamps_cannot_be_written(film):
    with pytest.raises(ValueError):
        probe(film()).timestamps[0] = 1
