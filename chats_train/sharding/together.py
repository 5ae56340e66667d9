"""An error in one process ends all of them, with its sentence: the others would wait for its part for ever."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from chats.words import shown_error

from ..support.errors import UserError

KEY = "chats/error"
POLL_SECONDS = 1.0
# How long the store may be out of reach: the process that keeps it ends first where all is well.
LOST_SECONDS = 30.0
# How long an error may take to end its own process, which may wait for its peers on the way out.
EXIT_SECONDS = 20.0
EXIT_STATUS = 2


@contextmanager
def ending_together(index: int) -> Iterator[None]:
    """While it is open, an error that leaves it in one process ends the others within seconds.

    Raises:
        UserError: with another process's error, where that is why this one fails.
    """
    watch = _Watch(index)
    watch.start()
    try:
        yield
    except BaseException as error:
        if said := watch.said():
            raise UserError(said) from error
        watch.say(error)
        raise
    finally:
        watch.stopped.set()


class _Watch(threading.Thread):
    """Looks every second whether a peer has said an error."""

    def __init__(self, index: int):
        super().__init__(name="errors of peers", daemon=True)
        from torch.distributed.distributed_c10d import _get_default_store

        self.index, self.stopped = index, threading.Event()
        # A connection of its own: the usual one may be waiting for what never comes.
        joined: Any = _get_default_store()
        self.store = joined.clone()

    def said(self) -> str | None:
        """Another process's error."""
        try:
            told = self.store.get(KEY).decode() if self.store.check([KEY]) else ""
        except RuntimeError:
            return None  # The store went with its process.
        writer, _, sentence = told.partition(" ")
        return f"process {writer}: {sentence}" if told and int(writer) != self.index else None

    def say(self, error: BaseException) -> None:
        """Tells the others, and sees to it that this process ends."""
        sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {shown_error(error)}"
        with suppress(RuntimeError):  # The store went with its process, which says why.
            self.store.compare_set(KEY, "", f"{self.index} {sentence}")
        timer = threading.Timer(EXIT_SECONDS, os._exit, (EXIT_STATUS,))
        timer.daemon = True
        timer.start()

    def run(self) -> None:
        reached = time.monotonic()
        while not self.stopped.wait(POLL_SECONDS):
            said = self.said()
            if self._is_there():
                reached = time.monotonic()
            elif time.monotonic() - reached > LOST_SECONDS:
                said = "the process that joins the others is gone"
            if said:
                print(f"error: {said}", file=sys.stderr, flush=True)
                os._exit(EXIT_STATUS)

    def _is_there(self) -> bool:
        try:
            self.store.check([KEY])
        except RuntimeError:
            return False
        return True
