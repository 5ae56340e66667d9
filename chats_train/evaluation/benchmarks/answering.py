"""Models that answer questions about a picture: BLIP for visual question answering, or any chat model that transformers
opens as AutoModelForImageTextToText."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...support.errors import UserError
from ..weights import LOADING, folder_digest, open_folder, read_model_config, require_safetensors, require_whole

NAME = "dpg's model"
WANTED = (
    "a BlipForQuestionAnswering such as Salesforce/blip-vqa-large, or a chat model that takes pictures, in "
    "transformers' format"
)
# Asked at once, all about one picture: what an answer is does not depend on other pictures.
QUESTIONS_AT_ONCE = 8
# A chat model is told to answer so; enough for a word before it.
REQUEST, NEW_TOKENS = "Answer with yes or no.", 8


class Answerer(ABC):
    """A model that answers questions. Its weights are loaded when first needed.

    Args:
        kind: `model_type` of its config.json.
    """

    def __init__(self, folder: Path, kind: str, device: torch.device | str):
        self.folder, self.kind, self.device = folder, kind, torch.device(device)

    @cached_property
    def fingerprint(self) -> str:
        return folder_digest(self.folder, type(self).__name__)

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        try:
            return AutoProcessor.from_pretrained(self.folder, local_files_only=True)
        except ImportError as error:
            raise UserError(
                f"`--scorer` {NAME} is {self.folder}, whose processor wants a package that is missing ({error}); "
                "install it"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"`--scorer` {NAME} is {self.folder}, whose processor cannot be read ({error}); download it again"
            ) from error

    @torch.no_grad()
    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """The answers to questions about a picture, as the model words them."""
        found: dict[str, str] = {}
        for together in self._batches(list(dict.fromkeys(questions))):
            answers = self._answer(image, together)
            found.update(zip(together, (each.strip() for each in answers), strict=True))
        return [found[question] for question in questions]

    def _batches(self, questions: list[str]) -> Iterator[list[str]]:
        """The questions that are asked at once."""
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            yield questions[start : start + QUESTIONS_AT_ONCE]

    @abstractmethod
    def _answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """The answers to a few questions about a picture."""


class BlipAnswerer(Answerer):
    """BLIP for visual question answering, in float32."""

    @cached_property
    def model(self) -> Any:
        from transformers import BlipForQuestionAnswering

        model, loading = BlipForQuestionAnswering.from_pretrained(self.folder, **LOADING)
        require_whole(NAME, self.folder, loading["missing_keys"])
        return model.eval().to(self.device)

    def _batches(self, questions: list[str]) -> Iterator[list[str]]:
        """Questions of one length: transformers' decoder of BLIP sees the padding of the shorter ones, too, and would
        answer otherwise than when asked alone."""
        by_length: dict[int, list[str]] = {}
        for question in questions:
            by_length.setdefault(len(self.processor.tokenizer(question).input_ids), []).append(question)
        for own in by_length.values():
            yield from super()._batches(own)

    def _answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        pictures = [image.convert("RGB")] * len(questions)
        inputs = self.processor(images=pictures, text=list(questions), return_tensors="pt")
        tokens = self.model.generate(**inputs.to(self.device), do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS)
        # The first token is the one that the decoder begins with.
        return list(self.processor.batch_decode(tokens[:, 1:], skip_special_tokens=True))


class ChatAnswerer(Answerer):
    """A chat model that takes pictures, in the precision of its weights; it takes the likeliest word every time."""

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForImageTextToText

        try:
            model, loading = AutoModelForImageTextToText.from_pretrained(self.folder, torch_dtype="auto", **LOADING)
        except ValueError as error:
            raise UserError(
                f"`--scorer` {NAME} is {self.folder}, whose `model_type` {self.kind} transformers does not open as a "
                f"model of pictures and text; give {WANTED}"
            ) from error
        require_whole(NAME, self.folder, loading["missing_keys"])
        return model.eval().to(self.device)

    def _answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        if not getattr(self.processor, "chat_template", None):
            raise UserError(f"`--scorer` {NAME} is {self.folder}, which has no chat template; give {WANTED}")
        self.processor.tokenizer.padding_side = "left"
        inputs = self.processor(
            images=[[image.convert("RGB")] for _ in questions],
            text=[self._prompt(question) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self.device, self.model.dtype)
        tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS)
        return list(self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def _prompt(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": f"{question} {REQUEST}"}]
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def open_answerer(source: str, device: torch.device | str) -> Answerer:
    """The model that a folder or a hub id names.

    Raises:
        UserError: when it cannot be used.
    """
    folder = open_folder(NAME, source)
    if (folder / "configuration.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"`--scorer` {NAME} is {folder}, a model of the package modelscope, such as the benchmark's own mPLUG, "
            f"whose weights are pickled, and those are never opened; give {WANTED}"
        )
    kind = str(read_model_config(NAME, folder, WANTED).get("model_type"))
    require_safetensors(NAME, folder)
    return (BlipAnswerer if kind == "blip" else ChatAnswerer)(folder, kind, device)


def is_yes(answer: str) -> bool:
    """Whether an answer is yes: its first word, without case and punctuation. What is neither yes nor no counts as no,
    as in the published scorer."""
    words = answer.casefold().split()
    return bool(words) and words[0].strip(".,:;!*\"'") == "yes"
