"""Tensors by key in safetensors shards, each of which is there whole or not at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chats.files import replacing

from ..support.errors import UserError
from ..support.tensor_files import read_tensors

SHARD_BYTES = 256 * 2**20
# What a kill can cost at most: shards are also closed after this time.
SHARD_SECONDS = 60.0
DIGEST_CHARACTERS = 64
# A temporary file older than this is from a process that was killed; a shard takes seconds to write.
ABANDONED_SECONDS = 3600.0

Entry = dict[str, torch.Tensor]


class ShardStore:
    """Entries, each a few named tensors, by their keys.

    A shard's own header is its index: the file appears under its name only after all of it is on the disk, so whatever
    is listed is whole, several processes can add shards at once, and nothing written before a kill is lost.

    Args:
        folder: where the shards are; made when missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._paths: set[Path] = set()
        # Entries of one shard with the same parts share the value, and keys are kept as bytes: there can be millions.
        self._place_of: dict[bytes, tuple[Path, tuple[str, ...]]] = {}
        self._open: dict[Path, safe_open] = {}
        self._pending: dict[str, Entry] = {}
        self._pending_since = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Takes in what other processes have added, and removes what killed ones left half-written."""
        for path in self.folder.glob(".shard-*.tmp"):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        for path in sorted(set(self.folder.glob("shard-*.safetensors")) - self._paths):
            self._take_in(path)

    def __contains__(self, key: str) -> bool:
        return _compact(key) in self._place_of or key in self._pending

    def __len__(self) -> int:
        return len(self._place_of.keys() | map(_compact, self._pending))

    def read(self, key: str) -> Entry:
        """The entry's tensors, on the CPU.

        Raises:
            KeyError: when there is none.
        """
        if key in self._pending:
            return self._pending[key]
        path, parts = self._place_of[_compact(key)]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return {part: self._open[path].get_tensor(f"{key}.{part}") for part in parts}

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Adds entries, all of them into one shard; it is written when it is full, after a minute, and at
        :meth:`flush`."""
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending |= entries
        size = sum(tensor.nbytes for entry in self._pending.values() for tensor in entry.values())
        if size >= SHARD_BYTES or time.monotonic() - self._pending_since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last shard.

        Raises:
            UserError: when the disk is full or the folder cannot be written to.
        """
        if not self._pending:
            return
        path = self.folder / f"shard-{uuid.uuid4().hex}.safetensors"
        tensors = {
            f"{key}.{part}": tensor.contiguous()
            for key, entry in self._pending.items()
            for part, tensor in entry.items()
        }
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.folder} cannot be written to ({error}); make room, or set `cache_dir` to another disk"
            ) from error
        self._pending = {}
        self._take_in(path)

    def _take_in(self, path: Path) -> None:
        try:
            names = list(read_tensors(path))
        except UserError:
            # Damaged from outside, a copy that was cut off perhaps; its entries are made anew.
            path.unlink(missing_ok=True)
            return
        self._paths.add(path)
        parts_of: dict[str, tuple[str, ...]] = {}
        for name in names:
            key, _, part = name.partition(".")
            parts_of[key] = (*parts_of.get(key, ()), part)
        places = {parts: (path, parts) for parts in parts_of.values()}
        for key, parts in parts_of.items():
            self._place_of.setdefault(_compact(key), places[parts])


def _compact(key: str) -> bytes:
    """A key in few bytes: those that a hexadecimal one states."""
    return bytes.fromhex(key) if len(key) == DIGEST_CHARACTERS else key.encode()
