"""What a data set may be called, what its files are called, and the errors of this room."""

from __future__ import annotations

import re

from ..words import shown
from .sentence import Sentence

FOLDER = "chats"
IMAGES = "images"
CANDIDATES, RATINGS = "candidates.jsonl", "ratings.jsonl"
METADATA, GUIDELINE = "metadata.jsonl", "guideline.txt"
# Who adds an answer or writes the guideline holds the one, who adds a candidate the other.
LOCK, DRAWING_LOCK = ".lock", ".drawing.lock"

# One word for a folder on every system: no dots, no separators, nothing that a shell or an address has to escape but a
# space.
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
# Windows opens a device under these names, in every folder.
RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)
# A picture's, from the bytes of its file, and a rating's, made by whoever rates.
ID = re.compile(r"[0-9a-f]{16}")


class TasteError(ValueError):
    """What was asked cannot be done as it stands; the sentence says the way out."""

    def __init__(self, key: str, english: str, **values: str | int) -> None:
        self.sentence = Sentence(key, english, **values)
        super().__init__(self.sentence)


class NotThere(TasteError):
    """What was asked for is not there."""


class Conflict(TasteError):
    """It contradicts what is there already."""


class NotWritten(TasteError):
    """The disk did not take it. What was there before is as it was."""


def check_name(name: str, setting: str = "dataset") -> str:
    """The name itself, of a data set or of what lies in one.

    Raises:
        TasteError: naming the setting, where no folder can be called so on every system.
    """
    if not DATASET.fullmatch(name) or name.endswith(" "):
        raise TasteError(
            "badName",
            "`{setting}` is `{name}`; choose 1 to 64 letters, digits, spaces, `_` and `-`, with a letter or digit "
            "first and no space last",
            setting=setting,
            name=shown(name),
        )
    if RESERVED.fullmatch(name):
        raise TasteError(
            "deviceName",
            "`{setting}` is `{name}`, which is a device's name on Windows; choose another",
            setting=setting,
            name=name,
        )
    return name


def is_id(value: object) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None
