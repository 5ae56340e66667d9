"""DPG-Bench as a scorer: the share of a prompt's questions that a model answers with yes when it sees the picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from ...support.errors import UserError
from ..benchmark import Benchmark, Judgement
from ..prompts import EvaluationPrompt
from .answering import is_yes, open_answerer
from .dpg import CATEGORIES, Question, category_parts, lost_parents, read_questions, score_answers

# Part of every fingerprint: raise it when the same picture would be judged otherwise than before.
VERSION = 1


class DPGScorer(Benchmark):
    """Asks a model the benchmark's questions. Pictures are scored singly: the benchmark cuts its 2 × 2 grids into
    pictures, too, and takes their mean.

    Args:
        model: a folder or a hub id.
        questions: the benchmark's dpg_bench.csv.

    Raises:
        UserError: when one of them cannot be used.
    """

    name, mean_of_categories = "dpg", False
    wanted_prompts = "DPG-Bench's folder of prompts, one text file each"

    def __init__(self, model: str, questions: str, device: torch.device | str):
        self.answerer = open_answerer(model, device)
        self.path = Path(questions).expanduser()
        self.questions = read_questions(self.path)
        asked = {question.category: None for each in self.questions.values() for question in each}
        self.categories: tuple[str, ...] = tuple(dict.fromkeys([*CATEGORIES, *asked]))
        self.notes = [
            f"DPG-Bench: answered by {self.answerer.kind} ({model}), where the benchmark has mPLUG-large; scores of "
            "different models cannot be compared"
        ]
        if lost := sum(map(lost_parents, self.questions.values())):
            self.notes.append(f"DPG-Bench: {lost} dependencies name a question that is not there, and are left out")

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.name} {VERSION} {self.answerer.fingerprint}"

    def applies_to(self, prompt: EvaluationPrompt) -> bool:
        item = prompt.metadata.get("item_id")
        if item is not None and item not in self.questions:
            raise UserError(
                f"`--prompts`: {item}.txt has no question in {self.path}; take it out, or give the table that belongs "
                "to these prompts"
            )
        return item is not None

    def fingerprint_for(self, prompt: EvaluationPrompt) -> str:
        asked = repr([astuple(question) for question in self._asked(prompt)])
        return hashlib.sha256(f"{self.fingerprint} {asked}".encode()).hexdigest()

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> list[Judgement]:
        return [self._judge(image, self._asked(prompt)) for image, prompt in zip(images, prompts, strict=True)]

    def _asked(self, prompt: EvaluationPrompt) -> tuple[Question, ...]:
        return self.questions[prompt.metadata["item_id"]]

    def _judge(self, image: Image.Image, questions: Sequence[Question]) -> Judgement:
        answers = self.answerer.answer(image, [question.text for question in questions])
        said = {question.number: answer for question, answer in zip(questions, answers, strict=True)}
        yes = {number: is_yes(answer) for number, answer in said.items()}
        evidence = {"answers": {str(number): answer for number, answer in said.items()}}
        return Judgement(score_answers(questions, yes), category_parts(questions, yes), evidence)
