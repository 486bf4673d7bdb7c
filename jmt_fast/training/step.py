"""One training step: forward and loss in the runtime's precision, backward, update."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from jmt_fast.runtime import Runtime

Loss = Callable[..., Tensor]


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

        self._loss = torch.compile(forward, dynamic=False) if runtime.compile else forward

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
    """SGD in one pass over weights and gradients (PyTorch's fused form) over the parameters that want gradients."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in wanted)
    return torch.optim.SGD(
        wanted, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused or None
    )
