"""Which files of a folder are pairs: those that a metadata.jsonl names, or chosen/ and rejected/ with captions."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chats.words import shown_error

from ..settings.config import Columns
from ..support.errors import UserError
from .captions import CAPTION_SUFFIXES, SIDES, Captions
from .columns import missing, single
from .folder_state import FolderState
from .folder_tree import LeftOut, NamedFiles, NamedImage, files_below, normalised, read_text, with_slashes
from .images import picture_suffixes
from .pairs import FileImage, Opening, PairSource, Problem, RawPair

METADATA = "metadata.jsonl"


def metadata_folder(folder: Path, columns: Columns, without: Iterable[Path] = ()) -> Opening:
    """A folder with metadata.jsonl: one JSON object a line, ``chosen_file_name`` and ``rejected_file_name`` (relative
    to the folder) and ``prompt``, or the keys that ``columns`` names.

    Args:
        folder: where it is.
        columns: names of the keys, as far as they are not the usual ones.
        without: folders below it that are no part of the data.

    Raises:
        UserError: when it is read: it is no text, a line is no JSON object, or no line has one of the keys.
    """
    left_out, state = LeftOut(), FolderState(_whereabouts(folder))
    walked = files_below(folder, left_out, without, state=state)
    digest = state.digest(left_out.remarks())
    return Opening(folder.name, digest, partial(_metadata_pairs, folder, columns, walked, left_out, digest))


def _metadata_pairs(
    folder: Path, columns: Columns, walked: Sequence[str], left_out: LeftOut, state: str | None
) -> PairSource:
    keys = {
        "chosen": columns.chosen or "chosen_file_name",
        "rejected": columns.rejected or "rejected_file_name",
        "prompt": columns.prompt or "prompt",
    }
    files, pairs, problems, left_out = NamedFiles(folder), [], [], left_out.copy()
    seen, all_seen = set(map(normalised, walked)), True
    present: dict[str, None] = {}
    named: set[str] = {METADATA}
    for number, row in _rows(folder):
        present |= dict.fromkeys(row)
        name = f"{METADATA} line {number}"
        stated = {side: single(row.get(keys[side])) for side in SIDES}
        for file in stated.values():
            if isinstance(file, str):
                named |= (forms := _forms(folder, file))
                all_seen &= not forms.isdisjoint(seen) and ".." not in with_slashes(file).split("/")
        if lacking := [side for side in SIDES if not isinstance(stated[side], str) or not stated[side]]:
            problems.append(Problem("no partner", name, f"no `{keys[lacking[0]]}`"))
            continue
        pairs.append(RawPair(name, row.get(keys["prompt"]), *(NamedImage(files, stated[side]) for side in SIDES)))
    for setting, key in keys.items():
        if (pairs or problems) and key not in present:
            raise missing(f"{folder / METADATA} has no key", setting, key, present)
    for file in walked:
        if normalised(file) not in named:
            left_out.add(f"files that no line of {METADATA} names", file)
    # What lies elsewhere, or nowhere yet, the walk did not see.
    return PairSource(folder.name, pairs, problems, remarks=left_out.remarks(), state=state if all_seen else None)


def _whereabouts(folder: Path) -> list[str]:
    return [str(folder), os.path.abspath(folder)]


def _forms(folder: Path, name: str) -> set[str]:
    """The names, relative to the folder and normalised, that a file can have where a table states ``name``."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        name = path.relative_to(folder.absolute()).as_posix()
    return {normalised(posixpath.normpath(name)), normalised(with_slashes(name))}


def _rows(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with the number of its line."""
    path = folder / METADATA
    try:
        # Not splitlines: JSON may hold other characters that are ends of lines to it, U+2028 for one.
        lines = read_text(path).split("\n")
    except UnicodeError as error:
        raise UserError(f"{path} is not text in UTF-8; save it as such") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"line {number} of {path} is not JSON ({shown_error(error)}); write one object a line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {path} is not a JSON object; write one object a line")
        yield number, row


def two_folders(folder: Path, without: Iterable[Path] = ()) -> Opening:
    """``chosen/`` and ``rejected/`` with images of equal names (suffixes may differ), also in folders below them, and
    captions (:class:`.captions.Captions`).

    Pairs are in the order of their names.
    """
    suffixes = picture_suffixes() | set(CAPTION_SUFFIXES)
    left_out = LeftOut()
    state = FolderState(
        [*_whereabouts(folder), sorted(suffixes)], lambda name: os.path.splitext(name)[1].lower() in suffixes
    )
    names = {side: files_below(folder / side, left_out, without, f"{side}/", state) for side in SIDES}
    names[""] = files_below(folder, left_out, [*(folder / side for side in SIDES), *without], "", state)
    digest = state.digest(left_out.remarks())
    return Opening(folder.name, digest, partial(_two_folders_pairs, folder, names, left_out, digest))


def _two_folders_pairs(
    folder: Path, names: Mapping[str, Sequence[str]], left_out: LeftOut, state: str | None
) -> PairSource:
    left_out, problems, pairs = left_out.copy(), [], []
    places = {side: folder / side for side in SIDES}
    captions = Captions(folder)
    images: dict[str, dict[str, str]] = {side: {} for side in SIDES}
    for side in SIDES:
        for name in names[side]:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in CAPTION_SUFFIXES:
                captions.add(side, name)
            elif suffix.lower() not in picture_suffixes():
                left_out.add("files that are no pictures by their names", f"{side}/{name}")
            elif taken := images[side].get(normalised(stem)):
                problems.append(Problem("duplicate", f"{side}/{name}", f"{taken} has the same name"))
            else:
                images[side][normalised(stem)] = name
    for name in names[""]:
        if os.path.splitext(name)[1].lower() in CAPTION_SUFFIXES:
            captions.add("", name)
        else:
            left_out.add("files outside of chosen/ and rejected/", name)
    for side, other in (SIDES, SIDES[::-1]):
        lonely = images[side].keys() - images[other].keys()
        problems += [
            Problem("no partner", f"{side}/{images[side][stem]}", f"no {other}/{stem}") for stem in sorted(lonely)
        ]
    for stem in sorted(images["chosen"].keys() & images["rejected"].keys()):
        files = {side: images[side][stem] for side in SIDES}
        caption = captions.of(stem, files, left_out)
        if isinstance(caption, Problem):
            problems.append(caption)
        else:
            images_of = (FileImage(os.path.join(places[side], files[side])) for side in SIDES)
            pairs.append(RawPair(stem, caption, *images_of))
    captions.leave_out_the_rest(left_out)
    return PairSource(
        folder.name, pairs, problems, remarks=left_out.remarks(), state=None if captions.failed else state
    )
