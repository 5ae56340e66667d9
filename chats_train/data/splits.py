"""Splits of a data set that lies in files: their names say which they are of."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from pathlib import PurePosixPath

from chats.words import shown

from ..support.errors import UserError
from .folder_tree import LeftOut
from .pairs import LONGEST_DETAIL

# As the hub's own library reads names (https://huggingface.co/docs/datasets/repository_structure).
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
# What the hub's library writes: train-00000-of-00001.parquet.
PART = re.compile(r"(.+)-\d{5}-of-\d{5}")
ALL = "all"


def wanted_splits(setting: str) -> frozenset[str]:
    """The splits that ``data.split`` names.

    Raises:
        UserError: when it is a slice.
    """
    if "[" in setting:
        raise UserError(
            f"`data.split` is {shown(setting)}; slices are for data sets of the hub, so name whole splits and cut with "
            "`data.max_pairs`"
        )
    return frozenset(SPLIT_OF.get(part.lower(), part) for part in setting.split("+"))


def of_splits(names: Sequence[str], wanted: Set[str], left_out: LeftOut) -> tuple[list[str], list[str]]:
    """The files of some splits, and remarks on what was read. A file whose name states no split is read too.

    Args:
        names: of the files, relative and with slashes.
        wanted: the splits, or ``all``.
        left_out: gets the files of other splits.

    Raises:
        UserError: when all of them are of other splits.
    """
    if ALL in wanted:
        return list(names), [f"read: all {len(names)} files, whatever split they are of"]
    # Parts of any name, such as part-00000-of-00010, state a split only where it is asked for.
    by_part = any(_part(name) in wanted for name in names)
    stated = {name: {found for found in (split_of(name), _part(name) if by_part else None) if found} for name in names}
    taken = [name for name in names if not stated[name] or stated[name] & wanted]
    setting = shown(" + ".join(sorted(wanted)))
    if names and not taken:
        others = ", ".join(sorted(set().union(*stated.values())))
        raise UserError(
            f"`data.split` is {setting}, and the files are of {shown(others)}; set it to one of these, or to {ALL}"
        )
    for name in names:
        if stated[name] and not stated[name] & wanted:
            left_out.add(f"files of other splits than {setting}", name)
    silent = [name for name in names if not stated[name]]
    if len(silent) < len(names):
        and_silent = f"; {len(silent)} of them state none, such as {shown(silent[0], LONGEST_DETAIL)}" if silent else ""
        return taken, [f"read: {len(taken)} of {len(names)} files, for the split {setting}{and_silent}"]
    return taken, [f"read: all {len(names)} files, as none states a split by its name"] if len(names) > 1 else []


def split_of(name: str) -> str | None:
    """The split that a name states by a word: the file's own name first, then the folder next to it."""
    path = PurePosixPath(name)
    for part in (_part(name) or path.stem, *reversed(path.parts[:-1])):
        words = re.findall("[a-z]+", part.lower())
        # A model's name may end in dev.
        found = {SPLIT_OF[word] for word in words if word in SPLIT_OF and (word != "dev" or words == ["dev"])}
        if len(found) == 1:
            return found.pop()
    return None


def _part(name: str) -> str | None:
    match = PART.match(PurePosixPath(name).name)
    return match[1] if match else None
