"""A lock that the operating system holds for a process and takes back when it ends, also when it is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a disk answers that has no locks: some network file systems, some containers.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether the lock on a file was free; it is then held until the block ends. A disk that has no locks counts as
    free.

    The file is made, and stays: it is empty, and removing it could take the lock from under another process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _is_taken(handle)
    finally:
        os.close(handle)


def _is_taken(handle: int) -> bool:
    try:
        _take(handle)
    except OSError as error:
        return error.errno in WITHOUT_LOCKS
    return True


if os.name == "nt":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
