"""Long work beside quick answers: a breath now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# Long enough to be a wait for the operating system, which then runs another thread.
BREATH_SECONDS = 0.0002


def gently(items: Iterable[T], stretch: int) -> Iterator[T]:
    """The items, with a breath after each stretch of so many.

    While one thread computes, another waits up to 5 ms for each of its turns, and an answer that reads and writes files
    takes many turns.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % stretch == 0:
            time.sleep(BREATH_SECONDS)
