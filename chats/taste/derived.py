"""metadata.jsonl: the pairs as the trainer reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..files import replacing
from .names import IMAGES, Conflict

PICTURE = re.compile(rf"{IMAGES}/[0-9a-f]{{16}}\.png")
KEYS = ("chosen_file_name", "rejected_file_name", "prompt")


def write(path: Path, pairs: Iterable[tuple[str, str, str]]) -> None:
    """Writes (chosen id, rejected id, prompt) whole or not at all, where the file says something else.

    Raises:
        Conflict: where the file is another one than this wrote.
    """
    data = b"".join(_line(*pair) for pair in pairs)
    before = path.read_bytes() if path.exists() else b""
    if data == before:
        return
    if not all(map(_is_derived, before.splitlines())):
        raise Conflict(f"{path} has lines that do not come from ratings, and is left as it is; move it elsewhere")
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _line(chosen: str, rejected: str, prompt: str) -> bytes:
    names = (f"{IMAGES}/{chosen}.png", f"{IMAGES}/{rejected}.png", prompt)
    return json.dumps(dict(zip(KEYS, names, strict=True)), ensure_ascii=False).encode("utf-8") + b"\n"


def _is_derived(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(row, dict)
        and tuple(row) == KEYS
        and all(isinstance(row[key], str) and PICTURE.fullmatch(row[key]) for key in KEYS[:2])
    )
