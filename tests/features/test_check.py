"""`features --check`: what is damaged or does not belong is named, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from jmt_fast.cli import app
from jmt_fast.cli import train as train  # registers the command
from jmt_fast.config import FeatureConfig
from jmt_fast.errors import DataError
from jmt_fast.features import FeatureStore, StoreKey, VideoFeatures, check_store


def store(root: Path, stride: int = 8) -> FeatureStore:
    return FeatureStore(root, StoreKey(features=FeatureConfig(), weights="0", stride=stride, precision="bf16"))


@pytest.fixture
def full(tmp_path: Path) -> FeatureStore:
    """Two videos under one key, a third under another."""
    root = tmp_path / "store"
    for number, (made, name) in enumerate([(store(root), "a"), (store(root), "b/ä"), (store(root, 4), "c")]):
        features = torch.randn(5, 32, generator=torch.Generator().manual_seed(number)).bfloat16()
        times = np.arange(5) * 8 / 30
        made.write(VideoFeatures(name, 8, times, features, 16, times, np.ones(5, bool)), "source")
    return store(root)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def change_a_fact(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"source":"source"', b'"source":"sourse"'))


def without_checksum(path: Path) -> None:
    save_file(load_file(path), path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit of a feature": (lambda path: flip(path, -1), "not that of its checksum"),
    "bit of a time": (lambda path: flip(path, -400), "not that of its checksum"),
    "bit of the header": (lambda path: flip(path, 0), "damaged"),
    "fact": (change_a_fact, "not that of its checksum"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "no checksum": (without_checksum, "without a checksum"),
}


def test_a_whole_store_passes(full: FeatureStore) -> None:
    seen: list[tuple[int, int, str]] = []
    assert check_store(full.folder.parent, lambda *at: seen.append(at)) == (5, {})
    assert seen[-1][:2] == (5, 5)


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_found(full: FeatureStore, case: str) -> None:
    damage, reason = DAMAGES[case]
    path = full.folder / "a.safetensors"
    damage(path)
    count, bad = check_store(full.folder.parent)
    assert count == 5 and list(bad) == [str(path)]
    message = str(bad[str(path)])
    assert message.startswith(f"{path}: ") and reason in message and "; delete it" in message


def test_what_does_not_belong_is_named(full: FeatureStore) -> None:
    root, own = full.folder.parent, full.folder / "a.safetensors"
    [other] = root.glob("*/c.safetensors")
    wrong = {
        full.folder / "renamed.safetensors": "holds the features of a",
        full.folder / "c.safetensors": f"comes from other settings (key {other.parent.name})",
        full.folder / ".b.safetensors.1.part": "killed",
        full.folder / "notes.txt": "no part of a feature store",
        root / "notes.txt": "no part of a feature store",
    }
    for path in wrong:
        path.write_bytes((other if path.name.startswith("c") else own).read_bytes())
    (other.parent / "key.json").write_text("{}")
    wrong[other.parent / "key.json"] = "writes it anew"
    count, bad = check_store(root)
    assert count == 10 and set(bad) == {str(path) for path in wrong}
    for path, reason in wrong.items():
        assert reason in str(bad[str(path)])


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no feature store; pass the --store"):
        check_store(tmp_path)


def test_exit_codes(full: FeatureStore, tmp_path: Path) -> None:
    run = CliRunner().invoke
    arguments = ["features", "--check", "--store", str(full.folder.parent)]
    whole = run(app, arguments)
    assert whole.exit_code == 0 and "5 of 5 files" in whole.stdout
    flip(full.folder / "a.safetensors", -1)
    damaged = run(app, arguments)
    assert damaged.exit_code == 3 and "4 of 5 files" in damaged.stdout and "checksum" in damaged.stderr
    assert run(app, ["features", "--store", str(tmp_path)]).exit_code == 2  # neither --data nor --check
    assert isinstance(run(app, ["features", "--check", "--store", str(tmp_path / "none")]).exception, DataError)
