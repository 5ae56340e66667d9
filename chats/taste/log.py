"""A file of JSON lines that is only ever appended to, by several processes, and read only as far as it is new."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ..files import sync

# How much before the new bytes is compared with what was read, so that a file that was cut and grew again is noticed.
TAIL_BYTES = 512


class Log:
    """One file of JSON objects, one a line.

    A line is whole when its end is there: a kill or a full disk can leave a beginning of one, which the next line
    that is appended closes. Such lines, and any that are no JSON object, are skipped and counted in ``skipped``.

    Attributes:
        path: the file; it need not be there.
        skipped: how many lines were no JSON objects, an unfinished one at the end included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._seen: tuple[int, int, int] | None = None
        self._offset, self._tail, self._bad, self._unfinished = 0, b"", 0, False

    @property
    def skipped(self) -> int:
        return self._bad + self._unfinished

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """What is new: whether the file is another one than before (it was shortened, replaced or removed), so that
        what was read no longer counts; and the new rows, which then are all."""
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            anew = self._seen is not None
            self._forget()
            return anew, []
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen == self._seen:
            return False, []
        with self.path.open("rb") as file:
            anew = not self._continues(file.fileno(), seen)
            if anew:
                anew = self._seen is not None
                self._forget()
            file.seek(self._offset)
            rows = self._rows(file.read())
        self._seen = seen
        return anew, rows

    def _continues(self, handle: int, seen: tuple[int, int, int]) -> bool:
        """Whether the file begins with what was read of it."""
        if self._seen is None or seen[0] != self._seen[0] or seen[1] < self._offset:
            return False
        os.lseek(handle, self._offset - len(self._tail), os.SEEK_SET)
        return os.read(handle, len(self._tail)) == self._tail

    def _rows(self, data: bytes) -> list[dict[str, Any]]:
        end = data.rfind(b"\n") + 1
        whole = data[:end]
        self._offset += end
        self._tail = (self._tail + whole)[-TAIL_BYTES:]
        self._unfinished = end < len(data)
        lines = [line for line in whole.split(b"\n") if line.strip()]
        rows = [row for row in map(_object, lines) if row is not None]
        self._bad += len(lines) - len(rows)
        return rows

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Puts rows on the disk itself, in one write; the caller holds the lock of the folder.

        Raises:
            OSError: when the disk does not take them; the file is then as it was.
        """
        data = b"".join(_line(row) for row in rows)
        binary = getattr(os, "O_BINARY", 0)
        new = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | binary, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size:
                os.lseek(handle, size - 1, os.SEEK_SET)
                if os.read(handle, 1) != b"\n":
                    data = b"\n" + data
            try:
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
        if new:
            sync(self.path.parent)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        row = _decoder.decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_no_number)
