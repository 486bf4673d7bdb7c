"""The kernels' numbers with no GPU: the device tests under Triton's interpreter.

In a process of its own, because TRITON_INTERPRET must be set before the first `triton.jit`, and would disturb
`torch.compile` in this one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason="the interpreter of Triton 3.6 makes Python numbers of arrays of one element, which NumPy 2.4 forbids",
)
@pytest.mark.parametrize(("op", "least"), [("sigmoid_attention", 60), ("fused_attention", 40), ("ccc_loss", 10)])
def test_kernels_under_the_interpreter(op: str, least: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"tests/gpu/test_{op}.py", "-p", "no:cacheprovider"],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= least, done.stdout[-2000:]  # nothing was quietly skipped
