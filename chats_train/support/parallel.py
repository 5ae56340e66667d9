"""Work in threads, in order and never far ahead: for reading and decoding images, which Pillow does outside of Python's
lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 16


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[Result]:
    """``map`` in threads: results in the order of the items, at most two per thread waiting in memory."""
    workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = deque(pool.submit(function, item) for item in islice(remaining, 2 * workers))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
