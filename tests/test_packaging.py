"""The wheel holds the kernels, a checkout imports without installing, imports go down the house only."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "config", "runtime", "threads", "cuda_graph"},
    {"media", "kernels"},
    {"models", "data"},
    {"faces"},
    {"features"},
    {"training", "inference"},
    {"verify", "doctor", "demo", "bench"},
    {"cli"},
]
FORBIDDEN = [("media", "kernels"), ("kernels", "media"), ("models", "data"), ("data", "models"),
             ("training", "inference"), ("inference", "training")]  # fmt: skip


@pytest.mark.slow
def test_a_wheel_contains_the_kernels(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "jmt_fast").rglob("*.py")}
    kernels = {f"jmt_fast/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}
    parts = ROOT / "jmt_fast" / "inference" / "page"
    page = {str(path.relative_to(ROOT)) for path in parts.iterdir() if path.is_file()}
    assert kernels
    assert package | kernels | page | {"jmt_fast/py.typed"} <= names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "benchmarks/"))]


def test_a_bare_checkout_imports(tmp_path: Path) -> None:
    code = "import jmt_fast, jmt_fast.kernels as k; print(jmt_fast.JMT.__name__, k.sigmoid_attention.__name__)"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["JMT", "sigmoid_attention"]


def imported(path: Path) -> set[str]:
    """The parts of jmt_fast that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jmt_fast"):
            part = (node.module or "").split(".")[1:2]
            found |= set(part) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jmt_fast.")}
    return found


def test_imports_go_down_only() -> None:
    floor = {part: number for number, parts in enumerate(FLOORS) for part in parts}
    for path in (ROOT / "jmt_fast").rglob("*.py"):
        part = path.relative_to(ROOT / "jmt_fast").parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        for other in imported(path) - {part}:
            if other in floor:
                assert floor[other] <= floor[part], f"{path}: {part} imports {other}"
                assert (part, other) not in FORBIDDEN, f"{path}: {part} imports {other}"
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not imported(path), path
