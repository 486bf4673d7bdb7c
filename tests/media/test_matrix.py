"""Every frame and every time of every kind of file, against a plain decode that shares no code with ours.

The plain decode is PyAV with one thread, from the first packet to the last, and colours by another part of FFmpeg.
(VP9 with 10 bits is missing: the FFmpeg in PyAV's wheel cannot write it.)
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from jmt_fast.media import colour, decode, frames, probe, select

VARYING = tuple(np.cumsum([0.0] + [(33, 40, 17, 50)[n % 4] / 1000 for n in range(59)]).tolist())
GAPS = tuple(n / 30 + (0.4 if n > 20 else 0) + (2.0 if n > 41 else 0) for n in range(60))
H265 = "log-level=none:pools=1:keyint=12"
PYRAMID = (("preset", "medium"), ("x264-params", "b-pyramid=normal:b-adapt=0:bframes=5"))
OPEN = (("preset", "medium"), ("x264-params", "open-gop=1:b-adapt=0:bframes=3:keyint=12"))
OPEN_265 = (("preset", "fast"), ("x265-params", f"{H265}:open-gop=1:bframes=4"))
FULL = (("x264-params", "fullrange=on"),)

H264 = {
    "mp4": {},
    "mp4, no B-frames": {"b_frames": 0},
    "mp4, pyramid": {"b_frames": 5, "codec_options": PYRAMID},
    "mp4, open groups": {"codec_options": OPEN},
    "mkv, open groups": {"codec_options": OPEN, "suffix": "mkv"},
    "ts, open groups": {"codec_options": OPEN, "suffix": "ts"},
    "mp4, one keyframe": {"keyframes": 500},
    "mp4, keyframes only": {"keyframes": 1, "b_frames": 0},
    "mp4, intra refresh": {"codec_options": (("x264-params", "intra-refresh=1:keyint=12"),), "b_frames": 0},
    "mp4, slices": {"codec_options": (("x264-params", "slices=4:sliced-threads=1"),), "size": (96, 128)},
    "mp4, interlaced": {"codec_options": (("preset", "medium"), ("x264-params", "tff=1")), "size": (96, 96)},
    "mp4, full range": {"pixel_format": "yuvj420p", "codec_options": FULL},
    "mp4, 4:2:2": {"pixel_format": "yuv422p"},
    "mp4, 4:4:4": {"pixel_format": "yuv444p"},
    "mp4, 10 bits": {"pixel_format": "yuv420p10le"},
    "mkv, 10 bits 4:2:2": {"pixel_format": "yuv422p10le", "suffix": "mkv"},
    "mkv, 10 bits 4:4:4": {"pixel_format": "yuv444p10le", "suffix": "mkv"},
    "mp4, even but not by 16": {"size": (98, 66)},
    "mp4, odd": {"size": (97, 65), "pixel_format": "yuv444p"},
    "mp4, varying": {"times": VARYING},
    "mp4, gaps": {"times": GAPS},
    "mkv, varying": {"times": VARYING, "suffix": "mkv"},
    "mp4, late start": {"start": 3.7},
    "mkv, late start": {"start": 3.7, "suffix": "mkv"},
    "ts, late start": {"start": 20.0, "suffix": "ts"},
    "mp4, edit list": {"start": -0.5},
    "mp4, edit list, open groups": {"start": -0.5, "codec_options": OPEN},
    "mp4, fragments": {"options": (("movflags", "frag_keyframe+empty_moov"),)},
    "mp4, 29.97": {"rate": Fraction(30_000, 1001), "times": tuple(n * 1001 / 30_000 for n in range(60))},
    "mp4, 0.5 fps": {"rate": Fraction(1, 2), "times": tuple(2.0 * n for n in range(14))},
    "mp4, 240 fps": {"rate": Fraction(240), "times": tuple(n / 240 for n in range(60))},
    "avi": {"suffix": "avi"},
    "avi, no B-frames": {"suffix": "avi", "b_frames": 0},
    "mp4, sound first": {"start": 0.6, "sound": 0.0},
    "mp4, sound later": {"sound": 0.7},
    "mkv, sound later": {"sound": 0.7, "suffix": "mkv"},
    "ts, sound first": {"start": 2.0, "sound": 1.4, "suffix": "ts"},
    **{f"mp4, turned by {turn}": {"rotation": turn, "keyframes": 12} for turn in (90, 180, 270)},
}
OTHERS = {
    "hevc mp4": {"codec": "libx265"},
    "hevc mov, varying": {"codec": "libx265", "suffix": "mov", "times": VARYING},
    "hevc mkv, open groups": {"codec": "libx265", "suffix": "mkv", "codec_options": OPEN_265},
    "hevc ts, open groups": {"codec": "libx265", "suffix": "ts", "codec_options": OPEN_265},
    "hevc mp4, edit list, open groups": {"codec": "libx265", "start": -0.5, "codec_options": OPEN_265},
    "hevc mp4, 10 bits": {"codec": "libx265", "pixel_format": "yuv420p10le"},
    "hevc mkv, 4:2:2": {"codec": "libx265", "pixel_format": "yuv422p", "suffix": "mkv"},
    "hevc mkv, 10 bits 4:4:4": {"codec": "libx265", "pixel_format": "yuv444p10le", "suffix": "mkv"},
    "hevc mp4, turned by 270": {"codec": "libx265", "rotation": 270},
    "vp9 webm": {"codec": "libvpx-vp9", "suffix": "webm"},
    "vp9 webm, hidden frames": {
        "codec": "libvpx-vp9",
        "suffix": "webm",
        "codec_options": (("deadline", "good"), ("cpu-used", "5"), ("auto-alt-ref", "1"), ("lag-in-frames", "16")),
    },
    "vp9 mp4, odd": {"codec": "libvpx-vp9", "size": (97, 65)},
    "vp9 webm, 4:2:2": {"codec": "libvpx-vp9", "suffix": "webm", "pixel_format": "yuv422p"},
    "vp9 webm, 4:4:4": {"codec": "libvpx-vp9", "suffix": "webm", "pixel_format": "yuv444p"},
    "vp9 webm, varying": {"codec": "libvpx-vp9", "suffix": "webm", "times": VARYING},
    "vp8 webm, hidden frames": {
        "codec": "libvpx",
        "suffix": "webm",
        "codec_options": (("deadline", "good"), ("auto-alt-ref", "1"), ("lag-in-frames", "16"), ("b", "200k")),
    },
    "av1 mp4": {"codec": "libsvtav1", "codec_options": (("preset", "12"), ("svtav1-params", "lp=1"))},
    "av1 mkv, 10 bits": {
        "codec": "libsvtav1",
        "suffix": "mkv",
        "pixel_format": "yuv420p10le",
        "codec_options": (("preset", "12"), ("svtav1-params", "lp=1")),
    },
    "mpeg4 mp4": {"codec": "mpeg4"},
    "mpeg4 avi": {"codec": "mpeg4", "suffix": "avi"},
    "mpeg4 avi, odd": {"codec": "mpeg4", "suffix": "avi", "size": (97, 65), "b_frames": 0},
    "mpeg4 mkv, varying": {"codec": "mpeg4", "suffix": "mkv", "times": VARYING},
    "mjpeg avi": {"codec": "mjpeg", "suffix": "avi", "pixel_format": "yuvj420p", "size": (97, 65)},
    "mjpeg mov, 4:2:2": {"codec": "mjpeg", "suffix": "mov", "pixel_format": "yuvj422p"},
    "mjpeg mkv, 4:4:4": {"codec": "mjpeg", "suffix": "mkv", "pixel_format": "yuvj444p", "size": (97, 65)},
    "ffv1 rgb mkv": {"codec": "ffv1", "suffix": "mkv", "pixel_format": "bgr0"},
}
FILMS = {**{f"h264 {name}": fields for name, fields in H264.items()}, **OTHERS}
# Packets to leave out at the start, so that the stream begins without a keyframe.
BEHEADED = [
    (name, cut)
    for name in ("h264 mp4", "h264 mkv, open groups", "h264 ts, open groups", "hevc mp4", "hevc mkv, open groups")
    for cut in (1, 5)
    if not ("hevc mkv" in name and cut == 1)  # Matroska refuses its times
] + [(name, 5) for name in ("vp9 webm", "mpeg4 mp4", "mpeg4 avi")]

SETTINGS = (
    Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)


@pytest.fixture(scope="module")
def make(film, kit) -> Callable[..., Path]:
    """make(case) -> path; make(case, cut) -> the same without its first packets."""

    def made(case: str, cut: int = 0) -> Path:
        fields = dict(FILMS[case])
        start = fields.pop("start", 0.0)
        fields.setdefault("times", kit.steps(60, start=start))
        if "sound" in fields:
            samples = kit.clicks([0.5], 1.5, 48_000)
            fields["sound"] = kit.Sound(samples, 48_000, start=fields["sound"])
        whole = film(**fields)
        return beheaded(whole, cut) if cut else whole

    return made


def beheaded(path: Path, cut: int) -> Path:
    """A copy without the first `cut` packets of the video stream."""
    copy = path.with_name(f"beheaded-{cut}-{path.name}")
    with av.open(str(path)) as source, av.open(str(copy), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if number >= cut:
                packet.stream = stream
                target.mux(packet)
    return copy


def plain(path: Path) -> list[tuple[float, np.ndarray]]:
    """(seconds, RGB) of every frame that FFmpeg decodes, in its order."""
    out = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                decoded = stream.codec_context.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue
            out += [(float(frame.pts * stream.time_base), frame) for frame in decoded]
        return [(seconds, rgb(frame)) for seconds, frame in out]


def rgb(frame: av.VideoFrame) -> np.ndarray:
    """The documented rule, by another road: FFmpeg's older scaler, on a copy that carries no tag; then numpy's turn."""
    turns = round(frame.rotation / 90)
    bare = untagged(frame)
    if not frame.format.is_rgb:
        full = frame.format.name.startswith("yuvj")
        bare = bare.reformat(
            format="rgb24",
            src_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            interpolation=SETTINGS,
        )
    return np.rot90(bare.to_ndarray(format="rgb24"), turns)


def untagged(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy of the samples alone."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for target, source in zip(copy.planes, frame.planes, strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, -1)
        wide = min(target.line_size, source.line_size)
        np.frombuffer(target, np.uint8).reshape(target.height, -1)[:, :wide] = rows[:, :wide]
    return copy


def same(ours: list, theirs: list[tuple[float, np.ndarray]], times: list[float]) -> None:
    """Each frame once, in order, with its time and to the bit."""
    assert [index for index, _, _ in ours] == list(range(len(theirs)))
    assert [seconds for _, seconds, _ in ours] == times
    for (index, _, frame), (_, expected) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(frame, expected, err_msg=f"frame {index}")


@pytest.mark.parametrize("case", FILMS, ids=str)
def test_frames_and_times_are_ffmpegs_own(make, case):
    path = make(case)
    theirs, info = plain(path), probe(path)
    assert info.frames == len(theirs) > 0
    if info.timed:
        assert info.timestamps.tolist() == [seconds for seconds, _ in theirs]
    else:  # FFmpeg gives such frames their decoding times, which are not in order; ours are, and as many
        assert info.container == "avi" and (np.diff(info.timestamps) > 0).all()
    same(list(frames(path)), theirs, info.timestamps.tolist())


COLOURED = [
    ("libx264", "mp4", "yuv420p", (96, 64)),
    ("libx264", "mp4", "yuvj420p", (96, 64)),
    ("libx264", "mp4", "yuv422p", (96, 64)),
    ("libx264", "mp4", "yuv444p", (97, 65)),
    ("libx264", "mp4", "yuv420p10le", (96, 64)),
    ("libx264", "mp4", "yuv422p10le", (96, 64)),
    ("libx264", "mp4", "yuv444p10le", (97, 65)),
    ("libx265", "mp4", "yuv420p", (96, 64)),
    ("libx265", "mp4", "yuv420p10le", (96, 64)),
    ("libx265", "mp4", "yuv420p12le", (96, 64)),
    ("libx265", "mp4", "gbrp", (96, 64)),
    ("libvpx-vp9", "webm", "yuv420p", (97, 65)),
    ("libvpx-vp9", "webm", "yuv440p", (97, 65)),
    ("libsvtav1", "mkv", "yuv420p10le", (96, 64)),
    ("mpeg4", "avi", "yuv420p", (97, 65)),
    ("mjpeg", "avi", "yuvj422p", (97, 65)),
    ("prores_ks", "mov", "yuv422p10le", (97, 65)),
    ("ffv1", "mkv", "yuv411p", (97, 65)),
    ("ffv1", "mkv", "yuva420p", (97, 65)),
    ("ffv1", "mkv", "gray", (97, 65)),
    ("ffv1", "mkv", "bgr0", (97, 65)),
    ("rawvideo", "avi", "nv12", (96, 64)),
]


@pytest.mark.parametrize(("codec", "suffix", "pixel_format", "size"), COLOURED, ids=str)
def test_the_colour_rule_in_every_pixel_format(tmp_path, codec, suffix, pixel_format, size):
    """Coloured blocks, 5 pixels a side so that chroma is interpolated everywhere."""
    path = tmp_path / f"colours.{suffix}"
    blocks = np.random.default_rng(0).integers(0, 256, (3, 14, 20, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for block in blocks:
            picture = np.ascontiguousarray(block.repeat(5, 0).repeat(5, 1)[: size[1], : size[0]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture).reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.pixel_format == pixel_format
    same(list(frames(path)), plain(path), info.timestamps.tolist())


@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv440p", "nv12", "yuv420p10le"]
)
@pytest.mark.parametrize("size", [(96, 64), (97, 64), (98, 66), (97, 65), (640, 359), (1, 1), (3, 2)], ids=str)
def test_the_rule_holds_for_noise_to_the_bit(pixel_format, size):
    """Every value and neighbour comes up in noise: FFmpeg's ways to convert must all be the one that is stated."""
    frame = av.VideoFrame(*size, pixel_format)
    random = np.random.default_rng(0)
    for plane in frame.planes:
        top = 1024 if pixel_format.endswith("10le") else 256
        dtype = np.uint16 if pixel_format.endswith("10le") else np.uint8
        plane.update(random.integers(0, top, plane.buffer_size // dtype().itemsize, dtype=dtype).tobytes())
    graph = av.filter.Graph()
    reach = "full" if pixel_format.startswith("yuvj") else "limited"
    rule = f"{colour.SETTINGS}:in_color_matrix=bt601:in_range={reach}:in_chroma_loc=center"
    width, height = size
    source = graph.add_buffer(width=width, height=height, format=frame.format, time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("scale", rule), graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    np.testing.assert_array_equal(colour.ToRGB()(frame), graph.pull().to_ndarray())


@pytest.mark.parametrize(("case", "cut"), BEHEADED, ids=str)
def test_streams_that_begin_without_a_keyframe(make, case, cut):
    """MPEG-4 is the exception to "FFmpeg's own": what it paints on grey before the first keyframe is left out."""
    path = make(case, cut)
    theirs, info = plain(path), probe(path)
    if info.codec == "mpeg4":
        theirs = [(seconds, frame) for seconds, frame in theirs if info.timestamps[0] <= seconds <= info.timestamps[-1]]
    assert 0 < info.frames == len(theirs) and info.undecodable > 0
    assert info.timestamps.tolist() == [seconds for seconds, _ in theirs]
    same(list(frames(path)), theirs, info.timestamps.tolist())


@pytest.mark.parametrize("case", FILMS, ids=str)
def test_a_seek_changes_nothing(make, case, monkeypatch):
    """From the first keyframes and the last, and from frames around them."""
    path = make(case)
    info = probe(path)
    monkeypatch.setattr(decode, "SEEK_FRAMES", 1)
    linear = {index: frame for index, _, frame in frames(path)}
    near = {int(key) + step for key in (*info.keyframes[:4], info.keyframes[-1]) for step in (-1, 0, 1, 5)}
    for start in sorted({*near, info.frames - 1} & set(range(info.frames))):
        got = list(frames(path, start, start + 7, 3))
        assert [index for index, _, _ in got] == list(range(start, min(start + 7, info.frames), 3))
        for index, seconds, frame in got:
            assert seconds == info.timestamps[index]
            np.testing.assert_array_equal(frame, linear[index], err_msg=f"frame {index} from {start}")


@pytest.mark.parametrize("case", FILMS, ids=str)
def test_leaving_frames_out_changes_nothing(make, case):
    """Frames that nobody wants or refers to need not be decoded: the others are what they are in a full decode."""
    path = make(case)
    linear = {index: frame for index, _, frame in frames(path)}
    scattered = np.flatnonzero(np.random.default_rng(0).random(len(linear)) < 0.3).tolist()
    for wanted in (list(linear)[::4], list(linear)[3::4], scattered):
        got = list(select(path, iter(wanted)))
        assert [index for index, _, _ in got] == wanted
        for index, _, frame in got:
            np.testing.assert_array_equal(frame, linear[index], err_msg=f"frame {index} of {wanted}")


@pytest.mark.parametrize("case", FILMS, ids=str)
def test_a_seek_saves_decoding(make, case, monkeypatch):
    """The last frame of each kind of file takes at most two groups of pictures."""
    path = make(case)
    info = probe(path)
    before = info.keyframes[info.keyframes < info.frames - 1]
    if len(before) < 2 or not info.timed or "refresh" in case:
        pytest.skip("a single keyframe, no presentation times, or none but a linear decode is exact")
    monkeypatch.setattr(decode, "SEEK_FRAMES", 1)
    decoded = []
    run = decode._decoded

    def count(*given):
        for each in run(*given):
            decoded.append(each)
            yield each

    monkeypatch.setattr(decode, "_decoded", count)
    assert [index for index, _, _ in frames(path, info.frames - 1)] == [info.frames - 1]
    assert len(decoded) <= 2 * (info.frames - before[-2])
