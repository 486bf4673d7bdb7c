"""A checkpoint: everything between a video and its valence and arousal, in one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from jmt_fast.config import FeatureConfig
from jmt_fast.errors import CheckpointError
from jmt_fast.models.backbones import Backbones
from jmt_fast.models.fusion import JMT
from jmt_fast.models.weights import load_backbones, save_backbones


@dataclass(frozen=True)
class Checkpoint:
    """`config.json` and `model.safetensors` (the fusion, in the hub's layout), `features.json`, `visual.safetensors`,
    `audio.safetensors` (the frozen backbones and the GRU)."""

    fusion: JMT
    backbones: Backbones
    features: FeatureConfig

    def save(self, folder: str | Path) -> None:
        """Write the folder. Raises CheckpointError when it cannot be written."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.fusion.save_pretrained(folder)
            save_backbones_folder(self.backbones, self.features, folder)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: the checkpoint cannot be written: {error.strerror}; free some space or pass another --out"
            ) from error

    @classmethod
    def load(cls, folder: str | Path) -> Checkpoint:
        """Read the folder. Raises CheckpointError, which names the file, when a part is missing, damaged or unknown."""
        folder = Path(folder)
        features = load_feature_config(folder)
        return cls(JMT.from_pretrained(folder), load_backbones(features, folder), features)


def save_backbones_folder(backbones: Backbones, features: FeatureConfig, folder: Path) -> None:
    """`features.json` and the weights of both backbones: what `--backbones FOLDER` takes."""
    save_backbones(backbones, folder)
    (folder / "features.json").write_text(features.model_dump_json(indent=1))


def load_feature_config(folder: Path) -> FeatureConfig:
    """The `features.json` of a checkpoint or of a folder of backbones."""
    path = folder / "features.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder; `jmt-fast demo` or `jmt-fast train` writes one")
    try:
        return FeatureConfig(**json.loads(path.read_text()))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; a checkpoint folder holds features.json beside the weights"
        ) from error
    except (ValidationError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: not a configuration of this version ({first}); train again or use the version that wrote it"
        ) from error
