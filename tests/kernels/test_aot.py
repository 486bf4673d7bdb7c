"""Offline compilation: resources and matrix instructions, and the graph that the compiler would see on a GPU."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import triton
from functorch.compile import aot_function, make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from jmt_fast.kernels import aot, sigmoid_attention
from jmt_fast.kernels.program import Program
from jmt_fast.kernels.sigmoid_attention import specialised
from jmt_fast.kernels.sigmoid_attention.device import FRUGAL
from jmt_fast.kernels.sigmoid_attention.kernel import KERNELS, SPLIT_DIM, program

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
INSTRUCTION = {80: "mma", 90: "wgmma", 100: "tcgen05"}
# Triton 3.9 puts some values of sm_90's largest tiles on the stack, outside of loops (docs/kernels.md).
ALLOWED = {"spills"} if FRUGAL.value else set()
COUNT = 3  # programs of an op that are compiled here for one GPU; `python -m jmt_fast.kernels.aot` compiles all


@pytest.mark.parametrize("arch", [90, 120])
@pytest.mark.parametrize("op", aot.OPS)
def test_programs_run_well_on_their_gpu(op: str, arch: int) -> None:
    chosen = list(aot.programs(arch, op))
    assert chosen, f"{op} names no programs"
    chosen.sort(key=lambda p: p.dtype == "fp32")  # 16-bit operands first: their registers are the tight ones
    half = [p for p in chosen if p.dtype != "fp32"] or chosen
    for picked in (*half[:: max(1, len(half) // (COUNT - 1))][: COUNT - 1], chosen[-1]):
        found = aot.compile_one(picked, arch)
        assert set(found.faults) <= ALLOWED, f"{picked.kernel} {picked.dtype} {picked.shape}: {found.faults}"
        assert 0 < found.registers <= 255
        assert found.matrix or not picked.matrix


@pytest.mark.parametrize(
    ("arch", "dim", "kernel"),
    [(90, dim, kernel) for dim in (64, 128, 512) for kernel in ("forward", "backward_keys", "backward_queries")]
    + [(90, 256, "backward_keys"), (80, 64, "forward"), (100, 64, "forward")],
)
def test_large_tiles_use_the_archs_own_matrix_instruction(arch: int, dim: int, kernel: str) -> None:
    part = 2 if kernel == "backward_keys" and dim > SPLIT_DIM else 0
    found = aot.compile_one(program(kernel, arch, "bf16", 4096, dim, full=False, part=part), arch)
    assert set(found.faults) <= ALLOWED
    assert INSTRUCTION[arch] in found.matrix


@pytest.mark.parametrize("arch", [90, 100])
def test_warps_are_specialised(arch: int) -> None:
    """The compiler leaves a loop as it is without a word where it cannot: the code must show it."""
    chosen = list(specialised.programs(arch))
    assert (
        len(chosen)
        == sum(2 * len(tiles) for kernel, tiles in specialised.TILES.items() if arch in specialised.WARPS[kernel])
        > 0
    )
    for described in chosen:
        assert not aot.compile_one(described, arch).faults
        options = {"num_warps": described.warps, "num_stages": described.stages}
        code = triton.compile(aot._source(described), target=GPUTarget("cuda", arch, 32), options=options).asm
        assert "ttg.warp_specialize(" in code["ttgir"]
        assert "setmaxnreg" in code["ptx"] and "cp.async.bulk.tensor" in code["ptx"]
    assert not list(specialised.programs(80))


def test_fp32_is_computed_in_ieee_arithmetic() -> None:
    found = aot.compile_one(program("forward", 90, "fp32", 4096, 64, full=True), 90)
    assert found.matrix == (), "TF32"


def test_the_sigmoid_of_the_host_s_choice() -> None:
    """One special operation without a bias tensor, two with one; FP32 never takes the coarse one."""
    for dtype, full, expected in (("bf16", False, True), ("bf16", True, False), ("fp32", False, False)):
        described = program("forward", 90, dtype, 64, 64, full)
        compiled = triton.compile(aot._source(described), target=GPUTarget("cuda", 90, 32))
        ptx = compiled.asm["ptx"]
        assert ("tanh.approx.f32" in ptx) == expected
        assert ("rcp.approx.ftz.f32" in ptx and "ex2.approx" in ptx) != expected


@pytest.mark.parametrize("kernel", KERNELS)
def test_arguments_equal_to_one(kernel: str) -> None:
    """Triton turns an integer argument that is 1 into a constant: another program, for one head and one clip."""
    described = program(kernel, 90, "fp16", 8, 20, full=False)
    names = {"heads", "len_q", "len_k"}
    types = {name: kind for name, kind in described.types.items() if name not in names}
    constants = {**described.constants, **dict.fromkeys(names, 1)}
    assert aot.compile_one(replace(described, types=types, constants=constants), 90).matrix == ("mma",)


def described_product(rows: int, warps: int, width: int = 64) -> Program:
    """Sigmoid attention's forward kernel with a tile of the caller's choice."""
    described = program("forward", 90, "bf16", 4096, width, full=False)
    return replace(described, constants={**described.constants, "QUERIES": rows, "KEYS": 32}, warps=warps)


def test_faults_are_found() -> None:
    assert not aot.compile_one(described_product(64, 4), 90).missed
    older = aot.compile_one(described_product(64, 4), 80)  # sm_80 has no wgmma: the same products, all missed
    assert set(older.missed) == {(64, 32), (64, 64)}
    assert replace(older, arch=90).faults == ["no wgmma for 64x32, 64x64, 64x32, 64x64"]
    assert replace(older, shared=99 * 1024 + 1, arch=120).faults == ["over 99 KiB of shared memory"]
    spilling = replace(older, arch=90, missed=(), spills=8)
    assert spilling.faults == ["spills"] and not replace(spilling, arch=80).faults
    assert replace(older, matrix=()).faults == ["no matrix instruction"]


@pytest.mark.parametrize(("length", "dim", "launches"), [(8, 512, 1), (100, 256, 2), (100, 512, 3)])
def test_the_compiler_sees_the_launches_and_what_they_write(
    length: int, dim: int, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hopper:
        """Stands in for the driver that a machine without a GPU lacks: tracing asks it for the target only."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    with FakeTensorMode():
        q, k, v, grad = (torch.empty(2, 1, length, dim, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        bias, valid = torch.empty(2, device="cuda"), torch.empty(2, length, device="cuda", dtype=torch.bool)
        aot_function(lambda *x: sigmoid_attention(*x[:3], 0.1, *x[3:]), keep)(q, k, v, bias, valid)
        backward = torch.ops.jmt_fast.sigmoid_attention_backward
        aot_function(lambda *x: backward(*x, 0.1, 0.0), keep)(grad, q, k, v, bias, valid)
    forward, backward_code = graphs
    assert re.findall(r"tensors_to_clone = (\[.*?\])", forward) == ["['out']"]
    written = re.findall(r"tensors_to_clone = (\[.*?\])", backward_code)
    expected = {1: ["['dq', 'dk', 'dv']"], 2: ["['dk', 'dv']", "['dq']"], 3: ["['dv']", "['dk']", "['dq']"]}
    assert written == expected[launches]
    assert not re.search(r"\b(sigmoid|bmm)\b", forward + backward_code)  # no score matrix in memory


def test_stores_in_loops_are_told_from_others() -> None:
    code = [
        "        /*0000*/  STL [R1], R2 ;", ".L_x_0:", "        /*0010*/  STL.64 [R1+0x8], R4 ;",
        "        /*0020*/  @P0 BRA `(.L_x_1) ;", "        /*0030*/  LDL R2, [R1] ;", ".L_x_1:",
        "        /*0040*/  @!P1 BRA `(.L_x_0) ;", "        /*0050*/  STL [R1], R2 ;", ".L_x_2:",
        "        /*0060*/  BRA `(.L_x_2);",
    ]  # fmt: skip
    assert aot.looped_stores(code) == 1


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = program("forward", 90, "bf16", 8, 512, full=False), described_product(128, 2, 128)
    for chosen, status in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr("sys.argv", ["aot", "--arch", "80", "--op", "sigmoid_attention"])
        monkeypatch.setattr(aot, "programs", lambda arch, op, chosen=chosen: chosen)
        with pytest.raises(SystemExit) as done:
            aot.main()
        assert done.value.code == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["op", "kernel", "arch", "dtype"]
    assert re.search(r"^sigmoid_attention +forward +sm_80 +bf16 +L 8 D 512 16x16 bare", lines[1])
    assert lines[-1].endswith("spills in a loop")
