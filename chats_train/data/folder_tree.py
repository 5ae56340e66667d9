"""Walking a folder as people's machines leave it: links, hidden files, composed names; what is left out is counted."""

from __future__ import annotations

import codecs
import copy
import os
import posixpath
import threading
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chats.words import shown

from .folder_state import FolderState
from .pairs import LONGEST_DETAIL, FileImage, Mark

# What Windows, a Mac's archives and a Synology write beside people's files; names that begin with a dot are hidden too.
SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}
)
# The longer marks first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
HIDDEN = "hidden files of a system"
UNREADABLE = "folders that cannot be read"
LINKED_AGAIN = "folders that were read under another name"


class LeftOut:
    """What was not taken as data: how many for each reason, and the first of them by name."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, name)

    def copy(self) -> LeftOut:
        """Another one, to be added to."""
        return copy.deepcopy(self)

    def remarks(self) -> list[str]:
        """A line for each reason."""
        return [
            f"left out ({reason}): {count}, such as {shown(self._first[reason], LONGEST_DETAIL)}"
            for reason, count in self._counts.items()
        ]


def normalised(name: str) -> str:
    """A name by which files of different systems are the same: a Mac decomposes accents, others compose them."""
    return unicodedata.normalize("NFC", name)


def files_below(
    folder: Path,
    left_out: LeftOut,
    without: Iterable[Path] = (),
    shown_before: str = "",
    state: FolderState | None = None,
) -> list[str]:
    """All files of a folder and of those below, relative and with slashes, in the order of their paths' parts; hidden
    ones are left out.

    Args:
        folder: where to look; links are followed.
        left_out: gets the hidden files, and folders that cannot be read.
        without: folders not to look into.
        shown_before: begins the names of what is left out.
        state: gets what is seen.
    """
    names: list[str] = []
    apart = {_identity(place) for place in without}
    # The folder itself too, for a link back to it.
    seen = {_identity(folder)}
    places = [(os.fspath(folder), "")]
    entered = 0
    while places:
        place, prefix = places.pop()
        try:
            folders, files = _entries(place, state)
        except OSError as error:
            left_out.add(UNREADABLE, str(error.filename))
            continue
        if state is not None:
            state.add(shown_before + prefix, files)
        below = []
        for name in folders:
            path = os.path.join(place, name)
            identity = _identity(Path(path))
            if _is_hidden(name):
                left_out.add(HIDDEN, shown_before + prefix + name)
            elif identity in seen:
                left_out.add(LINKED_AGAIN, shown_before + prefix + name)
            elif identity not in apart:
                below.append((path, f"{prefix}{name}/"))
                seen.add(identity)
        places += reversed(below)
        entered += 1
        for name, _ in files:
            if _is_hidden(name):
                left_out.add(HIDDEN, shown_before + prefix + name)
            else:
                names.append(prefix + name)
    # No name holds NUL, so that it sorts by parts. Of one folder they are in order.
    return names if entered <= 1 else sorted(names, key=lambda name: name.replace("/", "\0"))


def _entries(place: str, state: FolderState | None) -> tuple[list[str], list[tuple[str, bytes]]]:
    """The folders in a folder, links last, so that a folder goes by its own name; and the files with their marks where
    a state wants them."""
    folders: list[tuple[bool, str]] = []
    files: list[tuple[str, bytes]] = []
    with os.scandir(place) as entries:
        for entry in entries:
            if _is_folder(entry):
                folders.append((entry.is_symlink(), entry.name))
            else:
                mark = b"" if state is None or _is_hidden(entry.name) else state.mark(entry)
                files.append((entry.name, mark))
    return [name for _, name in sorted(folders)], sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int] | str:
    """What two names of one folder have in common."""
    try:
        status = folder.stat()
    except OSError:
        return str(folder)  # It is not there, or not for us.
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


class NamedFiles:
    """The files of a folder by the names that a table states for them, as another system may have written those."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()

    def find(self, name: str) -> Path:
        """The file, or where it should be."""
        for form in (name, with_slashes(name)):
            if os.path.isfile(self.folder / form):
                return self.folder / form
        with self._lock:
            found = self._names.get(normalised(form))
        return self.folder / (found or form)

    @cached_property
    def _names(self) -> dict[str, str]:
        return {normalised(name): name for name in files_below(self.folder, LeftOut())}


def with_slashes(name: str) -> str:
    """A relative name as Windows wrote it, for every system."""
    return posixpath.normpath(name.replace("\\", "/"))


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image in a file that a table names."""

    files: NamedFiles
    name: str

    @property
    def place(self) -> str:
        return str(self)

    def mark(self) -> Mark | None:
        return FileImage(self.files.find(self.name)).mark()

    def read(self) -> bytes:
        return FileImage(self.files.find(self.name)).read()

    def __str__(self) -> str:
        return str(self.files.find(self.name))


def read_text(path: Path) -> str:
    """A text by its byte order mark, without one UTF-8; ends of lines are "\\n".

    Raises:
        UnicodeError: when it is no text.
    """
    encoded = path.read_bytes()
    mark, encoding = next(
        ((mark, encoding) for mark, encoding in BYTE_ORDER_MARKS if encoded.startswith(mark)), (b"", "utf-8")
    )
    text = encoded[len(mark) :].decode(encoding)
    if not is_text(text):
        raise UnicodeError("it has NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_text(text: str) -> bool:
    """False for UTF-16 without a mark that was read as UTF-8, which succeeds and gives NUL characters."""
    return "\0" not in text
