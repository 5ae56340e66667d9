"""Pairs in folders: a metadata.jsonl, or chosen/ and rejected/ with captions."""

from __future__ import annotations

import json
from pathlib import Path

from chats.words import shown_error

from ..settings.config import Columns
from ..support.errors import UserError
from .pairs import FileImage, PairSource, Problem, RawPair

METADATA = "metadata.jsonl"
SIDES = ("chosen", "rejected")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


def metadata_folder(folder: Path, columns: Columns) -> PairSource:
    """A folder with metadata.jsonl: one JSON object a line, ``chosen_file_name`` and ``rejected_file_name`` (relative
    to the folder) and ``prompt``, or the keys that ``columns`` names.

    Raises:
        UserError: when a line is no JSON object, or no line has the keys.
    """
    keys = {
        "chosen": columns.chosen or "chosen_file_name",
        "rejected": columns.rejected or "rejected_file_name",
        "prompt": columns.prompt or "prompt",
    }
    pairs, problems = [], []
    for number, line in enumerate(_lines(folder), start=1):
        if not line.strip():
            continue
        row = _json_object(line, number, folder)
        files = [name for side in SIDES if isinstance(name := row.get(keys[side]), str) and name]
        if len(files) < len(SIDES):
            missing = next(keys[side] for side in SIDES if row.get(keys[side]) not in files)
            problems.append(Problem("no partner", f"{METADATA} line {number}", f"no `{missing}`"))
            continue
        chosen, rejected = (FileImage(folder / name) for name in files)
        pairs.append(RawPair(f"{METADATA} line {number}", row.get(keys["prompt"]), chosen, rejected))
    if problems and not pairs:
        raise UserError(
            f"no line of {folder / METADATA} has `{keys['chosen']}` and `{keys['rejected']}`; "
            "name its keys in `data.columns.chosen` and `data.columns.rejected`"
        )
    return PairSource(folder.name, pairs, problems)


def _lines(folder: Path) -> list[str]:
    try:
        # Not splitlines: JSON may hold other characters that are ends of lines to it, U+2028 for one.
        return (folder / METADATA).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / METADATA} is not text in UTF-8; save it as such") from error


def _json_object(line: str, number: int, folder: Path) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"line {number} of {folder / METADATA} is not JSON ({shown_error(error)}); write one object a line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"line {number} of {folder / METADATA} is not a JSON object; write one object a line")
    return row


def two_folders(folder: Path) -> PairSource:
    """``chosen/`` and ``rejected/`` with images of equal names (suffixes may differ), the caption in a ``.txt`` of that
    name beside the chosen image, else beside the rejected one, else in ``folder``.

    Pairs are in the order of their names.
    """
    found: dict[str, dict[str, Path]] = {side: {} for side in SIDES}
    problems = []
    for side in SIDES:
        for path in sorted((folder / side).iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                if path.stem in found[side]:
                    problems.append(
                        Problem("duplicate", f"{side}/{path.name}", f"{found[side][path.stem].name} has the same name")
                    )
                else:
                    found[side][path.stem] = path
    for side, other in (SIDES, SIDES[::-1]):
        lonely = found[side].keys() - found[other].keys()
        problems += [
            Problem("no partner", f"{side}/{found[side][stem].name}", f"no {other}/{stem}") for stem in sorted(lonely)
        ]
    both = sorted(found["chosen"].keys() & found["rejected"].keys())
    pairs = [RawPair(stem, _caption(folder, stem), *(FileImage(found[side][stem]) for side in SIDES)) for stem in both]
    return PairSource(folder.name, pairs, problems)


def _caption(folder: Path, stem: str) -> str | None:
    for place in (folder / "chosen", folder / "rejected", folder):
        # Not with_suffix: a name such as `cat.v2` has a dot of its own.
        file = place / f"{stem}.txt"
        if file.is_file():
            return file.read_text(encoding="utf-8-sig", errors="replace")
    return None
