"""A data set that was drawn and rated in ComfyUI: its pairs follow from its ratings, whatever was derived before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from chats.taste.dataset import TasteDataset
from chats.taste.names import CANDIDATES, IMAGES, METADATA, RATINGS

from ..settings.config import Columns
from ..support.amounts import counted
from ..support.errors import UserError
from .folders import metadata_folder
from .pairs import Opening, opening_of

PARTS = (IMAGES, CANDIDATES, RATINGS, METADATA)


def rated_folder(folder: Path, columns: Columns, without: Iterable[Path] = ()) -> Opening:
    """The pairs that ratings decided, from metadata.jsonl, which is written anew where the ratings say something else.
    What else lies in the folder is no data, and is not counted as left out.

    Args:
        folder: `chats/<dataset>` in ComfyUI's output folder.
        columns: as :func:`.folders.metadata_folder` takes them.
        without: folders below it that are no part of the data.

    Raises:
        UserError: when no pair is decided yet.
        TasteError: when metadata.jsonl is somebody's own, or is stale and cannot be written.
    """
    dataset = TasteDataset(folder)
    said = [_ratings(dataset), *dataset.notes()]
    if not dataset.derive():
        raise UserError(
            f"`data.path` is {folder}, whose ratings make no pair yet ({'; '.join(said)}); rate more in ComfyUI, or "
            "let a scorer rate (`python -m chats_train rate`)"
        )
    # The ratings say more than the derived file shows.
    return opening_of(replace(metadata_folder(folder, columns, without).read(), remarks=said, state=None))


def rated_near(path: Path) -> list[Path]:
    """The rated data sets one level away from a path that is none: the one that it is a part of, or else those in
    it."""
    if path.name in PARTS and (path.parent / CANDIDATES).is_file():
        return [path.parent]
    return sorted(file.parent for file in path.glob(f"*/{CANDIDATES}")) if path.is_dir() else []


def _ratings(dataset: TasteDataset) -> str:
    """How many pairs were rated, and what came of them."""
    counts, there = dataset.counts(), dataset.candidates().keys()
    votes = [vote for vote in dataset.votes() if there >= set(vote.pair)]
    drawn = f"{counted(counts['candidates'], 'candidate')} for {counted(counts['prompts'], 'prompt')}"
    rated, told = {vote.pair for vote in votes}, {vote.pair for vote in votes if vote.choice != "skip"}
    if not rated:
        return f"{drawn}, none rated"
    decided = len(dataset.pairs())
    return (
        f"{drawn}, {counted(len(rated), 'pair')} rated: {decided} decided, {len(told) - decided} tied or rated both "
        f"ways, {len(rated) - len(told)} skipped"
    )
