"""Scores of pictures, each asked of its scorer once and kept in scores.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from chats.files import write_text
from chats.words import shown_error

from ..data.images import DECODE_ERRORS
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


def score_pictures(scorer: Scorer, pictures: Sequence[Scored], folder: Path) -> dict[str, float]:
    """Scores by picture key; those in scores.jsonl of the same fingerprint are taken from there, new ones are added to
    it.

    Raises:
        UserError: when a picture cannot be read, or a score is not finite.
    """
    path = folder / SCORES_FILE
    rows = read_rows(path)
    kept = {
        row["key"]: row["score"]
        for row in rows
        if (row["scorer"], row["fingerprint"]) == (scorer.name, scorer.fingerprint)
    }
    # Written anew: a kill may have cut off the last line.
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    missing = [picture for picture in pictures if picture.key not in kept]
    for start in tqdm(
        range(0, len(missing), SCORING_BATCH), f"scoring with {scorer.name}", unit="batch", disable=not missing
    ):
        batch = missing[start : start + SCORING_BATCH]
        values = scorer.score([_opened(picture) for picture in batch], [picture.prompt for picture in batch]).tolist()
        with path.open("a", encoding="utf-8") as file:
            for picture, value in zip(batch, values, strict=True):
                if not math.isfinite(value):
                    raise UserError(
                        f"{scorer.name} gives {picture.path} {value}; look at the picture, and check the scorer's "
                        "folder"
                    )
                kept[picture.key] = value
                row = {"key": picture.key, "scorer": scorer.name, "fingerprint": scorer.fingerprint, "score": value}
                file.write(json.dumps(row) + "\n")
    return {picture.key: kept[picture.key] for picture in pictures}


def _opened(picture: Scored) -> Image.Image:
    try:
        with Image.open(picture.path) as image:
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        raise UserError(
            f"{picture.path} cannot be read as a picture ({shown_error(error)}); remove it, or draw it again"
        ) from error
