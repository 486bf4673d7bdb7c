"""Compile every kernel for every supported GPU generation with no GPU present, and report what the code needs.

`python -m jmt_fast.kernels.aot` prints the table; `resources()` gives the records. Registers, shared memory and stack
are read from the cubin with the `cuobjdump` that Triton carries. Triton's kernels put nothing on the stack but spilled
registers, so `spills` is the stack size. Matrix instructions are looked for in the PTX.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .sigmoid_attention import kernel as sigmoid

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may use (CUDA C++ guide, table 27)
MATRIX = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4}
SHAPES = ((8, 512), (4096, 32), (4096, 64), (4096, 128), (4096, 256), (4096, 512))  # (L, D): JMT's own shape first
KERNELS = {
    "forward": sigmoid._forward,
    "backward_keys": sigmoid._backward_keys,
    "backward_queries": sigmoid._backward_queries,
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs: registers a thread, bytes of spills a thread, bytes of shared memory a block."""

    kernel: str
    arch: int
    dtype: str
    length: int
    dim: int
    launch: sigmoid.Launch
    registers: int
    spills: int
    shared: int
    matrix: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """The block's shared memory is within what the GPU generation grants."""
        return self.shared <= SHARED_LIMIT[self.arch] * 1024


def resources(
    archs: Iterable[int] = ARCHITECTURES,
    dtypes: Iterable[str] = ("bf16", "fp32"),
    shapes: Iterable[tuple[int, int]] = SHAPES,
    kernels: Iterable[str] = tuple(KERNELS),
) -> Iterator[Resources]:
    """Compile each kernel with a bias tensor and a mask (its largest form) and yield its record."""
    archs, dtypes, kernels = tuple(archs), tuple(dtypes), tuple(kernels)
    for length, dim in shapes:
        for dtype in dtypes:
            for kernel in kernels:
                for arch in archs:
                    yield compile_one(kernel, arch, dtype, length, dim)


def compile_one(kernel: str, arch: int, dtype: str, length: int, dim: int) -> Resources:
    """Compile one kernel for `arch` (80 for sm_80), `dtype` of ITEMSIZE, and the launch settings of (length, dim)."""
    launch = sigmoid.launch_settings(kernel, ITEMSIZE[dtype], dim, length, length)
    constants: dict[str, Any] = {
        "DIM": dim, "WIDTH": sigmoid.tile_width(dim), "QUERIES": launch.queries, "KEYS": launch.keys,
        "HAS_BIAS": True, "HAS_VALID": True,
    }  # fmt: skip
    if kernel == "backward_keys":
        constants["WHOLE"] = length <= min(launch.queries, launch.keys)
    compiled = triton.compile(
        _source(KERNELS[kernel], dtype, constants),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    registers, spills = _usage(compiled.asm["cubin"])
    found = tuple(name for text, name in MATRIX.items() if text in compiled.asm["ptx"])
    shared = compiled.metadata.shared
    return Resources(kernel, arch, dtype, length, dim, launch, registers, spills, shared, found)


def _source(kernel: Any, dtype: str, constants: dict[str, Any]) -> ASTSource:
    """The specialisation that a launch on contiguous tensors gets: unit strides of D, the rest multiples of 16."""
    signature: dict[str, str] = {}
    values: dict[str, Any] = {}
    aligned: list[int] = []
    for index, name in enumerate(kernel.arg_names):
        if name in constants or re.fullmatch(r"[a-z]{1,2}d|valid_l", name):
            signature[name] = "constexpr"
            values[name] = constants.get(name, 1)
        elif name in ("scale", "shift", "heads", "len_q", "len_k"):
            signature[name] = "fp32" if name in ("scale", "shift") else "i32"
        elif re.fullmatch(r"[a-z]{1,2}[bhl]|valid_b", name):
            signature[name] = "i32"
            aligned.append(index)
        else:
            signature[name] = {"bias": "*fp32", "valid": "*i1"}.get(name, f"*{dtype}")
            aligned.append(index)
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    return ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no resource usage: {text!r}")
    return int(found[1]), int(found[2])


def main() -> None:
    """Print the table; exit status 1 if a kernel does not fit its GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", choices=tuple(ITEMSIZE), default=("bf16", "fp32"))
    arguments = parser.parse_args()
    row = "{:<17} {:>6} {:>5} {:>5} {:>4} {:>9} {:>5} {:>6} {:>9} {:>6} {:>7}  {}"
    print(row.format("kernel", "arch", "dtype", "L", "D", "tile", "warps", "stages", "registers", "spills", "shared",
                     "matrix"))  # fmt: skip
    all_fit = True
    for r in resources(arguments.arch, arguments.dtype):
        cells = (
            r.kernel,
            f"sm_{r.arch}",
            r.dtype,
            r.length,
            r.dim,
            f"{r.launch.queries}x{r.launch.keys}",
            r.launch.warps,
            r.launch.stages,
            r.registers,
            r.spills,
            r.shared,
            ", ".join(r.matrix) or "none",
        )
        print(row.format(*cells), "" if r.fits else f"over {SHARED_LIMIT[r.arch]} KiB", flush=True)
        all_fit &= r.fits
    raise SystemExit(0 if all_fit else 1)


if __name__ == "__main__":
    main()
