"""Rated data sets to test with: pictures are a few bytes, since only their names count."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from chats.taste.dataset import TasteDataset
from chats.taste.log import Log
from chats.taste.names import CANDIDATES, IMAGES
from chats.taste.records import Candidate

RATER = "default"


def drawn(folder: Path, *counts: int, seed: int = 0) -> TasteDataset:
    """A data set with so many candidates for `prompt 0`, `prompt 1` …, as adding them one by one leaves it."""
    (folder / IMAGES).mkdir(parents=True)
    rows = []
    for prompt, number in ((prompt, number) for prompt, count in enumerate(counts) for number in range(count)):
        png = f"{prompt} {number}".encode()
        name = hashlib.sha256(png).hexdigest()[:16]
        (folder / IMAGES / f"{name}.png").write_bytes(png)
        rows.append(Candidate(name, f"prompt {prompt}", (number,), ("m.safetensors",), 8, 8).row())
    Log(folder / CANDIDATES).append(rows)
    return TasteDataset(folder, random.Random(seed))


def rating(number: int) -> str:
    return f"{number:016x}"


def ids(one: TasteDataset, prompt: int = 0) -> list[str]:
    return [name for name, candidate in one.candidates().items() if candidate.prompt == f"prompt {prompt}"]


def answer_all(one: TasteDataset, choose, rater: str = RATER, most: int = 1000) -> int:
    """Answers every pair that a rater is asked for; how many there were."""
    for number in range(most):
        shown = one.next_pair(rater)
        if shown is None:
            return number
        name = f"{random.Random(f'{rater} {number}').getrandbits(64):016x}"
        assert one.vote(name, shown.left, shown.right, choose(shown), rater, 1.0, shown.repeat)
    raise AssertionError(f"more than {most} pairs")
