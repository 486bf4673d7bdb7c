"""One training step: forward and loss in the runtime's precision, backward, update.

`Step` takes any loss and optimizer and compiles forward and backward. `WholeStep` compiles the update with them, and on
a GPU replays all of it as one CUDA graph. Both take the same steps but for rounding; `fast_step` picks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from jmt_fast.cuda_graph import CudaGraph, compiled, region
from jmt_fast.runtime import Runtime
from jmt_fast.training.distributed import ranks

Loss = Callable[..., Tensor]

_WORTH = 2000  # steps on a CPU from which a `WholeStep` saves more than its compilation costs: 10 ms each, 20 s at once


class Step:
    """Calls `loss(*tensors)` under autocast, backward, update; returns the detached loss, a scalar on the device.

    `loss` gives a scalar of float32 or more. With `runtime.compile` it is compiled, once for each set of shapes: give
    it batches of one shape (pad them). In fp16 the loss is scaled, and an update with gradients that are not finite is
    left out. `rate`, if given, is the learning rate's factor at update n = 0, 1, ...; `clip_norm` the greatest norm
    that the gradients keep.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        rate: Callable[[int], float] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._lr = [float(group["lr"]) for group in optimizer.param_groups]
        self._clip_norm = clip_norm
        self.device = runtime.device
        self._scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate) if rate else None

        def forward(*tensors: Tensor) -> Tensor:
            with precision(runtime):
                return loss(*tensors)

        self._loss = compiled(forward) if runtime.compile else forward

    def __call__(self, *tensors: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        value = self._loss(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))
        self._scaler.scale(value).backward()
        if self._clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._schedule:
            self._schedule.step()
        return value.detach()

    def scale_rate(self, factor: float) -> None:
        """Go on with `factor` times the optimizer's own learning rate. For a step that was made without `rate`."""
        for group, lr in zip(self.optimizer.param_groups, self._lr, strict=True):
            group["lr"] = lr * factor

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the weights excepted."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "updates": self._schedule.last_epoch if self._schedule else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])  # with the learning rate of the next update
        self._scaler.load_state_dict(state["scaler"])
        if self._schedule:
            self._schedule.last_epoch = state["updates"]


class WholeStep(Step):
    """`Step` for SGD without a scaler, compiled as one region from the loss to the update.

    A weight's gradient is then used where it is computed, in the precision of the product: it is neither widened, nor
    written, nor read again by an optimizer. On a GPU the region is captured in a CUDA graph after a few steps, one for
    each set of shapes; a step is then a copy of its tensors into the graph's and one launch.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: torch.optim.SGD,
        runtime: Runtime,
        rate: Callable[[int], float] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(loss, optimizer, replace(runtime, compile=False), rate, clip_norm)
        [self._group] = optimizer.param_groups
        self._weights: list[nn.Parameter] = self._group["params"]
        self._momenta = [torch.zeros_like(weight) for weight in self._weights] if self._group["momentum"] else []
        self._keep_momenta()
        # A tensor: a number would be compiled in, and a schedule would compile anew at every step.
        self._filled = float(self._group["lr"])
        self._rate = torch.tensor(self._filled, device=self.device)
        optimizer._opt_called = True  # type: ignore[attr-defined]  # or a schedule warns that nobody steps it
        self._graphs: dict[tuple[torch.Size, ...], CudaGraph] = {}
        self._region = region(self._whole, self.device, trace_autograd_ops=True)

    def __call__(self, *tensors: Tensor) -> Tensor:
        if self._group["lr"] != self._filled:
            self._filled = self._group["lr"]
            self._rate.fill_(self._filled)
        tensors = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        value = self._run(tensors)
        if self._schedule:
            self._schedule.step()
        return value

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for momentum, weight in zip(self._momenta, self._weights, strict=False):
            momentum.copy_(self.optimizer.state[weight]["momentum_buffer"])
        [self._group] = self.optimizer.param_groups
        self._keep_momenta()

    def _keep_momenta(self) -> None:
        """They are the optimizer's own, so that its state is complete: from zero it takes the same first step."""
        for momentum, weight in zip(self._momenta, self._weights, strict=False):
            self.optimizer.state[weight]["momentum_buffer"] = momentum

    def _run(self, tensors: tuple[Tensor, ...]) -> Tensor:
        if self.device.type != "cuda":
            return self._region(*tensors)
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._graphs:
            self._graphs[shapes] = CudaGraph(self._region, tensors)
        graph = self._graphs[shapes]
        for own, tensor in zip(graph.inputs, tensors, strict=True):
            own.copy_(tensor)
        return graph()

    def _whole(self, *tensors: Tensor) -> Tensor:
        value = self._loss(*tensors)
        gradients = torch.autograd.grad(value, self._weights)
        with torch.no_grad():
            if self._clip_norm is not None:
                norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients]))
                factor = (self._clip_norm / (norm + 1e-6)).clamp(max=1)  # as `clip_grad_norm_` does it
                gradients = tuple(each * factor for each in gradients)
            for number, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
                if self._group["weight_decay"]:
                    gradient = gradient + self._group["weight_decay"] * weight
                if self._momenta:
                    momentum = self._momenta[number].mul_(self._group["momentum"]).add_(gradient)
                    gradient = gradient + self._group["momentum"] * momentum if self._group["nesterov"] else momentum
                weight.sub_(self._rate * gradient)
        return value.detach()


def fast_step(
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    rate: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    steps: int = _WORTH,
) -> Step:
    """A `WholeStep` where one holds, else a `Step`: not compiled, fp16, another optimizer, or several processes, whose
    gradients meet between backward and update. `steps`: how many are to be taken."""
    whole = (
        runtime.compile
        and (runtime.device.type == "cuda" or steps >= _WORTH)
        and runtime.precision != "fp16"
        and isinstance(optimizer, torch.optim.SGD)
        and len(optimizer.param_groups) == 1
        and ranks() == 1
        and hasattr(torch._dynamo.config, "trace_autograd_ops")  # newer than the oldest PyTorch that this package takes
    )
    return (WholeStep if whole else Step)(loss, optimizer, runtime, rate, clip_norm)  # type: ignore[arg-type]


def precision(runtime: Runtime) -> torch.autocast:
    """Autocast to the runtime's dtype; does nothing in fp32."""
    # Weights are cast at every use: within one step each is used once, so a cache would only hold memory.
    return torch.autocast(
        runtime.device.type,
        runtime.dtype if runtime.precision != "fp32" else torch.bfloat16,
        enabled=runtime.precision != "fp32",
        cache_enabled=False,
    )


def sgd(
    parameters: Iterable[nn.Parameter],
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """SGD over the parameters that want gradients, in one pass over weights and gradients where PyTorch has that."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    # On a CPU the fused form takes five times as long on weights that are stored channels-last, and pairs weights and
    # gradients by their place in memory, so where their layouts differ it is wrong without a word (PyTorch 2.14).
    fused = all(
        parameter.device.type == "cuda" or (parameter.device.type == "cpu" and parameter.is_contiguous())
        for parameter in wanted
    )
    return torch.optim.SGD(
        wanted, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused or None
    )
