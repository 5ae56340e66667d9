"""Data sets as ComfyUI leaves them: candidates drawn for prompts, and votes on them."""

from __future__ import annotations

import itertools
from pathlib import Path

from pictures import png

from chats.taste.dataset import TasteDataset

ratings = itertools.count()


def draw(folder: Path, **prompts: int) -> TasteDataset:
    """So many candidates for each prompt, pictures of noise."""
    dataset = TasteDataset(folder)
    seeds = itertools.count(len(dataset.candidates()))
    for prompt, count in prompts.items():
        for _ in range(count):
            dataset.add_candidate(png(next(seeds)), prompt)
    return dataset


def ids(dataset: TasteDataset, prompt: str) -> list[str]:
    """The candidates of a prompt as they were drawn."""
    return [name for name, candidate in dataset.candidates().items() if candidate.prompt == prompt]


def vote(dataset: TasteDataset, left: str, right: str, choice: str = "left", rater: str = "default") -> str:
    """A vote that stands; its id."""
    name = f"{next(ratings):016x}"
    assert dataset.vote(name, left, right, choice, rater)
    return name
