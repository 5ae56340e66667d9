"""A student of a pair: steps and session of one LoRA that is to predict, in one pass, what the pair predicts with its
guidance.

Teacher and student take turns on the graphics card: the pair is asked about many pictures at once, and the answers are
kept until their steps. They follow from the draws alone, so it does not matter when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ...chats.distillation import DISTILLATION
from ...chats.draws import VALIDATION_EPOCH, draw, step_pairs
from ...chats.lowrank import LowRank
from .adapters import STUDENT, Adapters
from .curve import HELD_OUT, Measure, Row
from .errors import Errors
from .pair_parts import begin_with
from .preview import Previews
from .saved_run import SavedRun
from .session import Limits, Session
from .steps import EncodedPair, Null, Steps
from .teacher import Teacher

# How many pictures the pair is asked about at once, if a step has not more: some 60 MB of answers for SDXL.
ASKED_AHEAD = 256
NO_BETA = 1.0


@dataclass(frozen=True)
class DistillSettings:
    """What holds for all of a run. The learning rate falls to zero over the ``steps``, by a cosine."""

    rank: int
    layers: str
    steps: int
    learning_rate: float
    accumulate: int
    resolution: int
    seed: int
    cfg: float
    alpha: float
    form: str


class TaughtSteps(Steps):
    """Those of a student; ``asking`` is called before the teacher is asked about so many pictures."""

    objective = DISTILLATION

    def __init__(
        self,
        errors: Errors,
        adapters: Adapters,
        pairs: Sequence[EncodedPair],
        held_out: Sequence[EncodedPair],
        teacher: Teacher,
        *,
        steps: int,
        learning_rate: float,
        asking: Callable[[int], None] = lambda pictures: None,
        **pace: Any,
    ):
        null = Null(teacher.null, 0.0)
        super().__init__(errors, adapters, pairs, held_out, null, learning_rate=learning_rate, beta=NO_BETA, **pace)
        self.teacher, self.steps, self.learning_rate, self.asking = teacher, steps, learning_rate, asking
        # By epoch and pair: what the student is to give, and the preferred member's own error.
        self.taught: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def take(self) -> dict[str, float]:
        self._ask_for(self._coming())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * (1 + math.cos(math.pi * self.step / self.steps)) / 2
        return super().take()

    def measure(self) -> dict[str, float]:
        self._ask_for([(VALIDATION_EPOCH, pair) for pair in self.held_out])
        return super().measure()

    def backward(self, epoch: int, pair: EncodedPair, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        self._ask_for([(epoch, pair)])
        return super().backward(epoch, pair, scale)

    def _coming(self) -> list[tuple[int, EncodedPair]]:
        """The pairs of the next step, and of those after it where they are not known."""
        now = self._of_step(self.step)
        if all((epoch, pair.id) in self.taught for epoch, pair in now):
            return []
        last = min(self.steps, self.step + max(1, ASKED_AHEAD // self.accumulate))
        return [each for step in range(self.step, last) for each in self._of_step(step)]

    def _of_step(self, step: int) -> list[tuple[int, EncodedPair]]:
        return step_pairs(self.pairs, self.seed, step, self.accumulate)

    def _ask_for(self, wanted: Sequence[tuple[int, EncodedPair]]) -> None:
        """Asks the teacher what is not known yet. What was asked before for other steps is forgotten."""
        missing = [(epoch, pair) for epoch, pair in wanted if (epoch, pair.id) not in self.taught]
        if not missing:
            return
        self.asking(len(missing))
        kept = {VALIDATION_EPOCH} | {epoch for epoch, _ in wanted}
        self.taught = {key: each for key, each in self.taught.items() if key[0] in kept}
        model, self.adapters.active = self.errors.model, None
        patcher = model.current_patcher
        try:
            # Twice the first: a session's first passes may add in another order than those after it.
            for epoch, pair in [missing[0], *missing]:
                self.interrupted()
                self.taught[epoch, pair.id] = self._answer(epoch, pair)
        finally:
            # A sampler leaves the model without one.
            model.current_patcher = patcher
        self.errors.load()

    def _answer(self, epoch: int, pair: EncodedPair) -> tuple[Tensor, Tensor]:
        question = self.errors.noised(pair.chosen, self._drawn(epoch, pair))
        asked = self.teacher.ask(pair.chosen, pair.prompt, question)
        taught = replace(question, clean=asked.guided.to(question.noisy))
        return asked.guided.cpu(), self.errors.distance(asked.preferred.to(question.noisy), taught)

    def _drawn(self, epoch: int, pair: EncodedPair) -> Any:
        return draw(self.seed, epoch, pair.id, pair.chosen.latent.shape[1:])

    def _asked(self, epoch: int, pair: EncodedPair) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Tensor]]:
        """The student's error against the teacher, and the preferred member's."""
        question = self.errors.question(pair.chosen, pair.prompt, self._drawn(epoch, pair))
        target, preferred_error = self.taught[epoch, pair.id]
        question = replace(question, clean=target.to(question.noisy))
        return {"chosen": partial(self._error, STUDENT, question)}, {"chosen_reference": preferred_error}


class TaughtSession(Session):
    """Distils a pair in ComfyUI.

    Args:
        teacher: the pair.
        more: what the student begins with, see :class:`.pair_parts.Parts`.
        asking: see :class:`TaughtSteps`.
    """

    names = (STUDENT,)

    def __init__(
        self,
        settings: DistillSettings,
        limits: Limits,
        pairs: list[EncodedPair],
        teacher: Teacher,
        more: Mapping[str, LowRank],
        facts: dict[str, Any],
        folder: Path,
        saved: SavedRun | None,
        report: Callable[[list[Row], Any], None],
        previews: Previews | None = None,
        asking: Callable[[int], None] = lambda pictures: None,
    ):
        null = Null(teacher.null, 0.0)
        super().__init__(settings, limits, pairs, null, facts, folder, saved, report, previews)
        self.teacher, self.more, self.asking = teacher, more, asking

    def _begin(self, adapters: Adapters) -> None:
        begin_with(self.more, adapters)

    def _steps(self, errors: Errors, adapters: Adapters) -> Steps:
        assert isinstance(self.settings, DistillSettings)
        return TaughtSteps(
            errors,
            adapters,
            self.pairs,
            self.held_out,
            self.teacher,
            steps=self.settings.steps,
            asking=self.asking,
            **self._pace(errors),
        )


def learned(row: Row) -> float | None:
    """How much of what the guidance adds to the preferred member the student gives on the held-out pairs, as a share of
    the squared error."""
    loss, whole = (row.get(HELD_OUT + name) for name in ("loss", "preferred_error"))
    return 1 - loss / whole if loss is not None and whole else None


LEARNED = Measure(
    learned, "guidance learned (held-out)", lambda row: f"learned (held-out): {learned(row) or 0:.0%}", 0.0
)
