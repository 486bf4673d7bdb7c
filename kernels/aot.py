"""Compile every kernel for every supported GPU generation with no GPU present, and report what the code needs.

`python -m jmt_fast.kernels.aot` prints the table and fails on a program that its GPU would not run well;
`compile_one` gives one record. Modules with launchers say by `programs(arch)` which programs these use.

Registers, shared memory and stack are read from the cubin with the `cuobjdump` that Triton carries. Triton's kernels
put nothing on the stack but spilled registers, so `spills` is the stack size. A loop that writes there does so in every
step (`looped`), the rest of a program once. Matrix instructions are looked for in the
PTX, and products that could have used Hopper's but did not in the intermediate code.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .program import Program

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may use (CUDA C++ guide, table 27)
MATRIX = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}
OPS = {  # modules that hold its launchers
    "sigmoid_attention": ("kernel", "specialised"),
    "ccc_loss": ("kernel",),
    "fused_attention": ("kernel",),
}


@dataclass(frozen=True)
class Resources:
    """What one compiled program needs: registers a thread, bytes of spills a thread, how many instructions in its loops
    spill, bytes of shared memory a block.

    `missed` holds the products, as (rows, columns) of their result, that Hopper's own matrix instruction could have
    computed and does not.
    """

    program: Program
    arch: int
    registers: int
    spills: int
    looped: int
    shared: int
    matrix: tuple[str, ...]
    missed: tuple[tuple[int, int], ...]

    @property
    def faults(self) -> list[str]:
        """Why this program must not ship; empty if it may."""
        faults = []
        if self.shared > SHARED_LIMIT[self.arch] * 1024:
            faults.append(f"over {SHARED_LIMIT[self.arch]} KiB of shared memory")
        if self.looped and self.program.dtype != "fp32":
            faults.append("spills in a loop")
        elif self.spills and self.program.dtype != "fp32" and self.arch == 90:
            faults.append("spills")
        if self.arch == 90 and self.program.matrix and self.missed:
            faults.append("no wgmma for " + ", ".join(f"{rows}x{columns}" for rows, columns in self.missed))
        if self.program.matrix and not self.matrix:
            faults.append("no matrix instruction")
        return faults


def programs(arch: int, op: str) -> Iterator[Program]:
    """Every program of one op (of OPS) on a GPU generation (80 for sm_80)."""
    for module in OPS[op]:
        yield from import_module(f".{op}.{module}", __package__).programs(arch)


def compile_one(program: Program, arch: int) -> Resources:
    """Compile a program for `arch` and read off what it needs."""
    compiled = triton.compile(
        _source(program),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": program.warps, "num_stages": program.stages},
    )
    registers, spills, looped = _usage(compiled.asm["cubin"])
    found = tuple(name for text, name in MATRIX.items() if text in compiled.asm["ptx"])
    missed = _missed(compiled.asm["ttgir"]) if program.warps % 4 == 0 else ()
    return Resources(program, arch, registers, spills, looped, compiled.metadata.shared, found, missed)


def _source(program: Program) -> ASTSource:
    names = program.function.arg_names
    signature = {name: program.types.get(name, "constexpr") for name in names}
    attributes: dict[tuple[int], list[list[Any]]] = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in program.aligned
    }
    return ASTSource(fn=program.function, signature=signature, constexprs=program.constants, attrs=attributes)


def _missed(code: str) -> tuple[tuple[int, int], ...]:
    """Products of 16-bit operands over 64 rows or more that stayed the older `tt.dot` in Triton's GPU code."""
    shape = r"tensor<(\d+)x(\d+)x(?:bf16|f16)\b"
    found = re.findall(rf"tt\.dot\b.*: {shape}.*\* {shape}", code)
    return tuple((int(m), int(n)) for m, k, _, n in found if int(m) >= 64 and int(k) >= 16 and int(n) >= 8)


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """(registers, stack bytes, stores to the stack inside loops) of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _output(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        found = re.search(r"REG:(\d+) STACK:(\d+)", text)
        if found is None:
            raise RuntimeError(f"cuobjdump reported no resource usage: {text!r}")
        registers, stack = int(found[1]), int(found[2])
        code = _output(triton.knobs.nvidia.nvdisasm.path, "-c", file.name) if stack else ""
    return registers, stack, looped_stores(code.splitlines())


def looped_stores(code: Sequence[str]) -> int:
    """How many lines of `nvdisasm -c` store to the stack between a label and a later jump back to it."""
    labels: dict[str, int] = {}
    inside: set[int] = set()
    for number, line in enumerate(code):
        if found := re.match(r"\s*(\.L_x_\d+):", line):
            labels[found[1]] = number
        elif (found := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) and found[1] in labels:
            inside.update(range(labels[found[1]], number))
    return sum("STL" in code[number] for number in inside)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


COLUMNS: dict[str, tuple[int, Callable[[Resources], object]]] = {
    "op": (-17, lambda r: r.program.op),
    "kernel": (-17, lambda r: r.program.kernel),
    "arch": (6, lambda r: f"sm_{r.arch}"),
    "dtype": (5, lambda r: r.program.dtype),
    "shape": (-36, lambda r: r.program.shape),
    "warps": (5, lambda r: r.program.warps),
    "stages": (6, lambda r: r.program.stages),
    "registers": (9, lambda r: r.registers),
    "spills": (6, lambda r: r.spills),
    "looped": (6, lambda r: r.looped),
    "shared": (7, lambda r: r.shared),
    "matrix": (-8, lambda r: ", ".join(r.matrix) or "none"),
    "fault": (0, lambda r: "; ".join(r.faults)),
}


def main() -> None:
    """Print the table; exit status 1 if a program has a fault (see `Resources.faults`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    arguments = parser.parse_args()
    print(_row({name: name for name in COLUMNS}))
    faulty = 0
    for op in arguments.op:
        for arch in arguments.arch:
            for program in programs(arch, op):
                found = compile_one(program, arch)
                print(_row({name: value(found) for name, (_, value) in COLUMNS.items()}), flush=True)
                faulty += bool(found.faults)
    raise SystemExit(1 if faulty else 0)


def _row(cells: dict[str, object]) -> str:
    parts = []
    for name, (width, _) in COLUMNS.items():
        text = str(cells[name])
        parts.append(text.ljust(-width) if width < 0 else text.rjust(width))
    return "  ".join(parts).rstrip()


if __name__ == "__main__":
    main()
