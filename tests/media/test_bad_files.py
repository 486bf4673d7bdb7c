"""What a user can hand over that is no usable video: one line that names the file, the reason and the remedy."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest

from jmt_fast.errors import MediaError
from jmt_fast.media import SoundReader, audio, frames, probe, select


def refused(path, reason: str, *readers) -> None:
    """Each reader raises a MediaError of one line with the path, the reason, and a remedy after a semicolon."""
    for read in readers or (probe, lambda p: list(frames(p)), lambda p: list(select(p, [0]))):
        with pytest.raises(MediaError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and reason in message and "\n" not in message and "; " in message


EVERY_READER = (probe, lambda p: list(frames(p)), lambda p: list(select(p, [0])), audio, SoundReader)


def test_empty(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    refused(path, "empty", *EVERY_READER)


def test_missing(tmp_path):
    refused(tmp_path / "gone.mp4", "no such file", *EVERY_READER)


def test_directory(tmp_path):
    refused(tmp_path, "a directory", *EVERY_READER)


def test_pipe(tmp_path):
    """Opening one that nobody writes to would wait for ever."""
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    refused(path, "not a regular file", *EVERY_READER)


def test_loop_of_links(tmp_path):
    path = tmp_path / "loop.mp4"
    path.symlink_to(path)
    refused(path, "not readable", *EVERY_READER)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file: permissions cannot be tested as root")
def test_no_permission(film, tmp_path):
    path = tmp_path / "locked.mp4"
    path.write_bytes(film().read_bytes())
    path.chmod(0)
    refused(path, "permission denied", *EVERY_READER)


def test_permission_denied_by_the_system(film, monkeypatch):
    """As above, for a system that refuses only at the opening: the error of the operating system is passed on."""
    path = film()

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", deny)
    refused(path, "permission denied", *EVERY_READER)


@pytest.mark.parametrize("content", [b"valence,arousal\n0.1,0.2\n" * 50, bytes(5000), bytes(range(256)) * 40])
@pytest.mark.parametrize("name", ["text.mp4", "text.avi", "text.txt"])
def test_not_media(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, "not a", probe, lambda p: list(frames(p)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("renamed", [False, True])
def test_picture(tmp_path, kit, suffix, renamed):
    from PIL import Image

    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(kit.numbered(5, 64, 64)).save(path)
    if renamed:
        path = path.rename(tmp_path / "picture.mp4")
    refused(path, "a picture")


def test_animation_of_one_picture(tmp_path, kit):
    from PIL import Image

    path = tmp_path / "one.gif"
    Image.fromarray(kit.numbered(5, 64, 64)).save(path)
    refused(path, "a picture")


def test_truncated_without_index(film, kit, tmp_path):
    path = tmp_path / "cut.mp4"
    whole = film(times=kit.steps(90)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "truncated", *EVERY_READER)


@pytest.mark.parametrize("part", [0.5, 0.7, 0.9])
def test_truncated_with_the_index_in_front(film, kit, tmp_path, part):
    """What is there is read; times and numbers agree."""
    whole = film(times=kit.steps(90), b_frames=0, options=(("movflags", "faststart"),)).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: int(len(whole) * part)])
    info = probe(path)
    seen = [(index, kit.number_of(frame)) for index, _, frame in frames(path)]
    assert 10 < info.frames < 90 and 0 <= info.frames - len(seen) <= 1  # the last packet may be a part of one
    assert seen == [(n, n) for n in range(len(seen))]
    np.testing.assert_allclose(info.timestamps, np.arange(info.frames) / 30, atol=1e-9)


def test_audio_only(kit, tmp_path):
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        for packet in kit.sound_packets(container, kit.Sound(kit.clicks([0.5], 1, 48_000), 48_000)):
            container.mux(packet)
    refused(path, "no video stream (the file has: audio)")
    assert len(audio(path)[1]) > 40_000


def test_cover_art_is_no_video(kit, tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = kit.video_packets(container, kit.Film(times=(0.0,), codec="mjpeg", pixel_format="yuvj420p"))
        cover[0].stream.disposition = av.stream.Disposition.attached_pic
        sound = kit.sound_packets(container, kit.Sound(kit.clicks([0.5], 1, 48_000), 48_000))
        for packet in [*cover, *sound]:
            container.mux(packet)
    refused(path, "no video stream")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_no_frames(kit, tmp_path, suffix):
    path = tmp_path / f"none.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = kit.Sound(kit.clicks([0.5], 1, 44_100), 44_100, codec="libmp3lame")
        for packet in kit.sound_packets(container, sound):
            container.mux(packet)
    refused(path, "no video stream" if suffix == "mp4" else "no frames")


@pytest.mark.parametrize("size", [(16_400, 16), (16, 16_400)], ids=str)
def test_absurd_size(film, size):
    refused(film(codec="ffv1", suffix="mkv", size=size, times=(0.0,)), "more than 16384 a side")


def test_the_largest_side_is_fine(film):
    path = film(codec="ffv1", suffix="mkv", size=(16_384, 16), times=(0.0,))
    assert next(frames(path))[2].shape == (16, 16_384, 3)


def test_a_file_that_vanishes_between_probing_and_reading(film, tmp_path):
    path = tmp_path / "brief.mp4"
    path.write_bytes(film().read_bytes())
    info = probe(path)
    path.unlink()
    refused(path, "no such file", lambda p: list(select(p, [0], info)))


def test_a_playlist_cannot_reach_out(tmp_path):
    """A local playlist that names an address must not open a connection (an error at once, not after a time-out)."""
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n")
    refused(path, "not a video", probe)
