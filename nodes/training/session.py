"""One go at a run: from where it stands to its end, to its time, or to where it is stopped, and what is kept of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...chats.draws import VALIDATION_EPOCH, draw, held_out
from ...chats.pair import PredictionType
from ...chats.words import shown_error
from .adapters import MEMBERS, Adapters, trained_bytes
from .checkpointing import blocks_of, checkpointed
from .curve import HELD_OUT
from .errors import EncodedImage, Errors, Question, prediction_type
from .in_float32 import in_float32
from .preview import Previews
from .saved_run import SavedRun, save_run
from .self_check import check_gradient, settle
from .steps import FP16_SCALE, EncodedPair, Null, Steps
from .within_comfyui import with_loaded

# One pair in so many is measured and not trained on.
HELD_OUT_OF = 10
STEPS_BETWEEN_MEASUREMENTS = 25
# Latents of a picture's part each way.
CHECKED_SIDE = 64
SECONDS_BETWEEN_SAVES = 180.0


@dataclass(frozen=True)
class Settings:
    """What holds for all of a run."""

    rank: int
    layers: str
    learning_rate: float
    accumulate: int
    beta: float
    null_prompt_prob: float
    resolution: int
    seed: int


class AnySettings(Protocol):
    """What every kind of session is set to."""

    @property
    def rank(self) -> int: ...

    @property
    def layers(self) -> str: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Limits:
    """Where a go ends: after so many ``steps`` in all, or after so many ``seconds`` of this go."""

    steps: int
    seconds: float


class Session:
    """Trains a run in ComfyUI: here a pair.

    Args:
        facts: of the run, kept with its state.
        folder: of the run.
        saved: where it stands; None begins it.
        report: called after each step with the history, and a preview where one was drawn.
        previews: of the first held-out prompt, or of the first; None draws none.
    """

    # The LoRAs that train.
    names: ClassVar[tuple[str, ...]] = MEMBERS

    def __init__(
        self,
        settings: AnySettings,
        limits: Limits,
        pairs: list[EncodedPair],
        null: Null,
        facts: dict[str, Any],
        folder: Path,
        saved: SavedRun | None,
        report: Callable[[list[dict[str, float]], Any], None],
        previews: Previews | None = None,
    ):
        self.settings, self.limits, self.null, self.facts, self.folder = settings, limits, null, facts, folder
        self.saved, self.report, self.previews = saved, report, previews
        self.pairs, self.held_out = held_out(pairs, settings.seed, len(pairs) // HELD_OUT_OF)
        self.history = list(saved.history) if saved else []

    def train(self, model: ModelPatcher) -> SavedRun:
        """Where the run stands afterwards, which is on the disk too.

        Raises:
            GradientIsWrong: before the first step, for a model whose gradients are not right.
            NotFinite: for a loss or gradient that is no number; the steps before it are kept.
            NotWritten: when the disk does not take the state.
        """
        largest = max((pair.chosen.latent for pair in self.pairs), key=torch.numel)
        settings, network = self.settings, model.model.diffusion_model
        trained = trained_bytes(network, settings.rank, settings.layers, len(self.names))
        with_loaded(model, self.pairs[0].prompt, largest, self._work, trained)
        assert self.saved is not None
        return self.saved

    def _work(self, errors: Errors) -> None:
        network, settings = errors.model.diffusion_model, self.settings
        adapters = Adapters(network, settings.rank, settings.layers, settings.seed, self.names)
        adapters.to(errors.device)
        steps = self._steps(errors, adapters)
        anchor = torch.zeros(1, device=errors.device, requires_grad=True)
        with adapters.installed(), checkpointed(blocks_of(network), anchor):
            if self.saved is None or self.saved.step == 0:
                self._check_gradient(steps, self.pairs[0])
            if self.saved is None:
                self._begin(adapters)
            else:
                steps.load_state(self.saved.tensors, self.saved.step)
            settle(steps, self._question(steps, self.pairs[0], self.pairs[0].chosen))
            try:
                self._take_steps(steps)
            finally:
                # Whatever ended it: the steps that were taken are whole.
                self._save(steps)

    def _take_steps(self, steps: Steps) -> None:
        started = saved_at = time.monotonic()
        self._measure(steps)
        while steps.step < self.limits.steps:
            self.history.append(steps.take())
            self._measure(steps)
            self.report(self.history, self._preview(steps))
            now = time.monotonic()
            if self.limits.seconds and now - started >= self.limits.seconds:
                return
            if now - saved_at >= SECONDS_BETWEEN_SAVES:
                self._save(steps)
                saved_at = time.monotonic()

    def _preview(self, steps: Steps) -> Any:
        if self.previews is None:
            return None
        pair = (self.held_out or self.pairs)[0]
        return self.previews.after(steps.step, steps.errors, steps.adapters, pair, self.null.prompt)

    def _measure(self, steps: Steps) -> None:
        """Adds what the held-out pairs say to the last row where that is due; a run that was stopped while it was
        measured is measured when it goes on."""
        due = steps.step % STEPS_BETWEEN_MEASUREMENTS == 0 or steps.step == self.limits.steps
        if steps.step and due and not any(key.startswith(HELD_OUT) for key in self.history[-1]):
            measured = {HELD_OUT + name: value for name, value in steps.measure().items()}
            self.history[-1] |= measured and {**measured, HELD_OUT + "pairs": float(len(self.held_out))}

    def _save(self, steps: Steps) -> None:
        if self.saved is None or self.saved.step != steps.step:
            tensors = {name: value.cpu().clone() for name, value in steps.state().items()}
            run = SavedRun(steps.step, self.facts, list(self.history), tensors)
            save_run(self.folder, run)
            self.saved = run

    def _begin(self, adapters: Adapters) -> None:
        """Gives the LoRAs of a new run the weights that they begin with, after the check, which needs those that change
        nothing."""

    def _check_gradient(self, steps: Steps, pair: EncodedPair) -> None:
        """In float32 and on a part of a picture, which costs less memory than a step; where a network cannot compute
        in that, as it trains."""
        part, model = pair.chosen.part(CHECKED_SIDE), steps.errors.model
        try:
            with in_float32(model):
                check_gradient(steps, self._question(steps, pair, part), half_precision=False)
        except RuntimeError as error:
            logging.info("CHATS: the gradient is checked as the model computes (%s)", shown_error(error))
            half = _computed_in(model) != torch.float32
            check_gradient(steps, self._question(steps, pair, part), half_precision=half)

    def _question(self, steps: Steps, pair: EncodedPair, image: EncodedImage) -> Question:
        drawn = draw(self.settings.seed, VALIDATION_EPOCH, pair.id, image.latent.shape[1:])
        return steps.errors.question(image, pair.prompt, drawn)

    def _steps(self, errors: Errors, adapters: Adapters) -> Steps:
        settings = self.settings
        assert isinstance(settings, Settings)
        return Steps(
            errors,
            adapters,
            self.pairs,
            self.held_out,
            self.null,
            beta=settings.beta,
            **self._pace(errors),
        )

    def _pace(self, errors: Errors) -> dict[str, Any]:
        """The arguments that every kind of steps has."""
        settings = self.settings
        return {
            "learning_rate": settings.learning_rate,
            "accumulate": settings.accumulate,
            "seed": settings.seed,
            "scale": FP16_SCALE if _computed_in(errors.model) == torch.float16 else 1.0,
            "interrupted": comfy.model_management.throw_exception_if_processing_interrupted,
        }


def predicts(model: ModelPatcher) -> PredictionType:
    """What a MODEL predicts, with the nodes on it; see :func:`.errors.prediction_type`."""
    return prediction_type(model.get_model_object("model_sampling"))


def _computed_in(model: Any) -> torch.dtype:
    """The dtype of a network's activations."""
    return model.manual_cast_dtype or model.get_dtype()
