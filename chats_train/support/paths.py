"""Paths as people write them: `~`, `$HOME` and `${VAR}` filled in, and what no file system takes refused."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from chats.words import shown

from .errors import UserError

VARIABLE = re.compile(r"\$(?:\{([^}]*)\}?|([A-Za-z_][A-Za-z0-9_]*))")
# What YAML's double quotes make of a backslash and a letter: "C:\temp" holds a tab, "C:\Lora" a separator of lines, and
# "C:\_old" a space that does not break.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|(?<=:)\xa0")
# What `chats.files.replacing` adds to a name while the file is being written.
TEMPORARY_CHARACTERS = len("..tmp") + 1 + 32
USUAL_LONGEST_NAME, USUAL_LONGEST_PATH = 255, 4096
# What a file system counts names in.
UNITS = "characters" if os.name == "nt" else "bytes"


class PathError(UserError):
    """A path that cannot be used; the message says why and the way out, and goes on from the path's name and value."""


def expanded(text: str) -> str:
    """A path with `~` and variables of the environment filled in; a hub id or a plain path stays as it is.

    Raises:
        PathError: for a variable or a user that is not there, and for a character that no path should hold.
    """
    if CONTROL.search(text):
        raise PathError(
            "which holds a control character, as double quotes make of a backslash and a letter; put the path in "
            "single quotes"
        )
    return filled_in(text)


def filled_in(text: str) -> str:
    """:func:`expanded` for a path that no YAML was between.

    Raises:
        PathError: for a variable or a user that is not there.
    """
    filled = VARIABLE.sub(_value, text)
    path = os.path.expanduser(filled)
    if filled.startswith("~") and path == filled:
        raise PathError("which begins with `~`, and there is no such user; write the path out")
    return path


def fill_in_paths(args: argparse.Namespace) -> None:
    """`~` and variables in a command's paths: shells leave some alone, such as `--output=~/pairs`.

    Raises:
        UserError: for a variable or a user that is not there.
    """
    for option, value in vars(args).items():
        several = isinstance(value, list)
        filled = [_filled_in_option(option, item) for item in (value if several else [value])]
        setattr(args, option, filled if several else filled[0])


def _filled_in_option(option: str, value: object) -> object:
    if not isinstance(value, Path) or value.exists():
        return value
    try:
        return Path(filled_in(str(value)))
    except PathError as error:
        raise UserError(f"`{option}` is `{value}`, {error}") from error


def too_long(path: Path, temporary: bool = False) -> str | None:
    """What keeps the file system from taking a path: which name is too long, or the whole of it; None where it fits.

    Args:
        path: of a file or folder that may not be there yet.
        temporary: whether it is written beside its place first, under a longer name.
    """
    path = path.absolute()
    there = next(parent for parent in (path, *path.parents) if _is_there(parent))
    longest = _limit(there, "PC_NAME_MAX", USUAL_LONGEST_NAME)
    added = TEMPORARY_CHARACTERS if temporary else 0
    for name, more in [*((parent.name, 0) for parent in reversed(path.parents)), (path.name, added)]:
        if _length(name) + more > longest:
            beside = f", and {more} more while it is being written" if more else ""
            return f"the name `{shown(name)}` has {_length(name)} {UNITS}{beside}, and the file system takes {longest}"
    whole, allowed = _length(str(path)) + added, _limit(there, "PC_PATH_MAX", USUAL_LONGEST_PATH) - 1
    return f"the whole path has {whole} {UNITS}, and the system takes {allowed}" if whole > allowed else None


def _value(variable: re.Match[str]) -> str:
    name = variable[1] if variable[2] is None else variable[2]
    if variable[2] is None and not variable[0].endswith("}"):
        raise PathError("where `${` has no `}`; close it")
    value = os.environ.get(name)
    if value is None:
        raise PathError(f"and the environment has no variable `{shown(name)}`; set it, or write the path out")
    return value


def _is_there(path: Path) -> bool:
    """Whether a folder is there; one with a name that is too long is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _limit(folder: Path, which: str, usual: int) -> int:
    """What the file system of a folder states; Windows states nothing, and some state a number below 0."""
    try:
        stated = os.pathconf(folder, which)
    except (AttributeError, OSError, ValueError):
        return usual
    return stated if stated > 0 else usual


def _length(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2 if os.name == "nt" else len(os.fsencode(text))
