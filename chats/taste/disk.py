"""Writing into a data set's folder: one process at a time, and what the disk says as a sentence."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from ..locks import locked
from ..words import shown_error
from .names import NotWritten
from .pace import gently

LOCK_SECONDS = 20
# How many names of a folder are read between two breaths.
STRETCH = 512


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Alone among the processes on a file; a disk without locks counts as free.

    Raises:
        NotWritten: where another process holds it for LOCK_SECONDS.
        OSError: where the file cannot be made.
    """
    with locked(path, LOCK_SECONDS) as free:
        if not free:
            raise NotWritten(
                "heldLock",
                "{file} was held by another process for {seconds} s; try again",
                file=str(path),
                seconds=LOCK_SECONDS,
            )
        yield


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Within the block, what the disk refuses is an error with a sentence.

    Raises:
        NotWritten: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise NotWritten(
            "notKept",
            "nothing was kept, since the disk does not take it ({reason}); make room or allow writing in {folder}, "
            "then try again",
            reason=shown_error(error),
            folder=str(folder),
        ) from error


def sweep(folder: Path, names: str) -> None:
    """Removes what killed processes left half-written of the files with such names; their lock is held."""
    hidden = [file.name for file in gently(os.scandir(folder), STRETCH) if file.name.startswith(".")]
    for name in fnmatch.filter(hidden, f".{names}.*.tmp"):
        (folder / name).unlink(missing_ok=True)
