from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def

from jmt_fast.errors import MediaError
from jmt_fast.media import decode, frames, probe, select

VARYING = tuple(np.cumsum([0.0] + [(33, 40, 17, 50)[n % 4] / 1000 for n in range(69)]).tolist())

FILMS = {
    "h264 mp4": {},
    "h264 mp4 odd": {"size": (97, 65), "pixel_format": "yuv444p"},
    "h264 mp4 varying": {"times": VARYING},
    "h264 mkv varying": {"times": VARYING, "suffix": "mkv"},
    "h264 mp4 pyramid": {
        "b_frames": 4,
        "codec_options": (("preset", "medium"), ("x264-params", "b-pyramid=normal:b-adapt=0")),
    },
    "h264 ts": {"suffix": "ts", "times": tuple(1.5 + n / 25 for n in range(40)), "rate": Fraction(25)},
    "h264 avi": {"suffix": "avi"},
    "h264 avi pyramid": {
        "suffix": "avi",
        "b_frames": 4,
        "codec_options": (("preset", "medium"), ("x264-params", "b-pyramid=normal:b-adapt=0")),
    },
    "hevc mov varying": {"codec": "libx265", "suffix": "mov", "times": VARYING},
    "hevc mp4": {"codec": "libx265"},
    "vp9 webm odd": {"codec": "libvpx-vp9", "suffix": "webm", "size": (97, 65)},
    "vp8 webm": {"codec": "libvpx", "suffix": "webm"},
    "mpeg4 avi": {"codec": "mpeg4", "suffix": "avi"},
    "mpeg4 avi odd": {"codec": "mpeg4", "suffix": "avi", "size": (97, 65), "b_frames": 0},
    "mjpeg avi odd": {"codec": "mjpeg", "suffix": "avi", "size": (97, 65), "pixel_format": "yuvj420p"},
    "ffv1 rgb mkv": {"codec": "ffv1", "suffix": "mkv", "pixel_format": "bgr0"},
}


@pytest.mark.parametrize("case", FILMS, ids=str)
def test_every_frame_has_its_index_and_time(film, kit, case):
    spec = kit.Film(**FILMS[case])
    path = film(**FILMS[case])
    info = probe(path)
    seen = list(frames(path))
    count = len(spec.times)
    assert [index for index, _, _ in seen] == list(range(count))
    assert [kit.number_of(frame) for _, _, frame in seen] == list(range(count))
    assert [time for _, time, _ in seen] == info.timestamps.tolist()
    assert all(
        f.shape == (spec.size[1], spec.size[0], 3) and f.dtype == np.uint8 and f.flags.c_contiguous for _, _, f in seen
    )


@pytest.mark.parametrize("case", ["h264 mp4 varying", "hevc mov varying", "vp9 webm odd", "mpeg4 avi", "h264 avi"])
def test_select_gives_the_wanted_frames_only(film, kit, case):
    path = film(**FILMS[case])
    wanted = [0, 1, 7, 13, 14, 38]
    for info in (None, probe(path)):
        got = [(index, kit.number_of(frame)) for index, _, frame in select(path, iter(wanted), info)]
        assert got == [(n, n) for n in wanted]
    assert [index for index, _, _ in select(path, [37, 10_000])] == [37]
    assert list(select(path, [])) == list(select(path, [10_000])) == []


LONG = {
    "h264 mp4": {"keyframes": 20},
    "h264 open groups": {
        "keyframes": 20,
        "codec_options": (("preset", "medium"), ("x264-params", "open-gop=1:b-adapt=0:bframes=3:keyint=20")),
    },
    "hevc mov open groups": {
        "codec": "libx265",
        "suffix": "mov",
        "keyframes": 20,
        "codec_options": (("x265-params", "log-level=none:open-gop=1:keyint=20"),),
    },
    "h264 mkv, one keyframe": {"suffix": "mkv", "keyframes": 500},
    "vp9 webm": {"codec": "libvpx-vp9", "suffix": "webm", "keyframes": 20},
    "mpeg4 avi": {"codec": "mpeg4", "suffix": "avi", "keyframes": 20},
    "h264 avi": {"suffix": "avi", "keyframes": 20},
    "h264 ts": {"suffix": "ts", "keyframes": 20},
    "hevc mkv, late": {"codec": "libx265", "suffix": "mkv", "keyframes": 15, "start": 2.0},
}


