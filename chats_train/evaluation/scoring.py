"""Scores of pictures, each asked of its scorer once and kept in scores.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from chats.files import write_text
from chats.words import shown_error

from ..data.images import DECODE_ERRORS
from ..support.errors import UserError
from ..support.jsonl import read_rows
from .benchmark import Benchmark, Parts, Scorer
from .prompts import EvaluationPrompt

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
    it. A benchmark has none for pictures of prompts that are not its own.

    Raises:
        UserError: when a picture cannot be read, or a score is not finite.
    """
    path = folder / SCORES_FILE
    pictures = _own(scorer, pictures)
    rows = read_rows(path)
    kept = {(row["key"], row["fingerprint"]): row["score"] for row in rows if row["scorer"] == scorer.name}
    # Written anew: a kill may have cut off the last line.
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    names = {picture.key: _fingerprint(scorer, picture.prompt) for picture in pictures}
    missing = [picture for picture in pictures if (picture.key, names[picture.key]) not in kept]
    for start in tqdm(
        range(0, len(missing), SCORING_BATCH), f"scoring with {scorer.name}", unit="batch", disable=not missing
    ):
        batch = missing[start : start + SCORING_BATCH]
        values = _scored(scorer, [_opened(picture) for picture in batch], [picture.prompt for picture in batch])
        with path.open("a", encoding="utf-8") as file:
            for picture, value in zip(batch, values, strict=True):
                if not math.isfinite(value["score"]):
                    raise UserError(
                        f"{scorer.name} gives {picture.path} {value['score']}; look at the picture, and check the "
                        "scorer's folder"
                    )
                name = names[picture.key]
                kept[picture.key, name] = value["score"]
                row = {"key": picture.key, "scorer": scorer.name, "fingerprint": name, **value}
                file.write(json.dumps(row) + "\n")
    return {key: kept[key, name] for key, name in names.items()}


def read_parts(scorer: Benchmark, pictures: Sequence[Scored], folder: Path) -> dict[str, Parts]:
    """By picture key what a benchmark kept of each category when it scored them; none where it did not."""
    names = {picture.key: _fingerprint(scorer, picture.prompt) for picture in _own(scorer, pictures)}
    return {
        row["key"]: {category: (met, asked) for category, (met, asked) in row["parts"].items()}
        for row in read_rows(folder / SCORES_FILE)
        if row["scorer"] == scorer.name and names.get(row["key"]) == row["fingerprint"]
    }


def _own(scorer: Scorer, pictures: Sequence[Scored]) -> Sequence[Scored]:
    """The pictures that a scorer scores."""
    if not isinstance(scorer, Benchmark):
        return pictures
    return [picture for picture in pictures if scorer.applies_to(picture.prompt)]


def _fingerprint(scorer: Scorer, prompt: EvaluationPrompt) -> str:
    return scorer.fingerprint_for(prompt) if isinstance(scorer, Benchmark) else scorer.fingerprint


def _scored(scorer: Scorer, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> list[dict[str, Any]]:
    """What a row keeps of each picture: its score, and what else a benchmark says."""
    if isinstance(scorer, Benchmark):
        return [asdict(judgement) for judgement in scorer.judge(images, prompts)]
    return [{"score": score} for score in scorer.score(images, prompts).tolist()]


def _opened(picture: Scored) -> Image.Image:
    try:
        with Image.open(picture.path) as image:
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        raise UserError(
            f"{picture.path} cannot be read as a picture ({shown_error(error)}); remove it, or draw it again"
        ) from error
