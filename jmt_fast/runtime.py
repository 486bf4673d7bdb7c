"""What this machine will run on: device, precision and compiler, each with the reason for the choice."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
from dataclasses import dataclass, field

import torch

from jmt_fast.errors import JMTError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M_ARENA_MAX = -8  # malloc.h of glibc


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of its matrix products, and whether to compile; `reasons` says why, by field name."""

    device: torch.device
    precision: str
    compile: bool
    reasons: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto", compile: bool | None = None) -> Runtime:
        """Pick what gains on this machine. Raises JMTError for a device that is not there or an unknown precision."""
        reasons = {}
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            reasons["device"] = "a CUDA device is available" if device == "cuda" else "no CUDA device is available"
        else:
            reasons["device"] = "as asked"
        _check(device)

        if precision == "auto":
            precision, reasons["precision"] = _best_precision(device)
        elif precision not in DTYPES:
            raise JMTError(f"precision {precision!r} is unknown: choose one of auto, {', '.join(DTYPES)}")
        else:
            reasons["precision"] = "as asked"

        if compile is None:
            compile, reasons["compile"] = _can_compile(device)
        else:
            reasons["compile"] = "as asked"
        return cls(torch.device(device), precision, compile, reasons)


def _check(name: str) -> None:
    """Raises JMTError for a device that is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise JMTError(f"device {name!r} is unknown: choose auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return
    if not torch.cuda.is_available():
        raise JMTError(f"device {name}: PyTorch finds no CUDA device here; use --device cpu")
    if int(name.partition(":")[2] or 0) >= (count := torch.cuda.device_count()):
        raise JMTError(f"device {name}: PyTorch finds {count} CUDA devices here; use one up to cuda:{count - 1}")


def _best_precision(device: str) -> tuple[str, str]:
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU multiplies bf16 matrices in hardware"
        return "fp32", "this GPU has no bf16 units"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the processor multiplies bf16 matrices (AVX512-BF16 or AMX)"
    return "fp32", "the processor has no bf16 instructions"


def _can_compile(device: str) -> tuple[bool, str]:
    if device.startswith("cuda"):
        return True, "TorchInductor with Triton"
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler:
        return True, f"TorchInductor with {compiler}"
    return False, "no C++ compiler found: install g++ for a faster CPU path"


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor in the processor's memory, on a device. A GPU takes it when it comes to it: nobody waits until then."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def share_heap() -> None:
    """Let the threads of this process that start from now on take their memory from one heap. With glibc; elsewhere
    nothing happens.

    By default each thread has a heap of its own, and what is free in one is of no use to the others: where a dozen
    threads read, decode and compute, the process grows for hours without holding more. One heap also gives large
    tensors memory that is mapped already: the backbones take a third fewer page faults.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
