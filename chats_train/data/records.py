"""Records of images in files that are there whole or not at all: a fixed width each, found by place or by hash."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chats.files import replacing

if TYPE_CHECKING:
    from .pairs import ProblemKind

# Raise it when images are decoded or refused otherwise than before.
RECORDS_VERSION = 3
PLACE_BYTES, DIGEST_BYTES = 16, 32
# In the place of a size and times that must not be trusted.
UNSETTLED = -1
# More files than these become one.
MOST_FILES = 8
USABLE = -1
LAYOUT = numpy.dtype(
    [
        ("place", f"V{PLACE_BYTES}"),
        ("sha256", f"V{DIGEST_BYTES}"),
        ("size", "<i8"),
        ("modified_ns", "<i8"),
        ("changed_ns", "<i8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("by_range", "?"),
        ("refusal", "<i4"),
    ]
)


class Record(NamedTuple):
    """What is known of one image: a hash of its place, the SHA-256 of its bytes, ``mark`` (size, time of modification,
    time of change), its size in pixels, whether its levels were brought to 8 bits by their range, and where it is none
    that can be trained on, of which kind and why."""

    place: bytes
    sha256: bytes
    mark: tuple[int, int, int]
    width: int
    height: int
    by_range: bool
    refusal: tuple[ProblemKind, str] | None


class _Table:
    """All records, and where each place and hash is; of several records of one place the last counts."""

    def __init__(self, rows: numpy.ndarray, refusals: list[tuple[ProblemKind, str]]):
        self.rows, self.refusals = rows, refusals
        self._places, self._digests = _Index(rows["place"]), _Index(rows["sha256"])

    def at(self, places: Sequence[bytes]) -> list[Record | None]:
        return self._read(self._places.find(places), "place", places)

    def of_digest(self, digest: bytes) -> Record | None:
        return self._read(self._digests.find([digest]), "sha256", [digest])[0]

    def latest(self) -> numpy.ndarray:
        """The last record of each place."""
        # Unique takes the first of equals.
        _, last = numpy.unique(_text(self.rows["place"][::-1]), return_index=True)
        rows: numpy.ndarray = self.rows[::-1][numpy.sort(last)[::-1]]
        return rows

    def _read(self, found: numpy.ndarray, field: str, wanted: Sequence[bytes]) -> list[Record | None]:
        if not len(self.rows):
            return [None] * len(wanted)
        column = LAYOUT.names.index(field) if LAYOUT.names else 0
        # What an index finds has the first bytes alone of what was asked for.
        return [
            self._record(values) if values[column] == key else None
            for values, key in zip(self.rows[found].tolist(), wanted, strict=True)
        ]

    def _record(self, values: tuple) -> Record:
        place, digest, size, modified_ns, changed_ns, width, height, by_range, refusal = values
        why = None if refusal == USABLE else self.refusals[refusal]
        return Record(place, digest, (size, modified_ns, changed_ns), width, height, by_range, why)


class _Index:
    """Where keys are among others, by their first 8 bytes."""

    def __init__(self, keys: numpy.ndarray):
        leading = numpy.ascontiguousarray(keys).view(">u8").reshape(len(keys), keys.itemsize // 8)[:, 0].astype("u8")
        self._order = numpy.argsort(leading, kind="stable")
        self._sorted = leading[self._order]

    def find(self, keys: Sequence[bytes]) -> numpy.ndarray:
        """The last row that each key may be in."""
        leading = numpy.array([int.from_bytes(key[:8], "big") for key in keys], "u8")
        places = numpy.searchsorted(self._sorted, leading, side="right")
        rows: numpy.ndarray = self._order[numpy.maximum(places - 1, 0)] if len(self._order) else places
        return rows


class RecordFiles:
    """The records of a folder. Several processes can add files at once.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._paths: list[Path] = []
        rows = [numpy.empty(0, LAYOUT)]
        refusals: list[tuple[ProblemKind, str]] = []
        for path in sorted(folder.glob("*.safetensors"), key=_written):
            if (read := _read(path, len(refusals))) is not None:
                rows.append(read[0])
                refusals += read[1]
                self._paths.append(path)
        self._table = _Table(numpy.concatenate(rows), refusals)

    def at(self, places: Sequence[bytes]) -> list[Record | None]:
        """What is known of images by the hashes of their places."""
        return self._table.at(places)

    def of_digest(self, digest: bytes) -> Record | None:
        """What is known of an image by its hash."""
        return self._table.of_digest(digest)

    def add(self, records: Sequence[Record]) -> None:
        """Writes further records into a file of their own; the last of a place counts."""
        if not records:
            return
        refusals = list(dict.fromkeys(record.refusal for record in records if record.refusal is not None))
        numbers = {refusal: number for number, refusal in enumerate(refusals)}
        rows = numpy.array([_values(record, numbers) for record in records], LAYOUT)
        self._paths.append(_write(self.folder, rows, refusals))
        all_rows = numpy.concatenate([self._table.rows, _moved(rows, len(self._table.refusals))])
        self._table = _Table(all_rows, [*self._table.refusals, *refusals])

    def merge(self) -> None:
        """Makes one file of many, without the records that later ones replaced."""
        if len(self._paths) <= MOST_FILES:
            return
        rows, before = self._table.latest(), self._paths
        self._paths = [_write(self.folder, rows, self._table.refusals)]
        self._table = _Table(rows, self._table.refusals)
        for path in before:
            # Another process may have merged it too.
            path.unlink(missing_ok=True)


def _values(record: Record, numbers: dict[tuple[ProblemKind, str], int]) -> tuple:
    refusal = USABLE if record.refusal is None else numbers[record.refusal]
    return (record.place, record.sha256, *record.mark, record.width, record.height, record.by_range, refusal)


def _moved(rows: numpy.ndarray, by: int) -> numpy.ndarray:
    """Rows whose reasons stand behind ``by`` others."""
    moved = rows.copy()
    moved["refusal"] += numpy.where(rows["refusal"] == USABLE, 0, by).astype("<i4")
    return moved


def _write(folder: Path, rows: numpy.ndarray, refusals: list[tuple[ProblemKind, str]]) -> Path:
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    reasons = numpy.frombuffer(json.dumps(refusals).encode(), "u1")
    records = numpy.ascontiguousarray(rows).view("u1").reshape(len(rows), LAYOUT.itemsize)
    with replacing(path) as temporary:
        save_file({"records": records, "refusals": reasons}, temporary, {"version": str(RECORDS_VERSION)})
    return path


def _read(path: Path, before: int) -> tuple[numpy.ndarray, list[tuple[ProblemKind, str]]] | None:
    """A file's rows, whose reasons come behind ``before`` others; None where it is of another version, or damaged: its
    images are read anew."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("version") != str(RECORDS_VERSION):
                return None
        stored = load_file(path)
        refusals = [(kind, reason) for kind, reason in json.loads(stored["refusals"].tobytes())]
        rows = numpy.ascontiguousarray(stored["records"]).view(LAYOUT)[:, 0]
        if rows["refusal"].max(initial=USABLE) >= len(refusals):
            return None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, IndexError):
        return None
    return _moved(rows, before), refusals


def _written(path: Path) -> tuple[float, str]:
    try:
        return path.stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name  # Merged by another process.


def _text(keys: numpy.ndarray) -> numpy.ndarray:
    """Keys that can be sorted."""
    return numpy.ascontiguousarray(keys).view(f"S{keys.dtype.itemsize}")
