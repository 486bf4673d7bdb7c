"""Offline compilation: resources and matrix instructions, and the graph that the compiler would see on a GPU."""

from __future__ import annotations

import re

import pytest
import torch
import triton
from functorch.compile import aot_function, make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from jmt_fast.kernels import aot, sigmoid_attention

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
INSTRUCTION = {80: "mma", 90: "wgmma", 100: "tcgen05"}


@pytest.mark.parametrize("kernel", aot.KERNELS)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("arch", INSTRUCTION)
def test_no_spills_and_the_archs_own_matrix_instruction(arch: int, dim: int, kernel: str) -> None:
    found = aot.compile_one(kernel, arch, "bf16", 4096, dim)
    assert found.spills == 0
    assert 0 < found.registers <= 255
    assert found.fits, f"{found.shared} bytes of shared memory"
    assert INSTRUCTION[arch] in found.matrix


@pytest.mark.parametrize("kernel", aot.KERNELS)
@pytest.mark.parametrize(("dtype", "length"), [("bf16", 8), ("fp32", 64)])
def test_the_widest_head_fits_the_smallest_shared_memory(kernel: str, dtype: str, length: int) -> None:
    found = aot.compile_one(kernel, 120, dtype, length, 512)
    assert found.fits, f"{found.shared} bytes of shared memory"
    assert found.spills == 0
    assert found.matrix == (("mma",) if dtype == "bf16" else ()), "FP32 is computed in IEEE arithmetic, not TF32"


@pytest.mark.parametrize("kernel", aot.KERNELS)
def test_arguments_equal_to_one(kernel: str) -> None:
    """Triton turns an integer argument that is 1 into a constant: another program, for one head and one clip."""
    ones = {name: 1 for name in aot.KERNELS[kernel].arg_names if name in ("heads", "len_q", "len_k")}
    constants = {"DIM": 20, "WIDTH": 32, "QUERIES": 16, "KEYS": 16, "HAS_BIAS": False, "HAS_VALID": False, **ones}
    if kernel == "backward_keys":
        constants["WHOLE"] = True
    compiled = triton.compile(
        aot._source(aot.KERNELS[kernel], "fp16", constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}
    )
    assert "mma.sync" in compiled.asm["ptx"]


@pytest.mark.parametrize(("length", "passes"), [(8, 1), (100, 2)])
def test_the_compiler_sees_the_launches_and_what_they_write(
    length: int, passes: int, monkeypatch: pytest.MonkeyPatch
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
        q, k, v, grad = (torch.empty(2, 1, length, 512, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        bias, valid = torch.empty(2, device="cuda"), torch.empty(2, length, device="cuda", dtype=torch.bool)
        aot_function(lambda *x: sigmoid_attention(*x[:3], 0.1, *x[3:]), keep)(q, k, v, bias, valid)
        backward = torch.ops.jmt_fast.sigmoid_attention_backward
        aot_function(lambda *x: backward(*x, 0.1, 0.0), keep)(grad, q, k, v, bias, valid)
    forward, backward_code = graphs
    assert re.findall(r"tensors_to_clone = (\[.*?\])", forward) == ["['out']"]
    written = re.findall(r"tensors_to_clone = (\[.*?\])", backward_code)
    assert written == (["['dq', 'dk', 'dv']"] if passes == 1 else ["['dk', 'dv']", "['dq']"])
    assert not re.search(r"\b(sigmoid|bmm)\b", forward + backward_code)  # no score matrix in memory


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["aot", "--arch", "90", "--dtype", "bf16"])
    monkeypatch.setattr(aot.resources, "__defaults__", (*aot.resources.__defaults__[:2], ((8, 512),), ("forward",)))
    with pytest.raises(SystemExit) as done:
        aot.main()
    assert done.value.code == 0
    assert re.search(r"forward +sm_90 +bf16 +8 +512 +16x16", capsys.readouterr().out)
