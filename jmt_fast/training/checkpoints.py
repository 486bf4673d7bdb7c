"""What a training run leaves in its folder, each file whole or as it was: best weights, last state, metrics."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from jmt_fast.errors import CheckpointError, JMTError

Save = Callable[[Path], object]


class RunFolder:
    """`best/` (written by `save_best(folder)`), `last.pt` (the state for an exact resume) and `metrics.jsonl`.

    `identity` is all that decides the run's course: a resume under another identity is refused. A run that does not
    resume starts over: its `last.pt` and `metrics.jsonl` replace those of an earlier run at the end of its first epoch.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], save_best: Save) -> None:
        self.folder = Path(folder)
        self.best = self.folder / "best"
        self._last = self.folder / "last.pt"
        self._metrics = self.folder / "metrics.jsonl"
        self._identity = json.loads(json.dumps(identity))  # as it will be read back
        self._save_best = save_best
        with self._writing(self.folder):
            self.best.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last state, or None where no epoch was finished. CheckpointError for another run's, or a damaged one."""
        if not self._last.exists():
            return None
        try:
            stored = torch.load(self._last, map_location="cpu", weights_only=True)
            identity, state = stored["identity"], stored["state"]
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self._last}: damaged ({first_line(error)}); delete it and train again") from error
        if other := difference(identity, self._identity):
            raise CheckpointError(
                f"{self._last}: made with {other}; resume with the settings and data of that run, or choose another "
                "folder"
            )
        return state

    def save(self, state: dict[str, Any], history: list[dict[str, Any]], improved: bool) -> None:
        """Put one more epoch on disk. JMTError when it cannot be written; what was there before is then still whole."""
        # Interrupted between the files, a resumed run repeats the epoch and comes to the same ones.
        if improved:
            with self._writing(self.best):
                _replace_files(self._save_best, self.best)
        with self._writing(self._last), _whole(self._last) as temporary:
            torch.save({"identity": self._identity, "state": state}, temporary)
        with self._writing(self._metrics), _whole(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in history))

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the system says
            reason = error.strerror if isinstance(error, OSError) else first_line(error)
            raise JMTError(
                f"{path}: cannot be written ({reason}); what was there before is whole: put that right and resume"
            ) from error


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name once it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace_files(save: Save, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save(temporary)
        for file in sorted(temporary.iterdir()):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def difference(stored: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """The first entry in which the identity of what is stored differs from the one asked for, in words; None if none.

    `train` and `validation` are what `batches.content` says of a split.
    """
    for key in sorted(stored.keys() | asked.keys()):
        one, other = stored.get(key), asked.get(key)
        if one == other:
            continue
        if not (isinstance(one, dict) and isinstance(other, dict)):
            return f"{key}={one}, not {other}"
        fields = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
        if key in ("train", "validation"):
            return f"other {'videos' if 'videos' in fields else ' and '.join(fields)} in the {key} split"
        return ", ".join(f"{key}.{name}={one.get(name)}, not {other.get(name)}" for name in fields)
    return None


def first_line(error: Exception) -> str:
    """What an error says, short enough for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def weights_digest(module: nn.Module) -> str:
    """16 hex digits over the weights of a module."""
    state = hashlib.sha256()
    for value in module.state_dict().values():
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]
