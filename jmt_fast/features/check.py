"""Are the files of a feature store what was written there?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

import torch
from safetensors import SafetensorError, safe_open

from jmt_fast.config import digest
from jmt_fast.errors import DataError
from jmt_fast.features.store import KEY_FILE, SUFFIX, checksum

TENSORS = {"times", "clips", "visual_dim", "timestamps", "face"}
REMEDY = "delete it, and run `jmt-fast features` again"
Progress = Callable[[int, int, str], None]


def check_store(root: str | Path, progress: Progress | None = None) -> tuple[int, dict[str, DataError]]:
    """Read every file of every key under `root`: how many there are, and the bad ones by path, each with its error.

    Bad is a file that cannot be read, whose checksum is not that of its content, that belongs to another video or key,
    or that no store would write. Raises DataError where there is no store.
    """
    root = Path(root)
    folders = sorted(path.parent for path in root.glob(f"*/{KEY_FILE}"))
    if not folders:
        raise DataError(f"{root}: no feature store; pass the --store that `jmt-fast features` wrote")
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    files += sorted(path for path in root.iterdir() if path not in folders)
    bad = {}
    for number, path in enumerate(files):
        if fault := _fault(path, root):
            bad[str(path)] = DataError(f"{path}: {fault}")
        if progress:
            progress(number + 1, len(files), path.name)
    return len(files), bad


def _fault(path: Path, root: Path) -> str | None:
    """What is wrong with a file, and the remedy; None if it is as it was written."""
    if path.parent != root and path.name == KEY_FILE:
        return _fault_of_key(path)
    if path.parent != root and path.name.endswith(SUFFIX):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                return _fault_of_features(path, tensors, dict(file.metadata() or {}))
        except (OSError, SafetensorError) as error:
            return f"damaged ({error}); {REMEDY}"
    if path.name.endswith(".part"):
        return "left by a run that was killed, unless one is writing now; delete it"
    return "no part of a feature store; move it elsewhere"


def _fault_of_features(path: Path, tensors: Mapping[str, torch.Tensor], facts: dict[str, str]) -> str | None:
    written = facts.pop("checksum", None)
    if written is None or set(tensors) != TENSORS:
        return "without a checksum, so of an earlier version or another program; delete it or move it elsewhere"
    if checksum(tensors, facts) != written:
        return f"damaged (its content is not that of its checksum); {REMEDY}"
    if facts["name"] != unquote(path.name.removesuffix(SUFFIX)):
        return f"holds the features of {facts['name']}; {REMEDY}"
    if facts["key"] != path.parent.name:
        return f"comes from other settings (key {facts['key']}); {REMEDY}"
    return None


def _fault_of_key(path: Path) -> str | None:
    try:
        whole = digest(json.loads(path.read_bytes())) == path.parent.name
    except (OSError, ValueError):
        whole = False
    return None if whole else "damaged; run `jmt-fast features` with these settings again, which writes it anew"
