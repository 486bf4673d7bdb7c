"""`export`: files that run without this package and compute what the model computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jmt_fast.config import JMTConfig
from jmt_fast.errors import JMTError
from jmt_fast.models import JMT
from jmt_fast.models.export import export_fusion
from jmt_fast.runtime import Runtime

FRESH = """
import sys, torch
kind, file, data = sys.argv[1:]
cases = torch.load(data)
if kind == "pt2":
    run = torch._inductor.aoti_load_package(file)
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    names = [(each.name, each.shape) for each in session.get_inputs()]
    assert names == [("audio", ["batch", "length", 48]), ("visual", ["batch", "length", 32]),
                     ("valid", ["batch", "length"])], names
    def run(*tensors):
        fed = dict(zip(["audio", "visual", "valid"], [x.numpy() for x in tensors]))
        return torch.from_numpy(session.run(["valence_arousal"], fed)[0])
for inputs, expected in cases:
    torch.testing.assert_close(run(*inputs), expected, rtol=1e-4, atol=1e-5)
assert not any(name.startswith("jmt_fast") for name in sys.modules)
print(len(cases))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_file_runs_in_a_fresh_process_at_any_shape(
    run: Callable, small_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"fusion.{kind}"
    result = run("export", "--checkpoint", small_checkpoint, "--out", file, "--device", "cpu", "--precision", "fp32")
    assert result.code == 0, result.err
    assert result.out.startswith(f"{file}: differs from the model by at most ")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

    model = JMT.from_pretrained(small_checkpoint)
    cases = []
    for batch, length in [(1, 1), (7, 8), (2, 150)]:
        inputs = torch.randn(batch, length, 48), torch.randn(batch, length, 32), torch.rand(batch, length) < 0.7
        cases.append((inputs, model(*inputs).detach()))
    torch.save(cases, tmp_path / "cases.pt")
    arguments = [sys.executable, "-c", FRESH, kind, str(file), str(tmp_path / "cases.pt")]
    shown = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (shown.returncode, shown.stdout) == (0, "3\n"), shown.stderr


def test_a_file_that_computes_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "fusion.onnx"
    file.write_bytes(b"the one before")
    monkeypatch.setattr("jmt_fast.models.export.ROUNDINGS", 0)  # as if nothing but equality would do
    model = JMT(JMTConfig(fusion="concat", dim=16, visual_dim=16))
    with pytest.raises(JMTError, match=r"fusion\.onnx: not written, for its results differ") as caught:
        export_fusion(model, file, Runtime.choose("cpu", "fp32"))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {file.name: b"the one before"}


def test_wrong_requests_are_one_line(run: Callable, small_checkpoint: Path, tmp_path: Path) -> None:
    for arguments, code, said in [
        (("--out", tmp_path / "fusion.txt"), 2, ".pt2 or .onnx"),
        (("--out", tmp_path / "fusion.onnx", "--precision", "bf16"), 2, "in fp32"),
        (("--out", tmp_path / "nowhere" / "fusion.pt2"), 1, "cannot be written (No such file or directory)"),
    ]:
        result = run("export", "--checkpoint", small_checkpoint, *arguments, "--device", "cpu")
        assert (result.code, said in result.err) == (code, True), result.err
        assert "Traceback" not in result.err
    result = run("export", "--checkpoint", tmp_path, "--out", tmp_path / "fusion.pt2")
    assert (result.code, result.err.count("\n")) == (1, 1), result.err
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(run: Callable, small_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("jmt_fast.models.export.find_spec", lambda name: None if name == "onnxscript" else name)
    result = run("export", "--checkpoint", small_checkpoint, "--out", tmp_path / "fusion.onnx", "--device", "cpu")
    assert result.code == 1
    assert "onnxscript missing; pip install 'jmt-fast[onnx]'" in result.err
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("export", "--checkpoint", small_checkpoint, "--out", tmp_path / "fusion.pt2", "--device", "cpu")
    assert result.code == 1
    assert "no C++ compiler found: install g++" in result.err
