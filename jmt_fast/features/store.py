"""The feature store: the two CNN features of every clip, one file a video, under a key of all that changes them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from jmt_fast.config import Config, FeatureConfig, Stride
from jmt_fast.data import Recording
from jmt_fast.data.windows import chains
from jmt_fast.errors import DataError, MediaError
from jmt_fast.faces import WEIGHTS
from jmt_fast.media import COLOUR_RULE
from jmt_fast.media.images import RULE as JPEG_RULE
from jmt_fast.models import Backbones

SUFFIX = ".safetensors"
KEY_FILE = "key.json"


@dataclass(frozen=True)
class VideoFeatures:
    """The clips of one video, in the order of their times.

    `times` float64 (N,): the end of each clip, seconds on the video's clock. `clips` (N, D_visual + D_audio): the CNN
    features, `visual_dim` visual ones and then those of the sound before the GRU. `timestamps` float64 (F,): the
    frames' presentation times, seconds. `face` bool (F,): the frame was there (and, with face detection, a face on it).
    `stride`: thirtieths of a second between clips. `rows` int64 (N,): where in `clips` each clip is, by default in the
    order of the times.
    """

    name: str
    stride: int
    times: np.ndarray
    clips: torch.Tensor
    visual_dim: int
    timestamps: np.ndarray
    face: np.ndarray
    rows: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(len(self.times)))

    def by_phase(self) -> VideoFeatures:
        """The same with the clips of each phase, 32/30 s apart, one after the other in `clips`, as in a store."""
        order = _by_phase(len(self.times), self.stride)
        if np.array_equal(self.rows[order], np.arange(len(order))):
            return self
        return replace(self, clips=self.clips[torch.from_numpy(self.rows[order])], rows=np.argsort(order))

    @property
    def visual(self) -> torch.Tensor:
        """The visual columns of `clips`, a view."""
        return self.clips[:, : self.visual_dim]

    @property
    def audio(self) -> torch.Tensor:
        """The other columns of `clips`, a view."""
        return self.clips[:, self.visual_dim :]


class StoreKey(Config):
    """Everything that changes a feature of a given source; what belongs to one source is in its `fingerprint`."""

    features: FeatureConfig
    weights: str  # digest of the two CNNs; the GRU runs on reading and does not count
    stride: Stride
    precision: str
    detector: str | None = None  # where faces are looked for
    colour: str = COLOUR_RULE
    format: int = 3  # raise when the arithmetic between file and feature changes, or how it is stored

    @classmethod
    def of(cls, features: FeatureConfig, backbones: Backbones, stride: int, precision: str) -> StoreKey:
        return cls.model_validate(
            {
                "features": features,
                "weights": backbones.feature_digest(),
                "stride": stride,
                "precision": precision,
                "detector": WEIGHTS[features.detector].identity if features.region == "face" else None,
            }
        )


def fingerprint(recording: Recording) -> str:
    """Size and modification time of the files that a video's features come from, a folder's rate, how its JPEGs are
    decoded, and the person.

    Raises MediaError for a file that is not there.
    """
    facts = [f"person {recording.person}"]
    if recording.fps is not None:
        facts.append(f"{recording.fps} fps")
    for kind in ("video", "sound", "crops"):
        path: Path | None = getattr(recording, kind)
        if path is not None:
            try:
                stat = path.stat()
            except OSError as error:
                raise MediaError(f"{path}: {error.strerror}; it may have been moved or deleted") from None
            facts.append(f"{kind} {stat.st_size}:{stat.st_mtime_ns}")
            if kind == "crops":
                facts.append(JPEG_RULE)
    return ", ".join(facts)


def checksum(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str]) -> str:
    """SHA-256 of all that a file holds: its tensors (contiguous, on the CPU) and the other `facts` beside them."""
    state = hashlib.sha256(json.dumps(dict(sorted(facts.items()))).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


class FeatureStore:
    """`root/<key digest>/`: `key.json` and one safetensors file a video, each written whole or not at all.

    A run that is interrupted keeps every video it had finished; a run with another key writes beside, not over. Each
    file says whose features it holds (`name`, `key`, `source`) and their `checksum`, which `check_store` compares.

    In a file the clips lie phase by phase, both features of one side by side: what training reads together, the clips
    of a sequence, is one piece of 16 KB and not 16 pieces.
    """

    def __init__(self, root: str | Path, key: StoreKey) -> None:
        self.key = key
        self.folder = Path(root) / key.digest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_whole(self.folder / KEY_FILE, json.dumps(key.model_dump(mode="json"), indent=1).encode())
        except OSError as error:
            raise DataError(
                f"{root}: the feature store cannot be written: {error.strerror}; pass another --store"
            ) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}{SUFFIX}"

    def names(self) -> list[str]:
        return sorted(unquote(path.stem) for path in self.folder.glob(f"*{SUFFIX}"))

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def has(self, recording: Recording) -> bool:
        """True when the features of this recording are here and its files have not changed since.

        Raises MediaError for a recording whose files are gone.
        """
        source = fingerprint(recording)
        if recording.name not in self:
            return False
        try:
            with self._open(recording.name) as file:
                return (file.metadata() or {}).get("source") == source
        except DataError:  # damaged: to be extracted and written anew
            return False

    def _open(self, name: str) -> safe_open:
        path = self._path(name)
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}: the features of {name} cannot be read ({error}); delete the file and run again"
            ) from error

    def read(self, name: str) -> VideoFeatures:
        """Features of one video, memory-mapped. Raises DataError when they are missing or damaged."""
        if name not in self:
            raise DataError(
                f"{self.folder}: no features of {name}; run `jmt-fast features` with the same settings first"
            )
        with self._open(name) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        return VideoFeatures(
            name=name,
            stride=self.key.stride,
            times=tensors["times"].numpy(),
            clips=tensors["clips"],
            visual_dim=int(tensors["visual_dim"]),
            timestamps=tensors["timestamps"].numpy(),
            face=tensors["face"].numpy(),
            rows=np.argsort(_by_phase(len(tensors["times"]), self.key.stride)),
        )

    def write(self, video: VideoFeatures, source: str = "") -> None:
        """Put one video's features on disk: all of them, or, when the disk is full, nothing."""
        tensors = {
            "times": torch.tensor(video.times),
            "clips": video.by_phase().clips.contiguous(),
            "visual_dim": torch.tensor(video.visual_dim),
            "timestamps": torch.tensor(video.timestamps),
            "face": torch.tensor(video.face),
        }
        facts = {"name": video.name, "key": self.key.digest(), "source": source}
        data = save(tensors, metadata={**facts, "checksum": checksum(tensors, facts)})
        path = self._path(video.name)
        try:
            _write_whole(path, data)
        except OSError as error:
            remedy = (
                "free some space and run again: finished videos are kept"
                if error.errno == errno.ENOSPC
                else "check the folder"
            )
            raise DataError(
                f"{path}: the features of {video.name} cannot be written: {error.strerror}; {remedy}"
            ) from error


def _by_phase(count: int, stride: int) -> np.ndarray:
    """The clips phase by phase."""
    return np.concatenate(chains(count, stride))


def _write_whole(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never a part, whatever interrupts the writing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
