"""What others wrote, as it can stand in a sentence."""

from __future__ import annotations

import reprlib

LONGEST = 100
# More bits than any setting has; Python refuses to write far longer numbers in decimals.
LONGEST_BITS = 256

_bounded = reprlib.Repr()
_bounded.maxlevel = 2
_bounded.maxstring = LONGEST


def shown(value: object, longest: int = LONGEST) -> str:
    """A value on one line: long ones cut, what is not printable as its escape (a terminal obeys some characters), true
    and false as YAML writes them."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > LONGEST_BITS:
        text = f"{value:#x}"
    elif isinstance(value, list | tuple | dict | set | bytes):
        # Bounded in depth as well: nested ones may be far longer than memory.
        text = _bounded.repr(value)
    else:
        text = str(value)
    # Cut before and after: an escape is longer than its character.
    head = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:longest]
    )
    return text if head == text else f"{head[:longest]}…"


def shown_error(error: BaseException, longest: int = 3 * LONGEST) -> str:
    """What a library says of a file, on one line."""
    return shown(" ".join(str(error).split()) or type(error).__name__, longest)
