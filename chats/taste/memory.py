"""A data set's files in memory, for many threads: each sees what the disk has, and none waits for a list of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from .state import State


class Memory:
    """What is known of a folder.

    Attributes:
        state: what the files say; it is changed under ``lock`` alone.
        lock: the last lock to be taken, and held for short only.
    """

    def __init__(self, folder: Path) -> None:
        self.state = State(folder)
        self.lock = threading.RLock()
        self._lister = threading.Lock()
        self._at_once = 0

    @contextlib.contextmanager
    def read(self, exact: bool = False) -> Iterator[State]:
        """What the disk says now, under the lock.

        Args:
            exact: also which pictures others put into the folder, or removed, without a line in a log. Else that is
                known from the next exact look on.
        """
        with self.lock:
            if not self._at_once:
                self.state.refresh()
            if self._at_once or not self._lacks_list(exact):
                yield self.state
                return
        self._list(exact)
        with self.lock:
            self.state.refresh()
            yield self.state

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, which writes nothing, all reads are of one look at the disk."""
        with self.read():
            self._at_once += 1
            try:
                yield
            finally:
                self._at_once -= 1

    def _lacks_list(self, exact: bool) -> bool:
        return self.state.pictures.unlisted() or (exact and self.state.pictures.unsure)

    def _list(self, exact: bool) -> None:
        """Lists the folder of pictures, while others are answered."""
        pictures = self.state.pictures
        with self._lister:
            with self.lock:
                if not self._lacks_list(exact):
                    return  # another thread did it meanwhile
                asked = pictures.begin()
            listing = pictures.read_folder(asked)
            with self.lock:
                pictures.take(listing)
                self.state.settle()
