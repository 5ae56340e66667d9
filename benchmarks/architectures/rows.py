"""The rows of the table, each with what it compares; made when it is its turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .films import FILMS
from .measure import Case
from .others import OTHERS
from .packs import PACKS
from .pictures import PICTURES

ROWS: dict[str, Callable[[], Case]] = {
    **{name: partial(Case, network) for name, network in {**PICTURES, **FILMS}.items()},
    **OTHERS,
    **PACKS,
}
