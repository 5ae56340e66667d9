"""The usable pairs of a run in columns: some 300 bytes a pair, and an object only of a pair that is asked for."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy
import pyarrow as pa
import pyarrow.compute as pc

from chats.buckets import Bucket
from chats.files import replacing

from .pairs import ImageBytes, PairImage, PairSample

BLOCK = 8192
DIGEST = pa.binary(32)
SIDES = ("chosen", "rejected")
# Names of files may be no UTF-8, so what holds them is bytes.
SCHEMA = pa.schema(
    [
        ("id", DIGEST),
        ("name", pa.large_binary()),
        ("prompt", pa.large_string()),
        *(
            (f"{side}_{field}", kind)
            for side in SIDES
            for field, kind in (
                ("place", pa.large_binary()),
                ("sha256", DIGEST),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("by_range", pa.bool_()),
            )
        ),
        ("bucket_width", pa.int32()),
        ("bucket_height", pa.int32()),
    ]
)


class PairColumns(Sequence[PairSample]):
    """Pairs as rows of a table.

    Args:
        table: of :data:`SCHEMA`.
        image: makes an image of its place.
        rows: of the table, in the order of the pairs; None for all.
    """

    def __init__(self, table: pa.Table, image: Callable[[str], ImageBytes], rows: numpy.ndarray | None = None):
        self._table, self.image, self._rows = table, image, rows
        self._blocks = [[batch.column(name) for name in SCHEMA.names] for batch in table.to_batches()]
        self._starts = [0, *itertools.accumulate(len(block[0]) for block in self._blocks)]

    def __len__(self) -> int:
        return int(self._table.num_rows) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PairSample: ...

    @overload
    def __getitem__(self, index: slice) -> PairColumns: ...

    def __getitem__(self, index: int | slice) -> PairSample | PairColumns:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        place = range(len(self))[index]
        row = place if self._rows is None else int(self._rows[place])
        block = bisect.bisect_right(self._starts, row) - 1
        return self._sample([column[row - self._starts[block]].as_py() for column in self._blocks[block]])

    def __iter__(self) -> Iterator[PairSample]:
        if self._rows is not None:
            yield from map(self.__getitem__, range(len(self)))
            return
        for block in self._blocks:
            yield from map(self._sample, zip(*(column.to_pylist() for column in block), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def take(self, places: Sequence[int]) -> PairColumns:
        """Some of the pairs, by their places among these."""
        picked = numpy.asarray(places, "i8")
        return PairColumns(self._table, self.image, picked if self._rows is None else self._rows[picked])

    @property
    def ids(self) -> Ids:
        return Ids(self.column("id"))

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of :data:`SCHEMA`, in the order of the pairs."""
        column = self._table.column(name)
        return column if self._rows is None else column.take(self._rows)

    def write(self, path: Path, metadata: dict[str, str]) -> None:
        """Writes them to a file that is there whole or not at all."""
        table = self._table if self._rows is None else self._table.take(self._rows)
        with (
            replacing(path) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, SCHEMA.with_metadata(metadata)) as writer,
        ):
            writer.write_table(table, BLOCK)

    def _sample(self, values: Sequence[Any]) -> PairSample:
        identity, name, prompt, *sides, width, height = values
        half = len(sides) // len(SIDES)
        chosen, rejected = self._side(*sides[:half]), self._side(*sides[half:])
        return PairSample(identity.hex(), _text(name), prompt, chosen, rejected, Bucket(width, height))

    def _side(self, place: bytes, sha256: bytes, width: int, height: int, by_range: bool) -> PairImage:
        return PairImage(self.image(_text(place)), sha256.hex(), width, height, by_range)


class Ids(Sequence[str]):
    """The pairs' ids, 32 bytes each, hexadecimal when they are asked for."""

    def __init__(self, column: pa.ChunkedArray):
        self._bytes = digests(column).tobytes()

    def __len__(self) -> int:
        return len(self._bytes) // DIGEST.byte_width

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        start = range(len(self))[index] * DIGEST.byte_width
        return self._bytes[start : start + DIGEST.byte_width].hex()

    def __iter__(self) -> Iterator[str]:
        text, width = self._bytes.hex(), 2 * DIGEST.byte_width
        return (text[start : start + width] for start in range(0, len(text), width))


class ColumnsMaker:
    """Takes usable pairs one by one."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._samples: list[PairSample] = []
        self._kept = bytearray()

    def add(self, sample: PairSample) -> int:
        """The number of its row."""
        self._samples.append(sample)
        self._kept.append(True)
        if len(self._samples) == BLOCK:
            self._close_block()
        return len(self._kept) - 1

    def remove(self, row: int) -> None:
        """Takes a row out again; the others keep their numbers."""
        self._kept[row] = False

    def is_kept(self, row: int) -> bool:
        return bool(self._kept[row])

    def name(self, row: int) -> str:
        """What the pair of a row is called, also of one that was taken out."""
        block, place = divmod(row, BLOCK)
        if block == len(self._batches):
            return self._samples[place].name
        return _text(self._batches[block].column("name")[place].as_py())

    def columns(self, image: Callable[[str], ImageBytes]) -> PairColumns:
        """All that were not taken out."""
        self._close_block()
        table = pa.Table.from_batches(self._batches, SCHEMA)
        if not all(self._kept):
            table = table.filter(pa.array(numpy.frombuffer(bytes(self._kept), "?")))
        return PairColumns(table, image)

    def _close_block(self) -> None:
        samples, self._samples = self._samples, []
        columns: list[Any] = [
            _digests([sample.id for sample in samples]),
            [_bytes(sample.name) for sample in samples],
            [sample.prompt for sample in samples],
        ]
        for images in ([sample.chosen for sample in samples], [sample.rejected for sample in samples]):
            columns += [
                [_bytes(image.source.place) for image in images],
                _digests([image.sha256 for image in images]),
                [image.width for image in images],
                [image.height for image in images],
                [image.by_range for image in images],
            ]
        columns += [[sample.bucket.width for sample in samples], [sample.bucket.height for sample in samples]]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        self._batches.append(pa.record_batch(arrays, SCHEMA))


def read_columns(path: Path, image: Callable[[str], ImageBytes]) -> tuple[PairColumns, dict[str, str]] | None:
    """What :meth:`PairColumns.write` wrote, with its metadata, in memory that processes share; None where it is not
    there."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
    except (OSError, pa.ArrowException):
        return None
    if not table.schema.equals(SCHEMA):
        return None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return PairColumns(table, image), metadata


def digests(column: pa.ChunkedArray) -> numpy.ndarray:
    """A column of digests as bytes, [rows, 32]."""
    parts = [
        numpy.frombuffer(chunk.buffers()[1], "u1").reshape(-1, DIGEST.byte_width)[chunk.offset :][: len(chunk)]
        for chunk in column.chunks
        if len(chunk)
    ]
    return numpy.concatenate(parts) if parts else numpy.empty((0, DIGEST.byte_width), "u1")


def codes(column: pa.ChunkedArray) -> numpy.ndarray:
    """A number for each value of a column, the same for the same value."""
    encoded = column.dictionary_encode()
    return numpy.concatenate([numpy.empty(0, "i8"), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])


def distinct(*columns: numpy.ndarray) -> int:
    """How many different rows some columns of codes have."""
    keys = columns[0].astype("i8")
    for column in columns[1:]:
        keys = keys * (int(column.max(initial=0)) + 1) + column
    return len(pc.unique(pa.array(keys)))


def _digests(texts: list[str]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(DIGEST, len(texts), [None, pa.py_buffer(bytes.fromhex("".join(texts)))])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")
