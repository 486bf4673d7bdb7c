"""Fusion weights in and out: `config.json` and `model.safetensors` in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jmt_fast.config import JMTConfig
from jmt_fast.errors import CheckpointError

Model = TypeVar("Model", bound="FusionHubMixin")
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class FusionHubMixin(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model built from one JMTConfig.

    Loading is strict, and whatever is wrong with a checkpoint is a CheckpointError of one line that names it.
    """

    @classmethod
    def from_pretrained(cls: type[Model], pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Model:
        """The model in a folder, or of that name on the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder with config.json and model.safetensors, or a hub id.
            kwargs: those of `PyTorchModelHubMixin.from_pretrained`: revision, token, cache_dir, map_location, ...

        Raises:
            CheckpointError: a part is missing, damaged, of another version, or does not fit the configuration.
        """
        place = str(pretrained_model_name_or_path)
        if Path(place).is_dir():
            for name in (CONFIG, WEIGHTS):
                if not (Path(place) / name).is_file():
                    raise CheckpointError(f"{place}: {name} is missing; pass a folder that `save_pretrained` wrote")
            _check_object(place)
        try:
            return super().from_pretrained(place, **kwargs)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{place}: neither a readable folder nor a model on the hub ({reason}); check the path"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        # The hub's own way refuses a state dict of views, which that of packed parameters is.
        state: dict[str, Any] = self.state_dict()  # type: ignore[attr-defined]
        save_file({name: value.contiguous() for name, value in state.items()}, save_directory / WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls: type[Model],
        *,
        model_id: str,
        config: Any = None,
        map_location: str = "cpu",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **unknown: Any,
    ) -> Model:
        if unknown:
            raise TypeError(f"from_pretrained got unknown arguments: {', '.join(unknown)}")
        model = cls(_decoded(config, model_id))  # type: ignore[call-arg]
        if Path(model_id).is_dir():
            path = str(Path(model_id) / WEIGHTS)
        else:
            path = hf_hub_download(
                model_id, WEIGHTS, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token,
            )  # fmt: skip
        _load_weights(model, path, map_location, model_id)
        return model.eval()  # type: ignore[attr-defined]


def encode_config(config: JMTConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _check_object(place: str) -> None:
    try:
        found = json.loads((Path(place) / CONFIG).read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{place}: {CONFIG} is not JSON ({error}); restore or save it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{place}: {CONFIG} holds no object; restore or save it again")


def _decoded(config: Any, place: str) -> JMTConfig:
    """The hub hands over what stands in config.json, or the caller's own JMTConfig."""
    if isinstance(config, JMTConfig):
        return config
    if not isinstance(config, dict):
        raise CheckpointError(f"{place}: {CONFIG} is missing or holds no object; save the model again")
    try:
        return JMTConfig(**config)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the fields together"
        raise CheckpointError(
            f"{place}: {CONFIG} is not one of this version: {field}: {first['msg']}; "
            "use the version that wrote it, or train again"
        ) from error


def _load_weights(model: Any, path: str, map_location: str, place: str) -> None:
    try:
        found = load_file(path, device=map_location)
    except SafetensorError as error:
        raise CheckpointError(f"{place}: {WEIGHTS} is damaged ({error}); copy or save it again") from error
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ found.keys()) or sorted(
        name for name in expected if expected[name].shape != found[name].shape
    )
    if wrong:
        name = wrong[0]
        kind = "is missing" if name not in found else "is unknown" if name not in expected else "has another shape"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{place}: {WEIGHTS} does not fit {CONFIG}: weight {name} {kind}{more}; "
            "take both files from the same checkpoint"
        )
    model.load_state_dict(found)
    model.to(map_location)
