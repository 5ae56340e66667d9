"""A lock that the operating system holds for a process and takes back when it ends, also when it is killed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# What a disk answers that has no locks: some network file systems, some containers.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
POLL_SECONDS = 0.002


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[bool]:
    """Whether the lock on a file was free, or became so within some seconds; it is then held until the block ends.

    A disk that has no locks counts as free. The file is made where it is missing, and is empty.

    Raises:
        OSError: where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    except NotImplementedError:
        pass  # How older versions of the package say the same.
    try:
        yield True
    finally:
        lock.release()
