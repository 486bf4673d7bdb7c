"""How fast is sigmoid attention, forward and backward, and how much memory does it take beside its peers?

All peers get the same q, k, v (B, H, L, D), bf16 on a GPU and fp32 on a CPU, and all do the same useful work:
4 B H L^2 D operations forward and 2.5 times that backward. Those marked softmax compute another function at the same
cost; they are there as the best-tuned attention kernels that people have. `beyond_mib` is the peak memory of forward,
or forward and backward, beyond inputs, outputs and gradients; it is not given for peers that live in CUDA graphs,
whose memory is set aside before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.timing import Prepared, peak_memory
from jmt_fast.kernels import sigmoid_attention, sigmoid_attention_reference

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
OURS, BIASED = "jmt-fast", "jmt-fast, bias -log n"
SPECIALISED = "specialised warps, not public"
EAGER, COMPILED, FLASH = "formula, eager", "formula, compiled", "SDPA FLASH (softmax)"
OWN_GRAPHS = ("formula, reduce-overhead", "formula, max-autotune")
GPU = torch.cuda.is_available()
DTYPE, PRECISION = (torch.bfloat16, "bf16") if GPU else (torch.float32, "fp32")
ROTATED_BYTES = 256 << 20 if GPU else 64 << 20  # inputs in turn: more than any level-2 or level-3 cache here
TOLERANCE = 2e-2 if GPU else 1e-5  # of the greatest true value: guards what is timed, the tests do the measuring


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    length: int
    dim: int

    def __str__(self) -> str:
        heads = "1 head" if self.heads == 1 else f"{self.heads} heads"
        return f"batch {self.batch}, {heads}, length {self.length}, width {self.dim}"

    @property
    def flops(self) -> float:
        return 4.0 * self.batch * self.heads * self.length**2 * self.dim

    @property
    def nbytes(self) -> int:
        """Of one of q, k, v and the output."""
        return self.batch * self.heads * self.length * self.dim * DTYPE.itemsize

    @property
    def long(self) -> bool:
        return self.length >= 1000

    def drawn(self, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """q, k, v and the output's gradient, as often as it takes to fill the caches."""
        count = min(max(1, -(-ROTATED_BYTES // (4 * self.nbytes))), 32)
        size = (4, self.batch, self.heads, self.length, self.dim)
        return [tuple(torch.randn(size, device=device).to(DTYPE).unbind()) for _ in range(count)]


LONG_GPU = [Shape(16384 // length, 2048 // dim, length, dim) for dim in (64, 128) for length in (2048, 4096, 8192)]
WIDE_GPU = [Shape(1, 1, 8192, 512), Shape(4, 1, 8192, 512)]
SHORT_GPU = [
    Shape(batch, heads, length, 512 // heads) for batch in (256, 4096) for length in (8, 16) for heads in (1, 8)
]
CPU = [Shape(1, 1, 4096, 64), Shape(1, 1, 4096, 16), Shape(1, 8, 1024, 64), Shape(256, 1, 8, 512)]
SHAPES = LONG_GPU + WIDE_GPU + SHORT_GPU if GPU else CPU


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(q @ k.mT * q.shape[-1] ** -0.5) @ v


def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The model's default bias, which asks for the accurate sigmoid where the plain one may be approximate."""
    bias = torch.full((len(q),), -math.log(q.shape[2]), device=q.device)
    return sigmoid_attention(q, k, v, q.shape[-1] ** -0.5, bias)


def specialised(dim: int) -> Attention | str:
    """Our kernels with descriptors and specialised warps, which no public function takes, or why they are not there."""
    if not GPU:
        return "needs a CUDA device"
    from jmt_fast.kernels.sigmoid_attention import specialised as own
    from jmt_fast.kernels.sigmoid_attention.kernel import arch_of

    arch = arch_of(torch.device("cuda", torch.cuda.current_device()))
    if dim not in own.TILES["backward_keys"] or arch not in own.WARPS["backward_keys"]:
        return f"not for width {dim} on sm_{arch}"

    class Specialised(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            ctx.save_for_backward(q, k, v)
            out = torch.empty_like(q)
            own.launch_forward(q, k, v, None, dim**-0.5, 0.0, out)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            inputs = ctx.saved_tensors
            gradients = tuple(torch.empty_like(x) for x in inputs)
            own.launch_backward(grad.contiguous(), *inputs, None, dim**-0.5, 0.0, *gradients)
            return gradients

    return Specialised.apply


def pinned(backend: SDPBackend) -> Attention:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return call


def flex() -> Attention:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flash_sigmoid() -> Attention:
    from flash_sigmoid import flash_attn_func

    return lambda q, k, v: flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def triton_sigmoid() -> Attention:
    from triton_sigmoid import sigmoid_attention as attention

    return lambda q, k, v: attention(*(x.transpose(1, 2) for x in (q, k, v)), sigmoid_bias=0.0).transpose(1, 2)


def contenders(dim: int) -> dict[str, Attention | str]:
    """name -> attention, or why it is not there.

    The first must run. The last one comes last because what breaks in it may leave a GPU of no use to others.
    """
    found: dict[str, Attention | str] = {
        OURS: lambda q, k, v: sigmoid_attention(q, k, v, q.shape[-1] ** -0.5),
        BIASED: biased,
        EAGER: formula,
        COMPILED: torch.compile(formula, dynamic=False),
    }
    for name in OWN_GRAPHS:
        mode = name.removeprefix("formula, ")
        found[name] = torch.compile(formula, dynamic=False, mode=mode)
    if not GPU:
        found["formula, reduce-overhead"] = "on a CPU the same as compiled: it adds CUDA graphs only"
    for backend in ("FLASH", "CUDNN", "EFFICIENT"):
        found[f"SDPA {backend} (softmax)"] = pinned(getattr(SDPBackend, f"{backend}_ATTENTION"))
    if not GPU:
        found |= {f"SDPA {backend} (softmax)": "needs a CUDA device" for backend in ("CUDNN", "EFFICIENT")}
    found["FlexAttention (softmax)"] = _made(flex)
    for name, make in {"flash_sigmoid": flash_sigmoid, "triton_sigmoid": triton_sigmoid}.items():
        found[name] = _made(make) if find_spec(name) else "not installed"
    found[SPECIALISED] = _made(lambda: specialised(dim))
    return found


def _made(make: Callable[[], Attention | str]) -> Attention | str:
    try:
        return make()
    except Exception as error:
        return f"cannot be imported: {error}".partition("\n")[0]


def both(attention: Attention) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward: the output and the gradients of q, k and v."""

    def call(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attention(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    return call


def backward(attention: Attention, inputs: Iterable[tuple[Tensor, ...]], rotate: Callable[..., Any]) -> Prepared:
    def forward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return attention(*leaves), leaves, grad

    return Prepared(rotate(forward, inputs), lambda state: torch.autograd.grad(*state))


def checks(
    found: dict[str, Attention | str], call: Callable[[Attention], Iterable[Tensor]], truth: list[Tensor]
) -> dict[str, Callable[[], None]]:
    """For those that must compute the truth: the formula without a bias, whoever wrote it."""
    same = (name for name, peer in found.items() if callable(peer) and name != BIASED and "softmax" not in name)
    return {name: lambda attention=found[name]: check(call(attention), truth) for name in same}


def check(tensors: Iterable[Tensor], truth: Iterable[Tensor]) -> None:
    """Compare the first head of the first batch element, so that the formula fits into memory at any length."""
    for ours, true in zip(tensors, truth, strict=True):
        error = (ours[:1, :1].float() - true).abs().max()
        assert error <= TOLERANCE * true.abs().max(), f"off by {error:.2g} of {true.abs().max():.2g}"


def report(
    question: Any, name: str, shape: Shape, timings: dict[str, Any], beyond: dict[str, int], flops: float,
    nbytes: int, ceiling: Any,
) -> None:  # fmt: skip
    """A row a peer. Ratios are against FLASH on a GPU where it runs, else the compiled formula; eager on a CPU."""
    order = (FLASH, COMPILED, EAGER, OURS) if GPU else (EAGER, OURS)
    against = next(peer for peer in order if peer in timings and not timings[peer].error)
    floor = ceiling.floor(nbytes, flops, PRECISION)
    for peer, timing in timings.items():
        question.row(
            f"{name}, {shape}, {PRECISION}",
            peer,
            timing,
            ratio=timings[against].median / timing.median,
            tflop_per_s=flops / timing.median / 1e9,
            gb_per_s=nbytes / timing.median / 1e6,
            floor_ms=floor,
            times_floor=timing.median / floor,
            beyond_mib=beyond[peer] / 2**20 if peer in beyond else float("nan"),
        )


def memory(calls: dict[str, Callable[[], Any]], timings: dict[str, Any], device: torch.device) -> dict[str, int]:
    found = {}
    for name, call in calls.items():
        if not timings[name].error and not (GPU and name in OWN_GRAPHS):
            with suppress(torch.OutOfMemoryError):
                found[name] = peak_memory(call, device)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(
    shape: Shape, device: torch.device, race: Any, rotate: Any, chosen: Any, question: Any, ceiling: Any
) -> None:
    torch.compiler.reset()
    inputs = [tensors[:3] for tensors in shape.drawn(device)]
    found = chosen(contenders(shape.dim), OURS)
    first = [x[:1, :1].float() for x in inputs[0]]
    with torch.no_grad():
        truth = [sigmoid_attention_reference(*first, scale=shape.dim**-0.5)]
        peers = {name: peer if isinstance(peer, str) else rotate(peer, inputs) for name, peer in found.items()}
        timings = race(
            peers,
            optional=set(found) - {OURS, BIASED},
            capture=set(found) - set(OWN_GRAPHS),
            checks=checks(found, lambda attention: [attention(*inputs[0])], truth),
        )
        beyond = memory({name: peer for name, peer in peers.items() if callable(peer)}, timings, device)
    report(question, "forward", shape, timings, beyond, shape.flops, 4 * shape.nbytes, ceiling)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(
    shape: Shape, device: torch.device, race: Any, rotate: Any, chosen: Any, question: Any, ceiling: Any
) -> None:
    """Of long sequences the backward pass alone; of short ones with the forward pass, in one graph on a GPU."""
    torch.compiler.reset()
    inputs = shape.drawn(device)
    found = chosen(contenders(shape.dim), OURS)
    *first, grad = [x[:1, :1].float() for x in inputs[0]]
    truth = both(lambda q, k, v: sigmoid_attention_reference(q, k, v, shape.dim**-0.5))(*first, grad)
    runs = {name: peer for name, peer in found.items() if not isinstance(peer, str)}
    whole = {name: rotate(both(peer), inputs) for name, peer in runs.items()}
    peers = {name: backward(peer, inputs, rotate) for name, peer in runs.items()} if shape.long else whole
    timings = race(
        {name: peers.get(name, found[name]) for name in found},
        optional=set(found) - {OURS, BIASED},
        capture=set(found) - set(OWN_GRAPHS),
        checks=checks(found, lambda attention: both(attention)(*inputs[0]), [x.detach() for x in truth]),
    )
    beyond = memory(whole, timings, device)
    name, flops, tensors = ("backward", 2.5, 7) if shape.long else ("forward and backward", 3.5, 11)
    report(question, name, shape, timings, beyond, flops * shape.flops, tensors * shape.nbytes, ceiling)
