"""Checkpoints: folders that are whole or not there, from which a run goes on as if it had never stopped.

A checkpoint is safetensors and JSON, written to a hidden folder, synced, and renamed; its manifest, written last, has
every file's size and SHA-256. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from chats.files import sync

from ..support.errors import UserError

CHECKPOINT_VERSION = 1
MANIFEST = "manifest.json"
PREFIX = "step-"
# The way out of a checkpoint that cannot be used: for a run that goes on from it, and for a command that only reads it.
RESUME_FROM_ANOTHER = "set `resume_from_checkpoint` to another, or to null"
NAME_ANOTHER = "name another with `--checkpoint`, or leave that out for the newest whole one"


@dataclass(frozen=True)
class State:
    """All that a run needs to go on: tensors by name in groups (weights, optimizer, averages), and what is no
    tensor."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


def save_checkpoint(folder: Path, state: State, keep: int | None) -> Path:
    """Writes a checkpoint below ``folder`` and removes the oldest beyond ``keep``, never one that may be the last good
    one.

    Returns:
        the checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{state.step:08d}"
    if target.exists() and what_is_wrong(target) is None:
        return target  # of the same run, which is deterministic: there is nothing to write anew
    temporary = folder / f".{target.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        for group, tensors in state.tensors.items():
            save_file(_saved(tensors), temporary / f"{group}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": state.step, **state.values}), encoding="utf-8")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(temporary.iterdir())
        }
        for name in files:
            sync(temporary / name)
        (temporary / MANIFEST).write_text(json.dumps({"version": CHECKPOINT_VERSION, "files": files}), encoding="utf-8")
        sync(temporary / MANIFEST)
        sync(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _rotate(folder, keep)
    return target


def load_checkpoint(path: Path, way_out: str = RESUME_FROM_ANOTHER) -> State:
    """A checkpoint whose every file is as its manifest says; else the error ends in ``way_out``.

    Raises:
        UserError: when it is not whole.
    """
    if reason := what_is_wrong(path):
        raise UserError(f"the checkpoint {path} cannot be used: {reason}; {way_out}")
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return State(values.pop("step"), tensors, values)


def find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` names: `latest` is the newest whole one (None where there is none),
    else a folder."""
    if wanted != "latest":
        return Path(wanted).expanduser()
    return next((path for path in reversed(_checkpoints(folder)) if what_is_wrong(path) is None), None)


def what_is_wrong(path: Path) -> str | None:
    """Why a checkpoint is not whole, or None when it is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != CHECKPOINT_VERSION:
            return f"its version is {manifest['version']}, this trainer reads {CHECKPOINT_VERSION}"
        for name, expected in manifest["files"].items():
            if (path / name).stat().st_size != expected["bytes"] or _digest(path / name) != expected["sha256"]:
                return f"{name} is not as it was written"
    except OSError as error:
        return f"{Path(error.filename or path).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    return None


def flatten_optimizer(state_dict: dict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by `<parameter>.<name>`, and what is no tensor, in JSON's terms.

    bitsandbytes nests a part of its state, whose names are then `<parameter>.<name>.<name>`.
    """
    tensors, values = {}, {}
    for key, value in _leaves(state_dict["state"]):
        (tensors if isinstance(value, Tensor) else values)[key] = value
    rest = {name: value for name, value in state_dict.items() if name not in ("state", "param_groups")}
    return tensors, {"values": values, "rest": rest}


def unflatten_optimizer(tensors: dict[str, Tensor], values: dict[str, Any], param_groups: list[dict]) -> dict:
    """The inverse of :func:`flatten_optimizer`, for an optimizer whose own ``param_groups`` hold (rates are set at each
    step)."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["values"]}.items():
        index, *path, name = key.split(".")
        entries = state.setdefault(int(index), {})
        for part in path:
            entries = entries.setdefault(part, {})
        entries[name] = value
    return {"state": state, "param_groups": param_groups, **values["rest"]}


def _leaves(nested: dict) -> Iterator[tuple[str, Any]]:
    """What is in dicts of dicts, each by its path, joined with dots."""
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{path}", leaf) for path, leaf in _leaves(value))
        else:
            yield str(name), value


def _saved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, and none twice, as the tables that 8-bit states share are."""
    seen: set[int] = set()
    saved = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        saved[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return saved


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def _rotate(folder: Path, keep: int | None) -> None:
    """Removes the oldest beyond ``keep`` (the newest, just written and synced, is whole), and what a kill left
    half-written."""
    for path in folder.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _checkpoints(folder)[: -keep if keep else 0]:
        # Renamed first: a kill while it is being removed must not leave half of one under a checkpoint's name.
        doomed = folder / f".{path.name}.{uuid.uuid4().hex}.tmp"
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
