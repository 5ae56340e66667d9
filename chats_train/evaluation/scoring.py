"""Scores of pictures, each asked of its scorer once and kept in scores.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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


def score_pictures(
    scorer: Scorer, pictures: Sequence[Scored], folder: Path, peers: Peers | None = None
) -> dict[str, float]:
    """Scores by picture key; those in scores.jsonl of the same fingerprint are taken from there, new ones are added to
    it. A benchmark has none for pictures of prompts that are not its own.

    Args:
        pictures: the same in all processes.
        peers: share the work; None for this process alone. The main one writes.

    Returns:
        the scores in the main process, and nothing in the others.

    Raises:
        UserError: when a picture cannot be read, or a score is not finite.
    """
    peers, pictures = peers or Peers(), _own(scorer, pictures)
    names = {picture.key: _fingerprint(scorer, picture.prompt) for picture in pictures}
    kept = _kept(scorer, folder, names) if peers.is_main else {}
    # Which are scored together follows from all of them, not from what is kept: the bits of a score can depend on that.
    batches = [pictures[start : start + SCORING_BATCH] for start in range(0, len(pictures), SCORING_BATCH)]
    missing = peers.told(
        lambda: [place for place, batch in enumerate(batches) if not all(picture.key in kept for picture in batch)]
    )

    def score(place: int) -> list[dict[str, Any]]:
        return _scored(scorer, batches[place])

    shown = peers.is_main and bool(missing)
    results = tqdm(
        peers.results(score, missing), f"scoring with {scorer.name}", len(missing), unit="batch", disable=not shown
    )
    for number, values in enumerate(results):
        rows = [
            {"key": picture.key, "scorer": scorer.name, "fingerprint": names[picture.key], **value}
            for picture, value in zip(batches[missing[number]], values, strict=True)
            if picture.key not in kept
        ]
        kept |= {row["key"]: row["score"] for row in rows}
        with (folder / SCORES_FILE).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return {key: kept[key] for key in names} if peers.is_main else {}


def read_parts(scorer: Benchmark, pictures: Sequence[Scored], folder: Path) -> dict[str, Parts]:
    """By picture key what a benchmark kept of each category when it scored them; none where it did not."""
    names = {picture.key: _fingerprint(scorer, picture.prompt) for picture in _own(scorer, pictures)}
    return {
        row["key"]: {category: (met, asked) for category, (met, asked) in row["parts"].items()}
        for row in read_rows(folder / SCORES_FILE)
        if row["scorer"] == scorer.name and names.get(row["key"]) == row["fingerprint"]
    }


def _kept(scorer: Scorer, folder: Path, names: Mapping[str, str]) -> dict[str, float]:
    """The scorer's scores of before, of the fingerprints that pictures have now."""
    rows = read_rows(folder / SCORES_FILE)
    # Written anew: a kill may have cut off the last line.
    write_text(folder / SCORES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return {
        row["key"]: row["score"]
        for row in rows
        if row["scorer"] == scorer.name and names.get(row["key"]) == row["fingerprint"]
    }


def _own(scorer: Scorer, pictures: Sequence[Scored]) -> Sequence[Scored]:
    """The pictures that a scorer scores."""
    if not isinstance(scorer, Benchmark):
        return pictures
    return [picture for picture in pictures if scorer.applies_to(picture.prompt)]


def _fingerprint(scorer: Scorer, prompt: EvaluationPrompt) -> str:
    return scorer.fingerprint_for(prompt) if isinstance(scorer, Benchmark) else scorer.fingerprint


def _scored(scorer: Scorer, pictures: Sequence[Scored]) -> list[dict[str, Any]]:
    """What a row keeps of each picture: its score, and what else a benchmark says."""
    images, prompts = [_opened(picture) for picture in pictures], [picture.prompt for picture in pictures]
    if isinstance(scorer, Benchmark):
        values = [asdict(judgement) for judgement in scorer.judge(images, prompts)]
    else:
        values = [{"score": score} for score in scorer.score(images, prompts).tolist()]
    for picture, value in zip(pictures, values, strict=True):
        if not math.isfinite(value["score"]):
            raise UserError(
                f"{scorer.name} gives {picture.path} {value['score']}; look at the picture, and check the scorer's "
                "folder"
            )
    return values


def _opened(picture: Scored) -> Image.Image:
    try:
        with Image.open(picture.path) as image:
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        raise UserError(
            f"{picture.path} cannot be read as a picture ({shown_error(error)}); remove it, or draw it again"
        ) from error
