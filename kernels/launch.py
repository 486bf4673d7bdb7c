"""How the ops start their kernels."""

from __future__ import annotations

from typing import Any

import triton
from torch.library import wrap_triton


def traceable(function: Any) -> Any:
    """A `triton.jit` function, ready for `[grid](...)`, whose launch `torch.compile` and `torch.export` can see.

    Under Triton's interpreter there is nothing to trace, and torch 2.11 refuses to wrap what is interpreted.
    """
    return function if triton.knobs.runtime.interpret else wrap_triton(function)
