"""What a scorer is, and what a benchmark is beside: it knows what its own prompts ask for, and reports categories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from .prompts import EvaluationPrompt


class Scorer(Protocol):
    """Anything that gives pictures a number, more being better.

    Attributes:
        name: of its column.
        fingerprint: changes with whatever its scores depend on beside the picture and the prompt's text; a kept score
            of another fingerprint is not used again.
    """

    name: str

    @property
    def fingerprint(self) -> str: ...

    def score(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> Tensor:
        """A score for each picture and its prompt, [batch]."""
        ...


# Of a picture by category: how many of its requirements are met, and how many there are.
Parts = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Judgement:
    """What a benchmark says of a picture.

    Attributes:
        score: its share of what was asked for, 0 to 1.
        parts: by category.
        evidence: what it was judged by, as JSON holds it.
    """

    score: float
    parts: Parts
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(ABC):
    """A scorer of its own prompts alone, which reports categories.

    Attributes:
        categories: in the order of its tables.
        mean_of_categories: whether its overall score is the mean of the categories', else that of the pictures'.
        wanted_prompts: what to give as `--prompts`, as errors call it.
        notes: sentences for the report.
    """

    name: str
    categories: tuple[str, ...]
    mean_of_categories: bool
    wanted_prompts: str
    notes: list[str]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the models, and with how they are asked."""

    @abstractmethod
    def applies_to(self, prompt: EvaluationPrompt) -> bool:
        """Whether a prompt is one of its own.

        Raises:
            UserError: when it is, but what it asks for cannot be read.
        """

    @abstractmethod
    def fingerprint_for(self, prompt: EvaluationPrompt) -> str:
        """The fingerprint with all that is read of a prompt's metadata."""

    @abstractmethod
    def judge(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> list[Judgement]:
        """A judgement of each picture and its prompt, in which no other picture of the batch has a part."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> Tensor:
        """The judgements' scores, [batch]."""
        return torch.tensor([judgement.score for judgement in self.judge(images, prompts)])
