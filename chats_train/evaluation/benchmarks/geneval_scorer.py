"""GenEval as a scorer: 1 for a picture that fulfils its prompt, 0 for one that does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import torch
from PIL import Image

from ..benchmark import Benchmark, Judgement
from ..prompts import EvaluationPrompt
from ..weights import folder_digest
from .colours import ColourNamer
from .geneval import CATEGORIES, find_faults, keep_confident, read_task
from .segmenter import Segmenter

# Part of every fingerprint: raise it when the same picture would be judged otherwise than before.
VERSION = 1


class GenEvalScorer(Benchmark):
    """Judges pictures of GenEval's prompts by the objects that a segmenter finds and the colours that CLIP names.

    Args:
        segmenter, clip: folders or hub ids.

    Raises:
        UserError: when one of them cannot be used.
    """

    name, categories, mean_of_categories = "geneval", CATEGORIES, True
    wanted_prompts = "GenEval's evaluation_metadata.jsonl"

    def __init__(self, segmenter: str, clip: str, device: torch.device | str):
        self.segmenter, self.colours = Segmenter(segmenter, device), ColourNamer(clip, device)
        self.notes = [
            f"GenEval: objects by Mask2Former ({segmenter}), colours by CLIP ({clip}); the overall score is the mean "
            "of the categories"
        ]

    @cached_property
    def fingerprint(self) -> str:
        return folder_digest(self.segmenter.folder, f"{self.name} {VERSION} {self.colours.fingerprint}")

    def applies_to(self, prompt: EvaluationPrompt) -> bool:
        return read_task(prompt) is not None

    def fingerprint_for(self, prompt: EvaluationPrompt) -> str:
        asked = {name: prompt.metadata.get(name) for name in ("tag", "include", "exclude")}
        return hashlib.sha256(f"{self.fingerprint} {json.dumps(asked, sort_keys=True)}".encode()).hexdigest()

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[EvaluationPrompt]) -> list[Judgement]:
        return [self._judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _judge(self, image: Image.Image, prompt: EvaluationPrompt) -> Judgement:
        task = read_task(prompt)
        assert task is not None
        objects = keep_confident(self.segmenter.detect(image), task.category)
        faults = find_faults(task, objects, lambda name, found: self.colours.name(image, name, found))
        right = float(not faults)
        seen = {
            name: [[*each.box, round(each.confidence, 4)] for each in found] for name, found in objects.items() if found
        }
        return Judgement(right, {task.category: (right, 1.0)}, {"faults": faults, "objects": seen})
