"""Which parquet files of a folder are pairs and how their columns are read; data sets of the Hugging Face hub too."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chats.words import shown, shown_error

from ..settings.config import Columns, DataConfig
from ..support.errors import UserError
from ..support.hub import fetching, require_hub_id
from .cells import ImageColumn, Origin, TableImage
from .columns import missing
from .folder_tree import LeftOut, NamedFiles, files_below
from .images import picture_suffixes
from .pairs import LONGEST_DETAIL, FileImage, LazyPairs, Mark, PairSource, RawPair
from .splits import of_splits, split_of, wanted_splits
from .verdicts import is_settled

if TYPE_CHECKING:
    import datasets

PARQUET = ".parquet"
# Pick-a-Pic v2 (https://huggingface.co/datasets/yuvalkirstain/pickapic_v2): two images, and a label that is 1, 0 or,
# for ties, 0.5.
PICK_A_PIC = ("jpg_0", "jpg_1", "label_0", "label_1")
PICK_A_PIC_PROMPT = "caption"
TIE, FIRST, SECOND = range(3)
ROWS_AT_ONCE = 4096


def parquet(path: Path, config: DataConfig, cache_dir: Path, without: Iterable[Path] = ()) -> PairSource | None:
    """Local parquet: one file, or those of a folder and the folders below it that are of the split; None where no file
    is there.

    Args:
        path: the file or folder.
        config: names the columns, as far as they are not the usual ones, and the split.
        cache_dir: where ``datasets`` keeps its memory-mapped copy.
        without: folders that are no part of the data.

    Raises:
        UserError: when a file cannot be read or lacks a column, or all are of other splits.
    """
    left_out = LeftOut()
    wanted = wanted_splits(config.split)
    if path.is_dir():
        folder = path
        names = []
        for name in files_below(path, left_out, without):
            suffix = Path(name).suffix.lower()
            if suffix == PARQUET:
                names.append(name)
            elif suffix not in picture_suffixes():  # which rows may name
                left_out.add("files that are no parquet", name)
        if not names:
            return None
        names, remarks = of_splits(names, wanted, left_out)
    else:
        folder, names = path.parent, [path.name]
        # Read all the same: it was named by itself.
        stated = split_of(path.name)
        remarks = [f"read: {path.name}, by its name of the split {stated}"] if stated and stated not in wanted else []
    tables = _tables(folder, names, cache_dir, config.checksum)
    columns = {column: None for table in tables for column in table.data.column_names}
    files, rows = NamedFiles(folder), 0
    parts: list[PairSource] = []
    for table in tables:
        place = table.file if len(tables) > 1 else "the data"
        others = [column for column in columns if column not in table.data.column_names]
        where = Where(table.origin, files, place, rows, len(parts))
        parts.append(table_source(table.data, path.name, config.columns, where, others))
        rows += len(table.data)
    remarks += left_out.remarks()
    return PairSource(
        path.name,
        LazyPairs(sum(len(part.pairs) for part in parts), lambda: itertools.chain(*(part.pairs for part in parts))),
        ties=sum(part.ties for part in parts),
        remarks=remarks,
        state=_state([*(part.state for part in parts), json.dumps(remarks)]) if parts else None,
        image=lambda place: parts[int(place.partition(":")[0])].image(place),
    )


@dataclass(frozen=True)
class Where:
    """A table's place in its set: what its rows come from, the files that it may name, how to call it, the number of
    rows before its own, and its number among the tables."""

    origin: Origin
    files: NamedFiles | None = None
    place: str = "the data"
    rows_before: int = 0
    table: int = 0


@dataclass(frozen=True)
class _Table:
    """The rows of files of one schema, and the name of the first."""

    file: str
    data: datasets.Dataset
    origin: Origin


def _tables(folder: Path, names: list[str], cache_dir: Path, anew: bool) -> list[_Table]:
    """Consecutive files of one schema as one table, as ``datasets`` refuses files of several."""
    import datasets
    import pyarrow.parquet

    tables, marks, schemas, counts = [], {}, {}, {}
    try:
        for file in names:
            # Before anything is read, so that what is written meanwhile is seen at the next start.
            if (mark := FileImage(folder / file).mark()) is None:
                raise OSError("no file is there")
            head = pyarrow.parquet.read_metadata(folder / file)
            marks[file], schemas[file], counts[file] = mark, head.schema.to_arrow_schema(), head.num_rows
        for _, group in itertools.groupby(names, schemas.__getitem__):
            file, *further = group
            # Escaped, as a folder's name may have brackets.
            paths = [glob.escape(str(folder / name)) for name in (file, *further)]
            data = _loaded(paths, cache_dir, "reuse_dataset_if_exists")
            *starts, rows = itertools.accumulate((counts[name] for name in (file, *further)), initial=0)
            origin = Origin(starts, [marks[name] for name in (file, *further)])
            if anew or len(data) != rows or _is_older(data, origin):
                data = _loaded(paths, cache_dir, "force_redownload")
            tables.append(_Table(file, data, origin))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{shown(folder / file, LONGEST_DETAIL)} is not whole parquet ({shown_error(error)}); write it again, or "
            "take it out of `data.path`"
        ) from error
    return tables


def _loaded(paths: list[str], cache_dir: Path, mode: str) -> datasets.Dataset:
    import datasets

    return datasets.load_dataset(
        "parquet", data_files=paths, split="train", cache_dir=str(cache_dir), download_mode=mode
    )


def _is_older(data: datasets.Dataset, origin: Origin) -> bool:
    """Whether the copy was made before a file's last change. ``datasets`` itself tells copies apart by names and times
    of modification alone."""
    made = min((os.stat(file["filename"]).st_mtime_ns for file in data.cache_files), default=0)
    return any(mark.changed_ns >= made for mark in origin.marks)


def hub(hub_id: str, config: DataConfig) -> PairSource:
    """A data set of the hub, fetched to the hub's own cache.

    Raises:
        UserError: when it cannot be fetched, or its columns are not known.
    """
    if not Path(hub_id).is_dir():
        require_hub_id("`data.hub_id`", hub_id, "a hub id (owner/name); local data is `data.path`")
    import datasets

    begun, instead = f"`data.hub_id` is {hub_id}, which", "fetch it yourself and set `data.path`"
    with fetching(begun, hub_id, instead, UserError, ValueError, datasets.exceptions.DatasetsError):
        table = datasets.load_dataset(hub_id, name=config.subset, split=config.split, revision=config.revision)
    state = [(file["filename"], os.stat(file["filename"]).st_mtime_ns) for file in table.cache_files]
    place = f"{hub_id} {table._fingerprint} {state}"
    return table_source(table, hub_id, config.columns, Where(Origin([0], [Mark(place, 0, 0, 0)])))


def table_source(
    table: datasets.Dataset,
    name: str,
    columns: Columns,
    where: Where,
    others: Collection[str] = (),
) -> PairSource:
    """The pairs of a table by its columns: chosen, rejected and prompt, or those of Pick-a-Pic v2, whose ties are left
    out.

    Args:
        table: the rows; images as in :class:`.cells.TableImage`.
        name: how to call the data set.
        columns: names of the columns, as far as they are not the usual ones.
        where: the table's place in its set.
        others: columns that the set's other files have and this one has not. Where the prompt is among them, it is null
            here.

    Raises:
        UserError: when a column is not there.
    """
    now, there = time.time_ns(), table.column_names
    labelled = not (columns.chosen or columns.rejected or "chosen" in there) and set(PICK_A_PIC) <= set(there)
    if labelled:
        wanted = {"chosen": PICK_A_PIC[0], "rejected": PICK_A_PIC[1], "prompt": columns.prompt or PICK_A_PIC_PROMPT}
    else:
        wanted = {setting: getattr(columns, setting) or setting for setting in ("chosen", "rejected", "prompt")}
    for setting, column in wanted.items():
        if column not in there and column not in others:
            raise missing(f"{where.place} has no column", setting, column, there)
        if column not in there and setting != "prompt":
            raise UserError(
                f"{where.place} has no column `{shown(column)}`, which other files of `data.path` have, only "
                f"{shown(', '.join(there))}; write the column into it, or take it out of `data.path`"
            )
    images = {
        column: ImageColumn(_undecoded(table, column), where.files, where.origin, where.table, where.rows_before)
        for column in (wanted["chosen"], wanted["rejected"])
    }
    prompt = table.select_columns([wanted["prompt"]]) if wanted["prompt"] in there else None
    order = _order(table) if labelled else bytes([FIRST]) * len(table)

    def pairs() -> Iterator[RawPair]:
        for row, text in enumerate(_cells(prompt, len(table))):
            sides = [TableImage(images[wanted[side]], row) for side in ("chosen", "rejected")]
            if order[row] != TIE:
                yield RawPair(f"row {where.rows_before + row}", text, *(sides if order[row] == FIRST else sides[::-1]))

    def image(place: str) -> TableImage:
        _, row, column = place.split(":", 2)
        return TableImage(images[column], int(row))

    ties = order.count(TIE)
    told = [] if any(column.may_name.any() for column in images.values()) else where.origin.marks
    state = _state([json.dumps([wanted, mark]) if is_settled(mark, now) else None for mark in told])
    return PairSource(name, LazyPairs(len(table) - ties, pairs), ties=ties, image=image, state=state)


def _state(parts: Sequence[str | None]) -> str | None:
    """A digest of all parts; None where one is not known, or there are none."""
    known = [part for part in parts if part is not None]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest() if parts and len(known) == len(parts) else None


def _order(table: datasets.Dataset) -> bytes:
    """Of each row, which of its two images is preferred: ``FIRST``, ``SECOND`` or, for a tie, none."""
    names = list(PICK_A_PIC[2:])
    cells = table.select_columns(names)[:]
    return bytes(map(_preferred, *(cells[name] for name in names)))


def _preferred(label_0: float | None, label_1: float | None) -> int:
    if label_0 is None or label_1 is None or label_0 == label_1:
        return TIE
    return FIRST if label_0 > label_1 else SECOND


def _cells(column: datasets.Dataset | None, count: int) -> Iterator[object]:
    """The cells of a table's one column; all null where it has none."""
    if column is None:
        yield from itertools.repeat(None, count)
        return
    for start in range(0, count, ROWS_AT_ONCE):
        yield from column[start : start + ROWS_AT_ONCE][column.column_names[0]]


def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """A column of images, which are left as they are stored."""
    import datasets

    single = table.select_columns([column])
    if isinstance(single.features[column], datasets.Image):
        single = single.cast_column(column, datasets.Image(decode=False))
    return single
