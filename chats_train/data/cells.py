"""The image in a cell of a table, however it was put there."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .columns import single
from .folder_tree import NamedFiles
from .images import is_picture
from .pairs import FileImage

if TYPE_CHECKING:
    import datasets

# Characters of the longest path that Linux takes; Base64 of a picture is longer.
LONGEST_PATH = 4096
URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image in a cell: bytes, Base64, a ``{bytes, path}`` struct, a list of one of these, or a file's name."""

    column: datasets.Dataset  # of this one column, so that no other is read
    row: int
    files: NamedFiles | None  # None where names are of no use
    rows_before: int = 0  # those of the set's earlier files

    def read(self) -> bytes:
        cell = single(next(iter(self.column[self.row].values())))
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str) or not cell:
            raise OSError("no image in this cell")
        named = FileImage(self.files.find(cell)) if self.files and len(cell) <= LONGEST_PATH else None
        if named and named.is_there():
            return named.read()
        if (encoded := from_base64(cell)) is not None:
            return encoded
        if named:
            return named.read()  # raises, and says where it looked
        raise OSError("no image in this cell")

    def __str__(self) -> str:
        return f"`{self.column.column_names[0]}` of row {self.rows_before + self.row}"


def from_base64(text: str) -> bytes | None:
    """The picture that a text encodes, as a data URL too; None where it is none."""
    body = text.partition("base64,")[2] if text.startswith("data:") else text
    body = "".join(body.split()).translate(URL_SAFE).rstrip("=")
    try:
        encoded = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError:
        return None
    return encoded if is_picture(encoded) else None
