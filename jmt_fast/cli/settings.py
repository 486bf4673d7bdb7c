"""From the options of commands that train to configurations and networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from jmt_fast.cli.predict import Crop, DetectorName

if TYPE_CHECKING:
    from jmt_fast.config import FeatureConfig, FusionTraining, JMTConfig, UnfrozenTraining
    from jmt_fast.data import Recording
    from jmt_fast.models import JMT, Backbones

CropOption = Annotated[
    Crop | None,
    typer.Option(
        help="What to see of a raw video's frame: an upright face, the centre square, or all of it.",
        show_default="the backbones'; for new ones face, center with --preset demo",
    ),
]
DetectorOption = Annotated[
    DetectorName | None,
    typer.Option(help="What looks for faces with --crop face.", show_default="the backbones', centerface for new ones"),
]
BASELINES = ("audio", "visual", "concat", "cross_attention")


def configured_backbones(
    weights: str, preset: str, recordings: list[Recording], crop: Crop | None, detector: DetectorName | None
) -> tuple[FeatureConfig, Backbones]:
    """The feature configuration and the backbones; a folder brings its own configuration.

    What learns from prepared face crops is to look for faces in raw videos later.
    """
    from jmt_fast.config import FeatureConfig
    from jmt_fast.models import load_backbones
    from jmt_fast.models.checkpoint import load_feature_config

    try:
        chosen = FeatureConfig.preset(preset)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--preset") from error
    config = chosen if weights in ("pretrained", "random") else load_feature_config(Path(weights))
    if crop is not None:
        config = config.model_copy(update={"region": crop.value})
    elif all(recording.crops for recording in recordings):
        config = config.model_copy(update={"region": "face"})
    if detector is not None:
        config = config.model_copy(update={"detector": detector.value})
    return config, load_backbones(config, weights)


def configured_fusion(
    model: str, options: dict[str, Any], changes: list[str] | None
) -> tuple[JMTConfig, FusionTraining]:
    """The model of that name and its training, with FIELD=VALUE changes of either."""
    from jmt_fast.config import FusionTraining, JMTConfig

    chosen, training = configuration([JMTConfig, FusionTraining], [_model_fields(model), options], changes)
    return chosen, training


def _model_fields(model: str) -> dict[str, Any]:
    from jmt_fast.config import JMTConfig

    try:
        return {"fusion": model} if model in BASELINES else JMTConfig.preset(model).model_dump()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error


def configured_unfrozen(
    model: str | None, weights: str, options: dict[str, Any], changes: list[str] | None
) -> tuple[JMT, UnfrozenTraining]:
    """A fusion to train with its backbones, and how. It starts from `weights` where that is a whole checkpoint."""
    import torch

    from jmt_fast.config import JMTConfig, UnfrozenTraining
    from jmt_fast.errors import CheckpointError
    from jmt_fast.models import JMT

    known = None
    if weights not in ("pretrained", "random") and (Path(weights) / "config.json").exists():
        if model is not None:
            raise typer.BadParameter(f"{weights} is a checkpoint, whose fusion is trained on", param_hint="--model")
        known = JMT.from_pretrained(weights)
    start = known.config.model_dump() if known else _model_fields(model or "jmt")
    chosen, training = configuration([JMTConfig, UnfrozenTraining], [start, options], changes)
    torch.manual_seed(training.seed)
    fusion = JMT(chosen)
    if known:
        try:
            fusion.load_state_dict(known.state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"{weights}: its fusion does not fit the changes of --set; leave them out") from error
    return fusion, training


def configuration(kinds: list[type], starts: list[dict[str, Any]], changes: list[str] | None) -> list[Any]:
    """Configurations from their starts and FIELD=VALUE changes, each of which goes to the kind that has the field."""
    for change in changes or []:
        name, found, value = change.partition("=")
        owner = next((start for kind, start in zip(kinds, starts, strict=True) if name in kind.model_fields), None)  # type: ignore[attr-defined]
        if not found or owner is None:
            fields = ", ".join(field for kind in kinds for field in kind.model_fields)  # type: ignore[attr-defined]
            raise typer.BadParameter(f"{change!r}: FIELD=VALUE expected, with a field of: {fields}", param_hint="--set")
        owner[name] = value
    try:
        return [kind(**start) for kind, start in zip(kinds, starts, strict=True)]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        raise typer.BadParameter(f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
