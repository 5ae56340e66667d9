"""The image in a cell of a table, however it was put there."""

from __future__ import annotations

import base64
import bisect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy

from .columns import single
from .folder_tree import NamedFiles
from .images import is_picture
from .pairs import FileImage, Mark

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# Characters of the longest path that Linux takes; Base64 of a picture is longer.
LONGEST_PATH = 4096
LONGEST_CHARACTER = 4  # bytes, in UTF-8
URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True)
class Origin:
    """What the rows of a table come from: files, or a data set of the hub.

    Args:
        starts: the first row of each part, ascending from 0.
        marks: of each part.
    """

    starts: list[int]
    marks: list[Mark]

    def mark(self, column: str, row: int) -> Mark:
        part = bisect.bisect_right(self.starts, row) - 1
        place, size, modified_ns, changed_ns = self.marks[part]
        return Mark(f"{place}\0{column}\0{row - self.starts[part]}", size, modified_ns, changed_ns)


@dataclass(frozen=True)
class ImageColumn:
    """The images of one column, none of them read yet."""

    data: datasets.Dataset  # of this one column, so that no other is read
    files: NamedFiles | None  # None where names are of no use
    origin: Origin
    table: int = 0  # its number among the tables of the set
    rows_before: int = 0  # those of the set's earlier files

    @cached_property
    def name(self) -> str:
        return str(self.data.column_names[0])

    @cached_property
    def cells(self) -> pa.ChunkedArray | None:
        """As the table stores them; None where its rows were picked from others, and lie elsewhere in the column."""
        return self.data.data.column(self.name) if self.data._indices is None else None

    def cell(self, row: int) -> object:
        # Some ten times as fast as a row of the data set.
        return self.data[row][self.name] if self.cells is None else self.cells[row].as_py()

    @cached_property
    def may_name(self) -> numpy.ndarray:
        """Of each row, whether its cell may be a file's name, told by types and lengths alone."""
        if self.files is None:
            return numpy.zeros(len(self.data), bool)
        import pyarrow.compute as pc
        from pyarrow import types

        if self.cells is None:
            return numpy.ones(len(self.data), bool)
        cells = self.cells
        if types.is_struct(cells.type) and cells.type.get_field_index("bytes") >= 0:
            cells = pc.struct_field(cells, "bytes")
        is_text = types.is_string(cells.type) or types.is_large_string(cells.type)
        is_bytes = types.is_binary(cells.type) or types.is_large_binary(cells.type)
        if not (is_text or is_bytes):
            return numpy.ones(len(self.data), bool)
        longest = LONGEST_PATH * LONGEST_CHARACTER if is_text else 0
        short: numpy.ndarray = pc.less_equal(pc.fill_null(pc.binary_length(cells), 0), longest).to_numpy()
        return short


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image in a cell: bytes, Base64, a ``{bytes, path}`` struct, a list of one of these, or a file's name."""

    column: ImageColumn
    row: int

    @property
    def place(self) -> str:
        return f"{self.column.table}:{self.row}:{self.column.name}"

    def mark(self) -> Mark | None:
        if not self.column.may_name[self.row]:
            return self.column.origin.mark(self.column.name, self.row)
        named = self._named(self._cell())
        return named.mark() if named else None

    def read(self) -> bytes:
        cell = self._cell()
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str) or not cell:
            raise OSError("no image in this cell")
        named = self._named(cell)
        if named and named.is_there():
            return named.read()
        if (encoded := from_base64(cell)) is not None:
            return encoded
        if named:
            return named.read()  # raises, and says where it looked
        raise OSError("no image in this cell")

    def __str__(self) -> str:
        return f"`{self.column.name}` of row {self.column.rows_before + self.row}"

    def _cell(self) -> object:
        cell = single(self.column.cell(self.row))
        return cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell

    def _named(self, cell: object) -> FileImage | None:
        files = self.column.files
        if files is None or not isinstance(cell, str) or not 0 < len(cell) <= LONGEST_PATH:
            return None
        return FileImage(files.find(cell))


def from_base64(text: str) -> bytes | None:
    """The picture that a text encodes, as a data URL too; None where it is none."""
    body = text.partition("base64,")[2] if text.startswith("data:") else text
    body = "".join(body.split()).translate(URL_SAFE).rstrip("=")
    try:
        encoded = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError:
        return None
    return encoded if is_picture(encoded) else None
