"""A run on the disk: one safetensors file with all that the next step depends on, whole or as it was before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...chats.files import replacing
from ...chats.locks import locked
from ...chats.taste.disk import sweep
from ...chats.words import shown, shown_error
from .writing import writing

VERSION = 1
FILE, LOCK = "state.safetensors", ".lock"
# What safetensors itself writes to, and leaves behind when it is killed.
SAFETENSORS_OWN = ".tmp*"


class RunError(ValueError):
    """A run that cannot go on as it is asked to; the sentence says the way out."""


@dataclass(frozen=True)
class SavedRun:
    """A run after some steps.

    Attributes:
        facts: the settings and contents that it was begun with, by name; they hold for all of it.
        history: a row for each step, its means by name; rows of measured steps have `held_out.<name>` too.
        tensors: of :meth:`.steps.Steps.state`.
    """

    step: int
    facts: dict[str, Any]
    history: list[dict[str, float]]
    tensors: dict[str, Tensor]


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps others out of a run while it is trained: two would write over each other's steps.

    Raises:
        RunError: where another ComfyUI, or another of this one's queue items, is at it now.
        NotWritten: where the disk does not take the lock.
    """
    with ExitStack() as held:
        with writing(folder):
            free = held.enter_context(locked(folder / LOCK))
        if not free:
            raise RunError(
                f"`name` is {folder.name}, and that run is being trained now, by another ComfyUI or queue item; wait "
                "for its end, stop it, or choose another `name`"
            )
        yield


def save_run(folder: Path, run: SavedRun) -> None:
    """Replaces what ``folder`` holds of the run.

    Raises:
        NotWritten: when the disk does not take it; what was there before stays.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in run.tensors.items()}
    described = {"version": VERSION, "step": run.step, "facts": run.facts, "history": run.history}
    header = {"run": json.dumps(described), "sha256": _digest(tensors)}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, FILE)
        for file in folder.glob(SAFETENSORS_OWN):
            file.unlink(missing_ok=True)
        with replacing(folder / FILE) as temporary:
            save_file(tensors, temporary, metadata=header)


def load_run(folder: Path) -> SavedRun | None:
    """What is there of a run; None where nothing is.

    Raises:
        RunError: where the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    way_out = "move it elsewhere, or choose another `name`"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        described = json.loads(header["run"])
        if described["version"] != VERSION:
            raise RunError(f"{path} is of version {shown(described['version'])}, this pack reads {VERSION}; {way_out}")
        if header["sha256"] != _digest(tensors):
            raise RunError(f"{path} is not as it was written; {way_out}")
        return SavedRun(int(described["step"]), dict(described["facts"]), list(described["history"]), tensors)
    except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({shown_error(error)}); {way_out}") from error


def require_same(saved: SavedRun, facts: dict[str, Any], name: str, words: dict[str, str]) -> None:
    """Refuses to go on with other settings than a run was begun with.

    Args:
        facts: of now.
        words: what to say of a fact that is no setting, by its name.

    Raises:
        RunError: naming what differs.
    """
    for key, value in facts.items():
        before = saved.facts.get(key)
        if before == value:
            continue
        what = words.get(key, f"`{key}` is {shown(value)}, and it was begun with {shown(before)}")
        raise RunError(
            f"the run `{name}` is at step {saved.step} and cannot go on: {what}; bring that back, or choose another "
            "`name`"
        )


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()
