"""What was seen on a walk through folders, as one digest: an equal one means that nothing in them changed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Sequence

from .pairs import Mark
from .verdicts import is_settled

FILES_AT_ONCE = 8192


class FolderState:
    """Names of all files, and of those that matter also size, time of modification and time of change.

    Args:
        facts: what else the pairs follow from, as JSON takes it.
        matters: whether more than its name matters of a file.
    """

    def __init__(self, facts: Sequence[object], matters: Callable[[str], bool] = lambda name: True):
        self._digest = hashlib.sha256(json.dumps(facts).encode())
        self._matters = matters
        self._began, self._newest = time.time_ns(), 0

    def mark(self, entry: os.DirEntry[str]) -> bytes:
        """Of a file, links followed; empty where its name is all."""
        if not self._matters(entry.name):
            return b""
        try:
            status = entry.stat()
        except OSError:
            return b"-"  # A link to nothing, say.
        self._newest = max(self._newest, status.st_mtime_ns, status.st_ctime_ns)
        kind = stat.S_IFMT(status.st_mode)
        return struct.pack("<Qqqq", kind, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def add(self, folder: str, files: Sequence[tuple[str, bytes]]) -> None:
        """The files of one folder with their marks, in the order of their names."""
        self._digest.update(f"\0{folder}\0{len(files)}\0".encode("utf-8", "surrogatepass"))
        for start in range(0, len(files), FILES_AT_ONCE):
            told = files[start : start + FILES_AT_ONCE]
            names = "\0".join([name for name, _ in told]).encode("utf-8", "surrogatepass")
            marks = b"".join([mark.ljust(32) for _, mark in told])
            self._digest.update(names + b"\0" + marks)

    def digest(self, remarks: Iterable[str]) -> str | None:
        """Of all that was seen, and of remarks on what was left out; None where a file was written so short a time ago
        that its times do not tell what is written next."""
        if not is_settled(Mark("", 0, self._newest, self._newest), self._began):
            return None
        digest = self._digest.copy()
        digest.update(json.dumps(list(remarks)).encode())
        return digest.hexdigest()