@pytest.mark.parametrize("case", LONG, ids=str)
def test_a_seek_changes_nothing(film, kit, case):
    fields = dict(LONG[case])
    path = film(times=kit.steps(200, start=fields.pop("start", 0.0)), **fields)
    linear = {index: frame for index, _, frame in frames(path)}
    assert sorted(linear) == list(range(200))
    for start in (49, 50, 60, 61, 99, 119, 120, 121, 179, 199):
        got = list(frames(path, start, start + 24, 5))
        assert [index for index, _, _ in got] == list(range(start, min(start + 24, 200), 5))
        assert all(np.array_equal(frame, linear[index]) for index, _, frame in got)


def test_a_far_start_decodes_from_a_keyframe_near_it(film, kit, monkeypatch):
    path = film(times=kit.steps(200), keyframes=20)
    decoded = []
    run = decode._decoded

    def count(*arguments):
        for frame in run(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(decode, "_decoded", count)
    assert [kit.number_of(frame) for _, _, frame in frames(path, 165, 170)] == [165, 166, 167, 168, 169]
    assert len(decoded) < 25


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_that_nobody_needs_are_not_decoded(film, kit, monkeypatch, codec):
    """Of three B-frames in a row two are referred to by none."""
    path = film(times=kit.steps(120), codec=codec, b_frames=3, keyframes=60)
    decoded, run = [], decode._decoded

    def count(*arguments):
        for frame in run(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(decode, "_decoded", count)
    assert [kit.number_of(frame) for _, _, frame in frames(path, step=30)] == [0, 30, 60, 90]
    assert len(decoded) < 70
    decoded.clear()
    assert len(list(frames(path))) == len(decoded) == 120


def test_a_seek_to_a_damaged_keyframe_changes_nothing(film, kit):
    """FFmpeg patches what follows from frames before the keyframe, so these must have been decoded."""
    path = kit.damaged(film(times=kit.steps(200), keyframes=20, b_frames=0), "video", [160])
    linear = {index: frame for index, _, frame in frames(path)}
    got = list(frames(path, 165, 175))
    assert [index for index, _, _ in got] == [index for index in range(165, 175) if index in linear]
    assert all(np.array_equal(frame, linear[index]) for index, _, frame in got)


def test_frames_of_unknown_times_are_left_out(film, kit):
    """As where the packets were counted by another rule than the decoder's: no other frame moves."""
    path = film()
    info = probe(path)
    without = replace(info, frames=39, timestamps=np.delete(info.timestamps, 20), keyframes=info.keyframes[:1])
    got = [(index, kit.number_of(frame)) for index, _, frame in select(path, range(39), without)]
    assert got == [(n, n if n < 20 else n + 1) for n in range(39)]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_damaged_packets_leave_holes_and_shift_nothing(film, kit, suffix):
    path = film(codec="mjpeg", suffix=suffix, pixel_format="yuvj420p")
    holes = [0, 5, 6, 20, 39]
    seen = [(index, kit.number_of(frame)) for index, _, frame in frames(kit.damaged(path, "video", holes))]
    assert seen == [(n, n) for n in range(40) if n not in holes]


@pytest.mark.parametrize("fields", [{}, {"codec": "libx265"}, {"codec": "mpeg4", "suffix": "avi"}], ids=str)
def test_a_damaged_group_of_pictures_does_not_shift_the_next(film, kit, fields):
    """Groups of 12; those of frames 12-23 are in ruins. What FFmpeg patches there is not judged, the rest is."""
    path = film(times=kit.steps(60), b_frames=0, **fields)
    broken = kit.damaged(path, "video", range(12, 24))
    runs = [list(frames(broken)) for _ in range(2)]
    numbers = {index: kit.number_of(frame) for index, _, frame in runs[0] if not 12 <= index < 24}
    assert numbers == {n: n for n in range(60) if not 12 <= n < 24}
    assert [index for index, _, _ in runs[0]] == [index for index, _, _ in runs[1]]


def test_counted_frames_keep_their_place_behind_lost_ones(kit, film):
    """H.264 with B-frames in AVI has no presentation times: frames are counted, and lost packets with them."""
    path = film(suffix="avi", times=kit.steps(60))
    assert not probe(path).timed
    broken = kit.damaged(path, "video", range(12, 24))
    numbers = {index: kit.number_of(frame) for index, _, frame in frames(broken) if index < 6 or index >= 30}
    assert numbers == {n: n for n in range(60) if n < 6 or n >= 30}


def test_nothing_decodes(film, kit):
    path = film(codec="mjpeg", suffix="mp4", pixel_format="yuvj420p")
    with pytest.raises(MediaError, match="none of its mjpeg frames can be decoded"):
        list(frames(kit.damaged(path, "video", range(40))))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(film, kit, rotation):
    size = (96, 64)
    plain = {index: frame for index, _, frame in frames(film(size=size, keyframes=11))}
    turned = {index: frame for index, _, frame in frames(film(size=size, keyframes=11, rotation=rotation))}
    for index, frame in turned.items():
        assert frame.flags.c_contiguous
        # numpy turns counter-clockwise
        np.testing.assert_array_equal(np.rot90(frame, rotation // 90), plain[index])


def test_one_frame(film, kit):
    path = film(times=(0.5,))
    info = probe(path)
    assert (info.frames, info.constant_rate, info.timestamps.tolist()) == (1, True, [0.5])
    assert [index for index, _, _ in frames(path)] == [0]


def test_reading_is_deterministic_and_threads_do_not_meet(film, kit):
    path = film(times=kit.steps(200), keyframes=20)
    runs: list[list] = [[] for _ in range(3)]

    def read(out: list) -> None:
        out.extend(frames(path, 3, 150, 2))

    threads = [threading.Thread(target=read, args=(out,)) for out in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in runs[1:]:
        assert [(i, t) for i, t, _ in run] == [(i, t) for i, t, _ in runs[0]]
        assert all(np.array_equal(a, b) for (_, _, a), (_, _, b) in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("arguments", [{"start": -1}, {"stop": -1}, {"step": 0}, {"step": -2}], ids=str)
def test_wrong_ranges(film, arguments):
    with pytest.raises(ValueError, match="start="):
        frames(film(), **arguments)


@pytest.mark.parametrize("indices", [[3, 3], [5, 4], [-1], [0, -1]], ids=str)
def test_wrong_indices(film, indices):
    with pytest.raises(ValueError, match="ascend strictly"):
        list(select(film(), indices))


def test_leaving_early_closes_the_file(film, tmp_path):
    path = tmp_path / "early.mp4"
    path.write_bytes(film().read_bytes())
    reader = frames(path)
    next(reader)
    assert path in [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    reader.close()
    assert path not in [link.resolve() for link in Path("/proc/self/fd").iterdir()]


def _flat(path, colour, pixel_format, matrix, reach):
    """A lossless video of one YUV colour, tagged with a matrix and a range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, reach
        planes = [np.full((rows, 64), value, np.uint8) for rows, value in zip((48, 12, 12), colour, strict=True)]
        frame = av.VideoFrame.from_ndarray(np.concatenate(planes), pixel_format)
        frame.colorspace, frame.color_range = matrix, reach
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 2, 6, 9], ids=["BT.709", "no tag", "BT.601", "BT.2020"])
@pytest.mark.parametrize("colour", [(120, 90, 170), (81, 90, 120), (200, 128, 128)], ids=str)
def test_colours_are_bt601_whatever_the_tag(tmp_path, colour, matrix, full):
    """ITU-R BT.601: Y in 16-235 and chroma in 16-240, or 0-255 where the pixel format says full range."""
    path = _flat(tmp_path / "flat.mp4", colour, "yuvj420p" if full else "yuv420p", matrix, 2 if full else 1)
    y, cb, cr = (
        (colour[0], *(c - 128 for c in colour[1:]))
        if full
        else ((colour[0] - 16) * 255 / 219, *((c - 128) * 255 / 224 for c in colour[1:]))
    )
    expected = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)
    _, _, frame = next(frames(path))
    assert np.abs(frame - expected).max() <= 1.0


@pytest.mark.parametrize("case", ["vp9 webm odd", "vp8 webm", "mjpeg avi odd"])
def test_colours_equal_dali(film, case):
    """DALI's CPU decoder knows these codecs; `colour.py` promises its values to the bit."""
    path = film(**FILMS[case])

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decoder():
        return fn.decoders.video(fn.external_source(lambda: [np.frombuffer(path.read_bytes(), np.uint8)]), device="cpu")

    pipeline = decoder()
    pipeline.build()
    theirs = np.asarray(pipeline.run()[0][0])
    np.testing.assert_array_equal(theirs, np.stack([frame for _, _, frame in frames(path)]))
