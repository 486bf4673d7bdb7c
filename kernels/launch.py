"""How the ops start their kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton


def wrap_triton(function: Any) -> Any:
    """A `triton.jit` function, ready for `[grid](...)`, whose launch `torch.compile` and `torch.export` can see.

    Under Triton's interpreter there is nothing to trace, and torch 2.11 refuses to wrap what is interpreted.
    The name is torch's own: it reads the source of an op and what that calls for `wrap_triton(kernel)`, and keys its
    cache of compiled graphs by the kernels that it finds. What it missed would be run from the cache in its old form.
    """
    return function if triton.knobs.runtime.interpret else torch.library.wrap_triton(function)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """For launches: Triton takes the current device and its stream, whatever device the arguments are on."""
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    return torch.cuda.device(device) if several else nullcontext()
