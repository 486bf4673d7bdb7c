"""Opening a media file with FFmpeg (through PyAV): a bad input becomes one line that names the file and the remedy."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import av
import av.container
import av.stream
from av.stream import Discard, Disposition

from jmt_fast.errors import MediaError

MAX_SIDE = 16_384  # pixels; also bounds an image to 2**28 pixels
TEXT_FORMATS = {"tty"}  # FFmpeg renders a text file as a video of a terminal
PICTURE_FORMATS = {"image2", "ico"}  # besides `<codec>_pipe`

AnyStream = TypeVar("AnyStream", bound=av.stream.Stream)


@contextmanager
def open_media(path: str | os.PathLike[str]) -> Iterator[av.container.InputContainer]:
    """A container open for reading, closed on leaving.

    Raises MediaError for a path that is missing, a directory, not a regular file, not readable, empty, or not media.
    """
    path = Path(path)
    _check_file(path)
    try:
        # `file:` keeps a colon or a `%d` in a name from being read as a protocol or a pattern. Tags in an old code
        # page are common in AVI and must not stop the opening.
        container = av.open(f"file:{path.absolute()}", "r", metadata_errors="replace")
    except PermissionError:
        raise MediaError(f"{path}: not readable: permission denied; change its permissions") from None
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file; it may have been moved or deleted") from None
    except av.FFmpegError as error:
        raise MediaError(f"{path}: {_why_not_media(path, error)}") from None
    with container:
        name = container.format.name
        if name in TEXT_FORMATS:
            raise MediaError(f"{path}: not a media file (text); give a video file")
        if name.endswith("_pipe") or name in PICTURE_FORMATS:
            raise MediaError(f"{path}: a picture ({name.removesuffix('_pipe')}), not a video; give a video file")
        yield container


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{path}: a directory, not a video; give a file inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise MediaError(f"{path}: not a regular file; give a video file on disk")
        if status.st_size == 0:
            raise MediaError(f"{path}: the file is empty; copy or record it again")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file; it may have been moved or deleted") from None
    except PermissionError:
        raise MediaError(f"{path}: not readable: permission denied; change its permissions") from None
    except (OSError, ValueError) as error:  # an input/output error, a loop of links, a NUL in the name
        raise MediaError(f"{path}: not readable: {getattr(error, 'strerror', None) or error}; check the disk") from None


def _why_not_media(path: Path, error: av.FFmpegError) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        head = b""
    if head[4:8] == b"ftyp":
        return "truncated: the MP4 index (moov) is missing or damaged; copy or record the file again"
    return f"not a video that FFmpeg can read ({error.strerror or error}); give a video file"


def pick(streams: Sequence[AnyStream]) -> AnyStream | None:
    """The stream to use: the first one marked default, else the first. Cover art and still pictures are left out."""
    moving = [s for s in streams if not s.disposition & (Disposition.attached_pic | Disposition.still_image)]
    return next((s for s in moving if s.disposition & Disposition.default), moving[0] if moving else None)


def tick(stream: av.stream.Stream) -> float:
    """Seconds of one unit of the stream's times."""
    return float(stream.time_base or 0)


def ignore_others(container: av.container.InputContainer, *wanted: av.stream.Stream) -> None:
    """Let the demuxer skip the packets of all other streams without reading them."""
    for stream in container.streams:
        if stream not in wanted:
            stream.discard = Discard.all


def packets(container: av.container.InputContainer, *streams: AnyStream) -> Iterator[av.Packet]:
    """The packets with data of these streams, to the end or to the first place where the file cannot be read on."""
    ignore_others(container, *streams)
    try:
        for packet in container.demux(*streams):
            if packet.size:  # an empty one would put the decoder into flushing
                yield packet
    except av.FFmpegError:
        return
