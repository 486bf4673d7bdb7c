"""Files in, frames and samples out, each with its exact time."""

from jmt_fast.media.colour import RULE as COLOUR_RULE
from jmt_fast.media.images import ImageFolder
from jmt_fast.media.probe import AudioInfo, MediaInfo, probe
from jmt_fast.media.sound import SoundReader, audio
from jmt_fast.media.video import frames, select

__all__ = [
    "COLOUR_RULE",
    "AudioInfo",
    "ImageFolder",
    "MediaInfo",
    "SoundReader",
    "audio",
    "frames",
    "probe",
    "select",
]
