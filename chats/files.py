"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; on leaving it is synced and renamed over ``path``, after an error
    removed. It has the mode of any new file.

    Whatever kills the process, ``path`` is either as it was or the whole new file; a hidden ``.<name>.<random>.tmp``
    may stay behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with usual_mode(temporary):
            yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """Gives the file that is written to ``path`` the mode of any new file there, whatever writes it: safetensors' are
    for their owner alone."""
    # A file shows it: the umask itself cannot be read without setting it, and a folder may have a rule of its own.
    path.touch(exist_ok=False)
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    yield
    path.chmod(mode)


def sync(path: Path) -> None:
    """Puts a file's bytes, or a folder's names, on the disk itself."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle of a folder to sync; its renames are journalled.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file (UTF-8) whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
