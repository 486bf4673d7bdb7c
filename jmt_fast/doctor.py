"""What this machine will use, and why: device, precision, compiler, kernels, decoders, versions."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from jmt_fast.data.graph import ops
from jmt_fast.media.route import nvdec
from jmt_fast.runtime import Runtime

PACKAGES = (
    "jmt-fast",
    "torch",
    "triton",
    "torchvision",
    "nvidia-dali-cuda130",
    "av",
    "numpy",
    "pyarrow",
    "safetensors",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    choice: str
    why: str


def examine() -> list[Finding]:
    """Findings in the order in which data meets them. Raises nothing: what is missing is a finding."""
    runtime = Runtime.choose()
    reasons = runtime.reasons
    return [
        Finding("python", platform.python_version(), platform.platform()),
        Finding("processor", f"{os.cpu_count()} cores", _processor()),
        Finding("device", str(runtime.device), reasons["device"] + _driver()),
        _decoder(),
        _graph(runtime.device),
        Finding("precision", runtime.precision, reasons["precision"]),
        Finding("compiler", "on" if runtime.compile else "off", reasons["compile"]),
        _kernels(runtime),
        *(Finding(name, *_version(name)) for name in PACKAGES),
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _driver() -> str:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return " (no NVIDIA driver: libcuda.so.1 not found)"
    return " (NVIDIA driver found)"


def _decoder() -> Finding:
    decoder = nvdec()
    if decoder.missing:
        return Finding("video decoder", "PyAV (FFmpeg) on the CPU", f"no NVDEC: {decoder.missing}")
    if codecs := decoder.codecs():
        choice = f"NVDEC for 8-bit 4:2:0 {', '.join(codecs)}; else PyAV"
        return Finding("video decoder", choice, "its driver says so, and a trial decode came out right")
    why = decoder.refuses("h264", 640, 360) or decoder.fails("h264") or "NVDEC decodes neither H.264 nor HEVC"
    return Finding("video decoder", "PyAV (FFmpeg) on the CPU", why)


def _graph(device: torch.device) -> Finding:
    if device.type != "cuda":
        return Finding("media graph", "DALI on the CPU", "follows the device")
    if why := ops.refusal(device):
        return Finding("media graph", "DALI on the CPU, results moved to the GPU", f"DALI cannot use the GPU: {why}")
    return Finding("media graph", "DALI on the GPU", "follows the device, and a trial of it went well")


def _kernels(runtime: Runtime) -> Finding:
    if runtime.device.type == "cuda":
        return Finding("kernels", "Triton", "a CUDA device runs them")
    return Finding("kernels", "plain PyTorch arithmetic of the same operators", "Triton kernels need a CUDA device")


def _version(package: str) -> tuple[str, str]:
    try:
        return version(package), "installed"
    except PackageNotFoundError:
        return "none", "not installed: running from a checkout" if package == "jmt-fast" else "not installed"
