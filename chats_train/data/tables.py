"""Pairs in tables: parquet files and data sets of the Hugging Face hub, memory-mapped by ``datasets``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chats.words import shown, shown_error

from ..settings.config import Columns, DataConfig
from ..support.errors import UserError
from .pairs import FileImage, PairSource, RawPair

if TYPE_CHECKING:
    import datasets

# Pick-a-Pic v2 (https://huggingface.co/datasets/yuvalkirstain/pickapic_v2): two images, and a label that is 1, 0 or,
# for ties, 0.5.
PICK_A_PIC = ("jpg_0", "jpg_1", "label_0", "label_1")
PICK_A_PIC_PROMPT = "caption"


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image in a cell of a table: bytes, a ``{bytes, path}`` struct, or a path relative to ``folder``."""

    column: datasets.Dataset  # of this one column, so that no other is read
    row: int
    folder: Path | None

    def read(self) -> bytes:
        (cell,) = self.column[self.row].values()
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, str) and self.folder is not None:
            return FileImage(self.folder / cell).read()
        raise OSError("no image in this cell")

    def __str__(self) -> str:
        return f"`{self.column.column_names[0]}` of row {self.row}"


def parquet(path: Path, columns: Columns, cache_dir: Path) -> PairSource:
    """Local parquet: one file, or all of a folder and the folders below it.

    Args:
        path: the file or folder.
        columns: names of the columns, as far as they are not the usual ones.
        cache_dir: where ``datasets`` keeps its memory-mapped copy.
    """
    import datasets

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    try:
        table = datasets.load_dataset(
            "parquet", data_files=[str(file) for file in files], split="train", cache_dir=str(cache_dir)
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = shown_error(error)
        raise UserError(
            f"`data.path` is {path}, which is not whole parquet of one schema ({reason}); write it again"
        ) from error
    return table_source(table, path.name, columns, path if path.is_dir() else path.parent)


def hub(hub_id: str, config: DataConfig) -> PairSource:
    """A data set of the hub, fetched to the hub's own cache.

    Raises:
        UserError: when it cannot be fetched, or its columns are not known.
    """
    import datasets

    try:
        table = datasets.load_dataset(hub_id, name=config.subset, split=config.split, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"`data.hub_id` is {hub_id}, which could not be fetched ({shown_error(error)}); "
            "check the id and the connection, or fetch it yourself and set `data.path`"
        ) from error
    return table_source(table, hub_id, config.columns, None)


def table_source(table: datasets.Dataset, name: str, columns: Columns, folder: Path | None) -> PairSource:
    """The pairs of a table by its columns: chosen, rejected and prompt, or those of Pick-a-Pic v2, whose ties are left
    out.

    Args:
        table: the rows; images as bytes, ``{bytes, path}``, an Image feature or paths.
        name: how to call it.
        columns: names of the columns, as far as they are not the usual ones.
        folder: what paths in the table are relative to.
    """
    stated = columns.chosen or columns.rejected or "chosen" in table.column_names
    if not stated and set(PICK_A_PIC) <= set(table.column_names):
        return _labelled(table, name, columns.prompt or PICK_A_PIC_PROMPT, folder)
    chosen, rejected, prompt = columns.chosen or "chosen", columns.rejected or "rejected", columns.prompt or "prompt"
    _require(table, {"chosen": chosen, "rejected": rejected, "prompt": prompt})
    chosen_images, rejected_images = _images(table, chosen, folder), _images(table, rejected, folder)
    prompts = table.select_columns([prompt])[:][prompt]
    rows = zip(prompts, chosen_images, rejected_images, strict=True)
    return PairSource(name, [RawPair(f"row {row}", *cells) for row, cells in enumerate(rows)])


def _labelled(table: datasets.Dataset, name: str, prompt: str, folder: Path | None) -> PairSource:
    _require(table, {"prompt": prompt})
    first, second = _images(table, "jpg_0", folder), _images(table, "jpg_1", folder)
    cells = table.select_columns(["label_0", "label_1", prompt])[:]
    pairs, ties = [], 0
    for row, (label_0, label_1, text) in enumerate(zip(cells["label_0"], cells["label_1"], cells[prompt], strict=True)):
        if label_0 is None or label_1 is None or label_0 == label_1:
            ties += 1
            continue
        chosen, rejected = (first, second) if label_0 > label_1 else (second, first)
        pairs.append(RawPair(f"row {row}", text, chosen[row], rejected[row]))
    return PairSource(name, pairs, ties=ties)


def _images(table: datasets.Dataset, column: str, folder: Path | None) -> list[TableImage]:
    """The images of a column, none of them read yet."""
    import datasets

    single = table.select_columns([column])
    if isinstance(single.features[column], datasets.Image):
        single = single.cast_column(column, datasets.Image(decode=False))
    return [TableImage(single, row, folder) for row in range(len(single))]


def _require(table: datasets.Dataset, wanted: dict[str, str]) -> None:
    names = table.column_names
    for setting, column in wanted.items():
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            raise UserError(
                f"the data has no column `{column}`, only {shown(', '.join(names))}; "
                f"set `data.columns.{setting}` to the one with the {setting}" + (f" (`{near[0]}`?)" if near else "")
            )
