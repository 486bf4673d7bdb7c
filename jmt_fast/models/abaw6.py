"""The weights of the authors' later model (6th ABAW challenge, 2024) in this package's fusion model.

Names there and here, for `github.com/PoloWlg/Joint-Multimodal-Transformer-6th-ABAW`. Their model shares a
cross-attention's weights by the query's stream, uses softmax, and calls the audio stream "physiological".
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jmt_fast.config import JMTConfig
from jmt_fast.errors import CheckpointError
from jmt_fast.models.fusion import JMT

NAMES = {
    "out_layer_pv": "joint",
    "visual_encoder.layers": "encoders.v",
    "physiological_encoder.layers": "encoders.a",
    "joint_representation_encoder.layers": "encoders.av",
    "cross_attention_v": "cross.v",
    "cross_attention_p": "cross.a",
    "cross_attention_pv": "cross.av",
    "out_layer1": "out",
    "final_visual_encoder.layers": "final_encoder",
    "final_self_attention": "final_attention",
    "linear": "visual_linear",
    "vregressor": "valence",
    "aregressor": "arousal",
}
UNUSED = "final_encoder."  # they build it and never call it
HEADS = ("valence.", "arousal.")


def import_abaw6(state_dict_or_path: Mapping[str, Tensor] | str | Path, heads: int = 1) -> JMT:
    """The fusion model of the authors' 6th ABAW entry, in evaluation mode: the same numbers come out.

    Of their whole model (`Two_transformers`) `forward` gives valence and arousal (B, L, 2); theirs come apart, and as
    (L, B) with the fully connected output. Of their bare fusion (`MultimodalTransformer_w_JR`), which has neither input
    norm nor regression heads, `embed` gives the representation, (B, L, 1024) where theirs is (L, B, 1024), or
    (B, L, 512) in both with the self-attention output; its heads here are untrained.

    Args:
        state_dict_or_path: their state dict (a `DataParallel` prefix "module." does no harm), or a file that holds it,
            safetensors or what `torch.save` wrote; read without executing code in it.
        heads: attention heads of their model, which its weights do not tell.

    Raises:
        CheckpointError: the file cannot be read, a weight is missing, unknown or of another shape, or the number of
            heads does not divide the width.
    """
    place = "the state dict" if isinstance(state_dict_or_path, Mapping) else str(state_dict_or_path)
    state = state_dict_or_path if isinstance(state_dict_or_path, Mapping) else _read(Path(state_dict_or_path))
    whole, ours = _renamed(state, place)
    model = JMT(_config(ours, whole, heads, place))
    expected = model.state_dict()
    if not whole:
        ours |= {name: value for name, value in expected.items() if name.startswith(HEADS)}
    for name in sorted(expected.keys() | ours.keys()):
        if name not in ours:
            raise CheckpointError(f"{place}: weight {_theirs(name)} is missing; pass the whole state dict")
        if name not in expected or expected[name].shape != ours[name].shape:
            kind = "is unknown" if name not in expected else f"has shape {tuple(ours[name].shape)}"
            raise CheckpointError(f"{place}: weight {_theirs(name)} {kind}; pass the weights of one JMT fusion model")
    model.load_state_dict(ours)
    return model.eval()


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; pass a file of weights or a state dict")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a file of weights ({reason}); pass what torch.save wrote") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a state dict; save model.state_dict()")
    return state


def _renamed(state: Mapping[str, Any], place: str) -> tuple[bool, dict[str, Tensor]]:
    """(their whole model, weights under our names)."""
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    whole = any(name.startswith("mm_transformer.") for name in bare)
    found: dict[str, Tensor] = {}
    for name, value in bare.items():
        name = name.removeprefix("mm_transformer.")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{place}: {name} is not a tensor; pass the model's state dict itself")
        if name.startswith(UNUSED):
            continue
        theirs = next((start for start in NAMES if name.startswith(start + ".")), None)
        if theirs is None:
            raise CheckpointError(f"{place}: weight {name} is unknown; pass the weights of one JMT fusion model")
        found[(NAMES[theirs] + name.removeprefix(theirs)).replace(".layer_norm", ".norm")] = value
    return whole, found


def _config(ours: Mapping[str, Tensor], whole: bool, heads: int, place: str) -> JMTConfig:
    if "joint.weight" not in ours:
        raise CheckpointError(f"{place}: weight out_layer_pv.weight is missing; pass a model with the joint stream")
    dim = len(ours["joint.weight"])
    linear, up = ours.get("visual_linear.weight"), ours.get("encoders.v.0.feed_forward.0.weight")
    depths = [int(found[1]) for name in ours if (found := re.match(r"encoders\.v\.(\d+)\.", name))]
    try:
        return JMTConfig.preset(
            "abaw6",
            input_norm="l2" if whole else "none",
            output="fc" if "out.weight" in ours else "self_attention",
            heads=heads,
            layers=max(depths, default=0) + 1,
            dim=dim,
            ff_dim=dim if up is None else len(up),
            visual_dim=dim if linear is None else linear.shape[-1],
        )
    except ValidationError as error:
        raise CheckpointError(f"{place}: {error.errors()[0]['msg']}; pass the model's own number of heads") from error


def _theirs(name: str) -> str:
    """Their name, without prefixes, of one of our weights."""
    ours = next((start for start in NAMES.values() if name.startswith(start + ".")), None)
    if ours is None:
        return name
    theirs = next(key for key, value in NAMES.items() if value == ours)
    return theirs + name.removeprefix(ours).replace(".norm", ".layer_norm")
