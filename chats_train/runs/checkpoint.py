"""Checkpoints: folders that are whole or not there, from which a run goes on as if it had never stopped.

A checkpoint is safetensors and JSON: a file for each group of tensors, or, where those lie in shards, a folder with a
file of each process. It is written to a hidden folder, synced, and renamed; its manifest, written last, has every
file's size and SHA-256. Nothing is pickled, and a file is proven before it is read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from chats.files import sync, usual_mode

from ..sharding.files import Like, all_whole, read_parts, take_parts
from ..support.digests import file_digest
from ..support.errors import UserError

CHECKPOINT_VERSION = 1
MANIFEST, STATE_FILE = "manifest.json", "state.json"
PREFIX = "step-"
Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class State:
    """All that a run needs to go on: tensors by name in groups (members, optimizer, averages), and what is no
    tensor."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


@dataclass(frozen=True)
class Purpose:
    """What a checkpoint is opened for.

    Attributes:
        whole: whether all of it is to be right, or only what is sampled and exported.
        way_out: of one that cannot be used, as the end of a sentence.
    """

    whole: bool
    way_out: str


RESUME = Purpose(True, "set `resume_from_checkpoint` to another, or to null")
READ = Purpose(False, "name another with `--checkpoint`, or leave that out for the newest whole one")


class NotWhole(UserError):
    """A checkpoint that cannot be used."""


