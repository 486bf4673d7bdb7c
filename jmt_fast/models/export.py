"""The fusion as one file that runs without this package: an AOTInductor package, or ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from jmt_fast.errors import JMTError
from jmt_fast.models.parameters import FusionModel
from jmt_fast.models.prepared import frozen_network
from jmt_fast.models.reference import ReferenceJMT
from jmt_fast.runtime import Runtime

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Progress = Callable[[int, int, str], None]

INPUTS = ("audio", "visual", "valid")
OUTPUT = "valence_arousal"
SUFFIXES = (".pt2", ".onnx")
SHAPES = ((1, 1), (2, 8), (5, 13), (3, 130))  # (B, L) of the comparison
ROUNDINGS = 16  # of the largest output: what the widest sum is relative to
_STAGES = 3


def export_fusion(
    model: FusionModel,
    path: str | Path,
    runtime: Runtime,
    progress: Progress = lambda done, total, note: None,
) -> float:
    """Write `model` for inference and compare the file with the model in float64 on random input; the largest error.

    The file takes audio (B, L, D) and visual (B, L, visual_dim), float32, and valid, bool (B, L), of any B and L above
    0, and gives (B, L, 2) float32: valence, arousal; 0 where not valid.

    * `.pt2`: an AOTInductor package of the folded model (`prepare_fusion`) in the runtime's precision, for the
      runtime's device and machines with the same instructions; `torch._inductor.aoti_load_package` reads it.
    * `.onnx`: the plain model (`ReferenceJMT`) in float32, with inputs and output named as here, the output
      `valence_arousal`.

    Raises:
        ValueError: another suffix.
        JMTError: no C++ compiler (`.pt2`), no `onnxscript` or `onnxruntime` (`.onnx`), a place that cannot be written,
            or a result that differs from the model by more than rounding. The path is then as it was before.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    plain = ReferenceJMT(model.config).eval().requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with _quiet():
            if path.suffix == ".pt2":
                network, precision = _package(plain, temporary, runtime, progress), runtime.dtype
            else:
                network, precision = _onnx(plain, temporary, progress), torch.float32
        progress(2, _STAGES, "comparing")
        error, bound = _compared(network, plain.double(), torch.finfo(precision).eps)
        if not error <= bound:  # NaN included
            raise JMTError(
                f"{path}: not written, for its results differ from the model's by {error:.2g}, more than rounding "
                f"({bound:.2g}); try another precision or version of torch, and report it"
            )
        temporary.replace(path)
    except OSError as error:
        raise JMTError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)
    progress(_STAGES, _STAGES, "done")
    return error


def _package(plain: ReferenceJMT, path: Path, runtime: Runtime, progress: Progress) -> Network:
    if not runtime.compile:
        raise JMTError(f"{path.suffix}: the package must be compiled, and cannot be: {runtime.reasons['compile']}")
    path.touch()  # a place that cannot be written is said before the minutes of compiling
    progress(0, _STAGES, "capturing")
    with torch.no_grad():
        program = torch.export.export(
            frozen_network(plain, runtime), _example(plain, runtime.device), dynamic_shapes=_free()
        )
    progress(1, _STAGES, "compiling")
    packed = torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    loaded = torch._inductor.aoti_load_package(packed)
    return lambda *tensors: loaded(*(tensor.to(runtime.device) for tensor in tensors)).cpu()


def _onnx(plain: ReferenceJMT, path: Path, progress: Progress) -> Network:
    missing = [name for name in ("onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise JMTError(f"{path.suffix}: {' and '.join(missing)} missing; pip install 'jmt-fast[onnx]'")
    import onnxruntime

    path.touch()
    progress(0, _STAGES, "translating")
    translated = torch.onnx.export(
        plain, _example(plain, torch.device("cpu")), input_names=INPUTS, output_names=[OUTPUT], dynamo=True,
        dynamic_shapes=_free(), external_data=False, verbose=False,
    )  # fmt: skip
    assert translated is not None  # only without dynamo it is
    translated.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        named = {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], named)[0])

    return run


def _free() -> tuple[dict[int, Dim], ...]:
    """For each input: any number of sequences, of any length."""
    return ({0: Dim("batch"), 1: Dim("length")},) * len(INPUTS)


def _example(plain: ReferenceJMT, device: torch.device, batch: int = 2, length: int = 8) -> tuple[Tensor, ...]:
    """Random features, some clips absent and one sequence wholly."""
    draw = torch.Generator().manual_seed(length)
    audio, visual = (
        torch.randn(batch, length, width, generator=draw) for width in (plain.config.dim, plain.config.visual_dim)
    )
    valid = torch.rand(batch, length, generator=draw) < 0.8
    valid[1:2] = False
    return audio.to(device), visual.to(device), valid.to(device)


def _compared(network: Network, exact: ReferenceJMT, unit: float) -> tuple[float, float]:
    """The largest error over all shapes, and what rounding may make of it."""
    error = largest = 0.0
    for batch, length in SHAPES:
        audio, visual, valid = _example(exact, torch.device("cpu"), batch, length)
        truth = exact(audio.double(), visual.double(), valid)
        error = max(error, float((network(audio, visual, valid) - truth).abs().max().nan_to_num(torch.inf)))
        largest = max(largest, float(truth.abs().max()))
    return error, ROUNDINGS * unit * max(1.0, largest)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' remarks on their own workings, which are no concern of who exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
