"""Processes that share work without going in step: each takes what is next, the main one hears of all of it, and where
one fails, all end with its sentence.

They talk through the store in which torch's processes met, not in collective calls: such a call waits for a process
that has failed until the launcher ends it, and on a GPU ten minutes at most for one that is only slow.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from chats.pair import PairError
from chats.taste.names import TasteError
from chats.words import shown_error

from ..support.errors import UserError
from .processes import Processes

Item = TypeVar("Item")
PAUSE_SECONDS = 0.02
# How long one that failed stays for the others to hear of it; they listen between two pieces of work.
LINGER_SECONDS = 30.0
# Every meeting of a process has keys of its own; all processes have them in the same order.
_meetings = itertools.count()


class Peers:
    """The processes of one command, as one of them sees them.

    Args:
        index: of this process; 0 is the main one.
        count: of all.
        store: what several talk through, and nothing else.
    """

    def __init__(self, index: int = 0, count: int = 1, store: torch.distributed.Store | None = None):
        self.index, self.count = index, count
        self._heard = False
        self._names = itertools.count()
        if count > 1:
            assert store is not None
            self._store = store

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def check(self) -> None:
        """To be asked between pieces of work.

        Raises:
            UserError: when another process has failed, with its sentence; so do all that follow.
            KeyboardInterrupt: when another was stopped.
        """
        if self.count == 1 or not self._store.check(["failed"]):
            return
        told = json.loads(self._store.get("failed"))
        self._hear()
        if told["stopped"]:
            raise KeyboardInterrupt
        raise UserError(told["sentence"])

    def wait(self) -> None:
        """Until all are here."""
        if self.count == 1:
            return
        name = self._name()
        self._store.add(name, 1)
        while self._store.add(name, 0) < self.count:
            self._pause()

    def told(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, in all of them: anything that JSON can say."""
        if self.count == 1:
            return make()
        name = self._name()
        if self.is_main:
            made = make()
            self._store.set(name, json.dumps(made))
            return made
        while not self._store.check([name]):
            self._pause()
        return json.loads(self._store.get(name))

    def results(self, function: Callable[[Item], Any], items: Sequence[Item]) -> Iterator[Any]:
        """What ``function`` makes of each item, in their order, in the main process; the others do their part of the
        work and get nothing. All must go through it to its end.

        Args:
            function: its results are anything that JSON can say.
            items: the same in all processes; each is done once, by the process that is free for it.
        """
        if self.count == 1:
            yield from map(function, items)
            return
        name = self._name()
        places = self._places(name, len(items))
        if not self.is_main:
            for place in places:
                self._store.set(f"{name}/{place}", json.dumps(function(items[place])))
            return
        own: dict[int, Any] = {}
        for place in range(len(items)):
            key = f"{name}/{place}"
            while place not in own and not self._store.check([key]):
                if (mine := next(places, None)) is None:
                    self._pause()
                else:
                    own[mine] = function(items[mine])
            if place in own:
                yield own.pop(place)
            else:
                yield json.loads(self._store.get(key))
                self._store.delete_key(key)

    def tell_of(self, error: BaseException) -> None:
        """Ends the others, with this error's sentence; waits until they know, half a minute at most."""
        if self.count == 1 or self._heard:
            return
        told = {"stopped": isinstance(error, KeyboardInterrupt), "sentence": self._sentence(error)}
        with suppress(torch.distributed.DistError):  # when the main process has heard, or was killed, and has ended
            self._store.compare_set("failed", "", json.dumps(told))
            self._hear()
            until = time.monotonic() + LINGER_SECONDS
            while self._store.add("heard", 0) < self.count and time.monotonic() < until:
                time.sleep(PAUSE_SECONDS)

    def part(self) -> None:
        """The main process leaves last: the store may live in it."""
        self.wait()
        if self.count > 1:
            self._store.add("left", 1)
            while self.is_main and self._store.add("left", 0) < self.count:
                self._pause()

    def _places(self, name: str, total: int) -> Iterator[int]:
        """What is next, each for one process."""
        while (place := self._store.add(f"{name}/taken", 1) - 1) < total:
            yield place
            self.check()

    def _name(self) -> str:
        """A new name, the same in all processes."""
        return str(next(self._names))

    def _pause(self) -> None:
        self.check()
        time.sleep(PAUSE_SECONDS)

    def _hear(self) -> None:
        self._heard = True
        self._store.add("heard", 1)

    def _sentence(self, error: BaseException) -> str:
        if isinstance(error, UserError | PairError | TasteError):
            return str(error)
        return f"process {self.index} of {self.count} failed ({shown_error(error)}); mend that and start again"


@contextmanager
def peers_of(processes: Processes) -> Iterator[Peers]:
    """This process's peers. An error that leaves the block ends all of them.

    Raises:
        UserError: when another process has failed, with its sentence, or is not there any more.
    """
    store = None
    if processes.count > 1:
        # torch has no public name for it, but every way to join processes makes one.
        joined = torch.distributed.distributed_c10d._get_default_store()
        store = torch.distributed.PrefixStore(f"chats/{next(_meetings)}", joined)
    peers = Peers(processes.index, processes.count, store)
    try:
        yield peers
        peers.part()
    except torch.distributed.DistError as error:
        raise UserError("the main process has ended; start again, and what was finished is taken over") from error
    except BaseException as error:
        peers.tell_of(error)
        raise