class Checkpoint:
    """A checkpoint whose every file has the size that the manifest states. A file's bytes are proven once, at the
    latest when it is read.

    Raises:
        NotWhole: from whatever meets a file that is not as it was written.
    """

    def __init__(self, path: Path, purpose: Purpose):
        self.path, self.purpose = path, purpose
        self._proven: set[str] = set()
        self._files = self._manifest()
        for name, (size, _) in self._files.items():
            self._require(name, _size, size)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What is no tensor, the `step` among it."""
        self._prove(STATE_FILE)
        return json.loads((self.path / STATE_FILE).read_text(encoding="utf-8"))

    def tensors(self, group: str, like: Like = all_whole) -> dict[str, Tensor]:
        """A group of :class:`State`, however it was written: each tensor whole, or what of it is this process's."""
        files = self._files_of(group)
        for name in files:
            self._prove(name)
        if files == [_tensor_file(group)]:
            return take_parts(load_file(self.path / files[0]), like)
        return read_parts(self.path / group, like)

    def weights(self, like: Like = all_whole) -> dict[str, Tensor]:
        """What is sampled and exported: the averages where they are kept, else the members themselves."""
        return self.tensors(self._weights, like)

    @property
    def weights_sha256(self) -> str:
        """Of the file that :meth:`weights` reads, or of its files' digests."""
        digests = [self._files[name][1] for name in self._files_of(self._weights)]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def prove(self) -> None:
        """Holds every file that the purpose needs against the manifest."""
        for name in self._files if self.purpose.whole else (STATE_FILE, *self._files_of(self._weights)):
            self._prove(name)

    @property
    def _weights(self) -> str:
        return "averages" if any(_is_of("averages", name) for name in self._files) else "members"

    def _files_of(self, group: str) -> list[str]:
        """One file, or one for each process that wrote a part."""
        return [name for name in self._files if _is_of(group, name)] or [_tensor_file(group)]

    def _manifest(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 by file."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            if manifest["version"] == CHECKPOINT_VERSION:
                return {name: (each["bytes"], each["sha256"]) for name, each in dict(manifest["files"]).items()}
        except OSError as error:
            if not self.path.exists():
                raise self._not_whole("there is no such folder") from error
            raise self._unreadable(MANIFEST, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_whole(f"its {MANIFEST} is damaged") from error
        raise self._not_whole(f"its version is {manifest['version']}, this trainer reads {CHECKPOINT_VERSION}")

    def _prove(self, name: str) -> None:
        if name in self._proven:
            return
        if name not in self._files:
            raise self._not_whole(f"{name} is missing")
        self._require(name, file_digest, self._files[name][1])
        self._proven.add(name)

    def _require(self, name: str, measure: Callable[[Path], object], expected: object) -> None:
        try:
            found = measure(self.path / name)
        except OSError as error:
            raise self._unreadable(name, error) from error
        if found != expected:
            raise self._not_whole(f"{name} is not as it was written")

    def _unreadable(self, name: str, error: OSError) -> NotWhole:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return self._not_whole(f"{name} is missing" if missing else f"{name} cannot be read ({error.strerror})")

    def _not_whole(self, reason: str) -> NotWhole:
        return NotWhole(f"the checkpoint {self.path} cannot be used: {reason}; {self.purpose.way_out}")


def open_checkpoint(folder: Path, wanted: str, purpose: Purpose) -> Checkpoint | None:
    """A checkpoint, proven as far as its purpose needs.

    Args:
        folder: a run's checkpoints.
        wanted: `latest` for the newest that is whole (None where there is none), else a checkpoint's folder.

    Raises:
        UserError: when the one that is named cannot be used.
    """
    if wanted != "latest":
        named = Checkpoint(Path(wanted).expanduser(), purpose)
        named.prove()
        return named
    for path in reversed(_checkpoints(folder)):
        try:
            checkpoint = Checkpoint(path, purpose)
            checkpoint.prove()
        except NotWhole as error:
            reason, _, _ = str(error).rpartition(f"; {purpose.way_out}")
            print(f"note: {reason}; an older one is looked for", file=sys.stderr)
        else:
            return checkpoint
    return None


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's checkpoints hold one that could be lost; only sizes are looked at."""
    for path in _checkpoints(folder):
        with suppress(NotWhole):
            Checkpoint(path, RESUME)
            return True
    return False


def save_checkpoint(folder: Path, state: State, keep: int | None) -> Path:
    """Writes a checkpoint below ``folder`` and removes the oldest beyond ``keep``, never one that may be the last good
    one.

    Returns:
        the checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{state.step:08d}"
    if is_whole(target):
        return target
    temporary = folder / f".{target.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        for group, tensors in state.tensors.items():
            path = temporary / _tensor_file(group)
            with usual_mode(path):
                save_file(_saved(tensors), path)
        publish(temporary, target, state, described(temporary, sorted(temporary.iterdir())))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    rotate(folder, keep)
    return target


def is_whole(target: Path) -> bool:
    """Whether a checkpoint is there already: of the same run, which is deterministic, so there is nothing to write
    anew."""
    with suppress(NotWhole):
        Checkpoint(target, RESUME).prove()
        return True
    return False


def described(folder: Path, written: Iterable[Path]) -> Files:
    """What a manifest says of files below a folder, which are on the disk then."""
    for path in written:
        sync(path)
    return {
        path.relative_to(folder).as_posix(): {"bytes": _size(path), "sha256": file_digest(path)} for path in written
    }


def publish(temporary: Path, target: Path, state: State, tensor_files: Files) -> None:
    """Completes a checkpoint whose tensors are written, and puts it in its place."""
    (temporary / STATE_FILE).write_text(json.dumps({"step": state.step, **state.values}), encoding="utf-8")
    files = {**tensor_files, **described(temporary, [temporary / STATE_FILE])}
    (temporary / MANIFEST).write_text(json.dumps({"version": CHECKPOINT_VERSION, "files": files}), encoding="utf-8")
    for path in (temporary / MANIFEST, *(path for path in temporary.iterdir() if path.is_dir()), temporary):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    sync(target.parent)


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


def rotate(folder: Path, keep: int | None) -> None:
    """Removes the oldest beyond ``keep`` (the newest, just written and synced, is whole), and what a kill left
    half-written."""
    for path in folder.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _checkpoints(folder)[: -keep if keep else 0]:
        # Renamed first: a kill while it is being removed must not leave half of one under a checkpoint's name.
        doomed = folder / f".{path.name}.{uuid.uuid4().hex}.tmp"
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _tensor_file(group: str) -> str:
    return f"{group}.safetensors"


def _is_of(group: str, name: str) -> bool:
    """Whether a file holds a group, or a process's part of it."""
    return name == _tensor_file(group) or name.startswith(f"{group}/")


def _size(path: Path) -> int:
    return path.stat().st_size
