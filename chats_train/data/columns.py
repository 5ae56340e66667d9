"""Columns of tables, and keys of metadata.jsonl: how they are found, and what is said of one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from chats.words import shown

from ..support.errors import UserError

# What others call it, as far as its name is not like ours.
OTHER_NAMES = {
    "chosen": ("chosen", "image_chosen", "chosen_image", "preferred", "winner", "win", "image_w"),
    "rejected": ("rejected", "image_rejected", "rejected_image", "dispreferred", "loser", "lose", "image_l"),
    "prompt": ("prompt", "text", "caption", "captions", "description", "instruction"),
}


def missing(place: str, setting: str, wanted: str, present: Collection[str]) -> UserError:
    """What to raise where no row has a column.

    Args:
        place: the sentence's beginning, such as "the data has no column".
        setting: which of ``data.columns`` names it.
        wanted: the name that was looked for.
        present: the names that are there.
    """
    near = [name for other in OTHER_NAMES[setting] for name in present if name.lower() == other]
    near += difflib.get_close_matches(wanted, present, n=1)
    hint = f" (`{shown(near[0])}`?)" if near else ""
    return UserError(
        f"{place} `{shown(wanted)}`, only {shown(', '.join(present) or 'none', 300)}; "
        f"set `data.columns.{setting}` to the one with the {setting}{hint}"
    )


def single(cell: Any) -> Any:
    """What a list of one element holds; anything else as it is."""
    return cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
