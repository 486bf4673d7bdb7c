"""Reads damaged files in a process of its own: a crash or a hang ends it, and not the tests.

`python worker.py < paths` prints for each path "START path", and then one line of JSON: {"error": message}, or what
`frames`, `audio` and FFmpeg itself make of it.
"""

from __future__ import annotations

import json
import sys
import zlib
from itertools import chain
from pathlib import Path

import av
import numpy as np

from jmt_fast.errors import MediaError
from jmt_fast.media import MediaInfo, audio, frames, probe
from jmt_fast.media.colour import ToRGB
from jmt_fast.media.container import open_media, packets
from jmt_fast.media.probe import video_stream


def read(path: str) -> dict:
    try:
        info = probe(path)
        ours = [(index, seconds, zlib.crc32(frame), frame.shape) for index, seconds, frame in frames(path)]
    except MediaError as error:
        return {"error": str(error)}
    start, samples = audio(path)
    return {
        "frames": info.frames,
        "size": (info.height, info.width, 3),
        "times": info.timestamps.tolist(),
        "timed": info.timed,
        "ours": ours,
        "theirs": plain(path, info) if info.timed else [],
        "sound": bool(np.isfinite(samples).all() and np.isfinite(start)),
    }


def plain(path: str, info: MediaInfo) -> list[tuple[float, int]]:
    """(seconds, checksum of the RGB) of each frame that FFmpeg gives out unmarked."""
    out, to_rgb, turns = [], ToRGB(), -info.rotation // 90
    width, height = (info.height, info.width) if turns % 2 else (info.width, info.height)
    with open_media(path) as container:
        stream = video_stream(container, Path(path))
        stream.codec_context.thread_count = 1
        for packet in chain(packets(container, stream), [None]):
            try:
                decoded = stream.codec_context.decode(packet)
            except av.FFmpegError:
                continue
            for frame in decoded:
                if frame.pts is not None and not frame.is_corrupt:
                    seconds = frame.pts * stream.time_base
                    rgb = np.rot90(to_rgb(frame, width, height), turns)
                    out.append((float(seconds), zlib.crc32(np.ascontiguousarray(rgb))))
    return out


if __name__ == "__main__":
    av.logging.set_level(None)
    for line in sys.stdin:
        print("START", line.strip(), flush=True)
        print(json.dumps(read(line.strip())), flush=True)
