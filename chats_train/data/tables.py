"""Which parquet files of a folder are pairs and how their columns are read; data sets of the Hugging Face hub too."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chats.words import shown, shown_error

from ..settings.config import Columns, DataConfig
from ..support.errors import UserError
from ..support.hub import fetching, require_hub_id
from .cells import TableImage
from .columns import missing
from .folder_tree import LeftOut, NamedFiles, files_below
from .images import picture_suffixes
from .pairs import LONGEST_DETAIL, PairSource, RawPair
from .splits import of_splits, split_of, wanted_splits

if TYPE_CHECKING:
    import datasets

PARQUET = ".parquet"
# Pick-a-Pic v2 (https://huggingface.co/datasets/yuvalkirstain/pickapic_v2): two images, and a label that is 1, 0 or,
# for ties, 0.5.
PICK_A_PIC = ("jpg_0", "jpg_1", "label_0", "label_1")
PICK_A_PIC_PROMPT = "caption"


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
    tables = _tables(folder, names, cache_dir)
    columns = {column: None for table in tables for column in table.data.column_names}
    files, parts, rows = NamedFiles(folder), [], 0
    for table in tables:
        place = table.file if len(tables) > 1 else "the data"
        others = [column for column in columns if column not in table.data.column_names]
        parts.append(table_source(table.data, path.name, config.columns, files, place, others, rows))
        rows += len(table.data)
    return PairSource(
        path.name,
        [pair for part in parts for pair in part.pairs],
        ties=sum(part.ties for part in parts),
        remarks=[*remarks, *left_out.remarks()],
    )


@dataclass(frozen=True)
class _Table:
    """The rows of files of one schema, and the name of the first."""

    file: str
    data: datasets.Dataset


def _tables(folder: Path, names: list[str], cache_dir: Path) -> list[_Table]:
    """Consecutive files of one schema as one table, as ``datasets`` refuses files of several."""
    import datasets
    import pyarrow.parquet

    tables, schemas = [], {}
    try:
        for file in names:
            schemas[file] = pyarrow.parquet.read_schema(folder / file)
        for _, group in itertools.groupby(names, schemas.__getitem__):
            file, *further = group
            # Escaped, as a folder's name may have brackets.
            paths = [glob.escape(str(folder / name)) for name in (file, *further)]
            data = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(cache_dir))
            tables.append(_Table(file, data))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{shown(folder / file, LONGEST_DETAIL)} is not whole parquet ({shown_error(error)}); write it again, or "
            "take it out of `data.path`"
        ) from error
    return tables


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
    return table_source(table, hub_id, config.columns)


def table_source(
    table: datasets.Dataset,
    name: str,
    columns: Columns,
    files: NamedFiles | None = None,
    place: str = "the data",
    others: Collection[str] = (),
    rows_before: int = 0,
) -> PairSource:
    """The pairs of a table by its columns: chosen, rejected and prompt, or those of Pick-a-Pic v2, whose ties are left
    out.

    Args:
        table: the rows; images as in :class:`.cells.TableImage`.
        name: how to call the data set.
        columns: names of the columns, as far as they are not the usual ones.
        files: what the table names.
        place: how to call the table.
        others: columns that the set's other files have and this one has not. Where the prompt is among them, it is null
            here.
        rows_before: those of the set's earlier files.

    Raises:
        UserError: when a column is not there.
    """
    there = table.column_names
    labelled = not (columns.chosen or columns.rejected or "chosen" in there) and set(PICK_A_PIC) <= set(there)
    if labelled:
        wanted = {"chosen": PICK_A_PIC[0], "rejected": PICK_A_PIC[1], "prompt": columns.prompt or PICK_A_PIC_PROMPT}
    else:
        wanted = {setting: getattr(columns, setting) or setting for setting in ("chosen", "rejected", "prompt")}
    for setting, column in wanted.items():
        if column not in there and column not in others:
            raise missing(f"{place} has no column", setting, column, there)
        if column not in there and setting != "prompt":
            raise UserError(
                f"{place} has no column `{shown(column)}`, which other files of `data.path` have, only "
                f"{shown(', '.join(there))}; write the column into it, or take it out of `data.path`"
            )
    column = wanted["prompt"]
    prompts = table.select_columns([column])[:][column] if column in there else [None] * len(table)
    images = (_images(table, wanted[side], files, rows_before) for side in ("chosen", "rejected"))
    rows = enumerate(zip(prompts, *images, strict=True), start=rows_before)
    pairs = [RawPair(f"row {row}", *cells) for row, cells in rows]
    if not labelled:
        return PairSource(name, pairs)
    by_label = [pair for pair in map(_turned, pairs, *_labels(table)) if pair is not None]
    return PairSource(name, by_label, ties=len(pairs) - len(by_label))


def _labels(table: datasets.Dataset) -> list[list[float | None]]:
    """Of the first images, and of the second ones."""
    names = list(PICK_A_PIC[2:])
    cells = table.select_columns(names)[:]
    return [cells[name] for name in names]


def _turned(pair: RawPair, label_0: float | None, label_1: float | None) -> RawPair | None:
    """A pair of the first and the second image with the preferred one first; None for a tie."""
    if label_0 is None or label_1 is None or label_0 == label_1:
        return None
    return pair if label_0 > label_1 else replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def _images(table: datasets.Dataset, column: str, files: NamedFiles | None, rows_before: int) -> Iterator[TableImage]:
    """The images of a column, none of them read yet."""
    import datasets

    single = table.select_columns([column])
    if isinstance(single.features[column], datasets.Image):
        single = single.cast_column(column, datasets.Image(decode=False))
    return (TableImage(single, row, files, rows_before) for row in range(len(single)))
