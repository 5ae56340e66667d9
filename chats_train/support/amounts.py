"""Sizes and counts as people read them."""

from __future__ import annotations

UNITS = ("B", "KB", "MB", "GB", "TB")


def bytes_text(size: float) -> str:
    """A size in decimal units, such as 6.94 GB."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    raise AssertionError("the last unit takes all sizes")


def count_text(numbers: int) -> str:
    """A count of parameters, such as 2.57 B."""
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if numbers >= limit:
            return f"{numbers / limit:.3g}{unit}"
    return str(numbers)


def counted(number: int, noun: str) -> str:
    """A number of things, such as 1 pair or 20 pairs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
