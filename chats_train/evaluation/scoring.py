"""Scores of pictures, each asked of its scorer once and kept in scores.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from chats.files import write_text
from chats.words import shown_error

from ..data.images import DECODE_ERRORS
from ..runs.peers import Peers
from ..support.errors import UserError
from ..support.jsonl import read_rows
from .prompts import EvaluationPrompt
from .scorers import Scorer

SCORES_FILE = "scores.jsonl"
SCORING_BATCH = 8


class Scored(Protocol):
    """A picture in a file; ``key`` changes with whatever it shows and with its prompt."""

    @property
    def key(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def prompt(self) -> EvaluationPrompt: ...


def score_pictures(
    scorer: Scorer, pictures: Sequence[Scored], folder: Path, peers: Peers | None = None
) -> dict[str, float]:
    """Scores by picture key; those in scores.jsonl of the same fingerprint are taken from there, new ones are added to
    it.

    Args:
        pictures: the same in all processes.
        peers: share the work; None for this process alone. The main one writes.

    Returns:
        the scores in the main process, and nothing in the others.

    Raises:
        UserError: when a picture cannot be read, or a score is not finite.
    """
    peers = peers or Peers()
    kept = _kept(scorer, folder) if peers.is_main else {}
    missing = peers.told(lambda: [place for place, picture in enumerate(pictures) if picture.key not in kept])
    batches = [missing[start : start + SCORING_BATCH] for start in range(0, len(missing), SCORING_BATCH)]

    def score(batch: list[int]) -> list[dict[str, Any]]:
        return _scored(scorer, [pictures[place] for place in batch])

    shown = peers.is_main and bool(missing)
    results = tqdm(
        peers.results(score, batches), f"scoring with {scorer.name}", len(batches), unit="batch", disable=not shown
    )
    for number, values in enumerate(results):
        keys = [pictures[place].key for place in batches[number]]
        rows = [
            {"key": key, "scorer": scorer.name, "fingerprint": scorer.fingerprint, **value}
            for key, value in zip(keys, values, strict=True)
        ]
        kept |= {row["key"]: row["score"] for row in rows}
        with (folder / SCORES_FILE).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return {picture.key: kept[picture.key] for picture in pictures} if peers.is_main else {}


def _kept(scorer: Scorer, folder: Path) -> dict[str, float]:
    """The scorer's scores of before."""
    rows = read_rows(folder / SCORES_FILE)
    # Written anew: a kill may have cut off the last line.
    write_text(folder / SCORES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return {
        row["key"]: row["score"]
        for row in rows
        if (row["scorer"], row["fingerprint"]) == (scorer.name, scorer.fingerprint)
    }


def _scored(scorer: Scorer, pictures: Sequence[Scored]) -> list[dict[str, Any]]:
    """What a row keeps of each picture."""
    values = scorer.score([_opened(picture) for picture in pictures], [picture.prompt for picture in pictures]).tolist()
    for picture, value in zip(pictures, values, strict=True):
        if not math.isfinite(value):
            raise UserError(
                f"{scorer.name} gives {picture.path} {value}; look at the picture, and check the scorer's folder"
            )
    return [{"score": value} for value in values]


def _opened(picture: Scored) -> Image.Image:
    try:
        with Image.open(picture.path) as image:
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        raise UserError(
            f"{picture.path} cannot be read as a picture ({shown_error(error)}); remove it, or draw it again"
        ) from error
