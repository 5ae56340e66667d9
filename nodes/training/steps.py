"""The steps of a run: pairs in, LoRAs changed, by the objective, draws and gradients of ``chats/``.

A micro-batch is one pair, and one graph is alive at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...chats.backpropagation import one_graph_at_a_time
from ...chats.draws import VALIDATION_EPOCH, draw, step_pairs
from ...chats.objective import OBJECTIVES, PairErrors
from .adapters import MEMBERS, Adapters
from .errors import Conditioning, EncodedImage, Errors, Question

OBJECTIVE = OBJECTIVES["chats"]
PREFERRED, DISPREFERRED = MEMBERS
# The headless trainer's defaults.
MAX_GRAD_NORM, WEIGHT_DECAY = 1.0, 0.0
# fp16 holds nothing below 6e-8: there, gradients are computed this much larger, or less where that is too much.
FP16_SCALE = 2.0**16


@dataclass(frozen=True)
class EncodedPair:
    """A pair as it is trained on; ``id`` is that of its contents."""

    id: str
    chosen: EncodedImage
    rejected: EncodedImage
    prompt: Conditioning


@dataclass(frozen=True)
class Null:
    """The null prompt, encoded, and how often the dispreferred model sees it instead of the prompt."""

    prompt: Conditioning
    probability: float


class NotFinite(ArithmeticError):
    """A loss or gradient is NaN or infinite; the weights are those of the step before."""


class Steps:
    """What trains and how it takes a step: here the two members of a pair.

    Args:
        errors: of the MODEL that the adapters are on.
        pairs: to train on; ``held_out`` are measured only.
        null: see :class:`Null`.
        accumulate: pairs in a step.
        interrupted: called between pairs; raises to stop.
    """

    objective = OBJECTIVE

    def __init__(
        self,
        errors: Errors,
        adapters: Adapters,
        pairs: Sequence[EncodedPair],
        held_out: Sequence[EncodedPair],
        null: Null,
        *,
        learning_rate: float,
        accumulate: int,
        beta: float,
        seed: int,
        scale: float = 1.0,
        interrupted: Callable[[], None] = lambda: None,
    ):
        self.errors, self.adapters, self.pairs, self.held_out, self.null = errors, adapters, pairs, held_out, null
        self.accumulate, self.beta, self.seed, self.interrupted = accumulate, beta, seed, interrupted
        self.scale = scale
        self.parameters = adapters.parameters()
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
        self.step = 0

    def take(self) -> dict[str, float]:
        """One step; the means of its loss and metrics.

        Raises:
            NotFinite: before anything is changed.
        """
        while True:
            means = self._accumulated()
            norm = self._unscaled_norm()
            if math.isfinite(norm) or self.scale <= 1:
                break
            self.scale /= 2
        if not (math.isfinite(norm) and math.isfinite(means["loss"])):
            raise NotFinite(f"step {self.step + 1}: the loss is {means['loss']:g}, the gradient's norm {norm:g}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return means

    def measure(self) -> dict[str, float]:
        """Means over the held-out pairs, with the same draws each time; empty where none are held out."""
        rows = []
        for pair in self.held_out:
            self.interrupted()
            with torch.no_grad():
                sides, references = self._asked(VALIDATION_EPOCH, pair)
                errors = PairErrors(**{name: error() for name, error in sides.items()}, **references)
                rows.append(self.objective.loss(errors, self.beta))
        return _means(rows)

    def backward(self, epoch: int, pair: EncodedPair, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds ``scale`` × the gradient of one pair's loss to the LoRAs' gradients; its loss and metrics, [1]
        each."""
        sides, references = self._asked(epoch, pair)
        errors = one_graph_at_a_time(self.objective, self.beta, sides, references, scale)
        with torch.no_grad():
            return self.objective.loss(errors, self.beta)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name: weights, what the optimizer keeps of each, the fp16 scale."""
        kept = dict(zip(self.parameters, self.optimizer.state_dict()["state"].values(), strict=False))
        moments = {f"optimizer.{name}.{key}": value for name, each in kept.items() for key, value in each.items()}
        weights = {f"weights.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        return {**weights, **moments, "scale": torch.tensor(self.scale, dtype=torch.float64)}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Goes on from a state of the same settings."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"weights.{name}"])
        if step:
            # Clones, since a node reads a file in inference mode, whose tensors no optimizer can change.
            kept = {
                index: {key: state[f"optimizer.{name}.{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
                for index, name in enumerate(self.parameters)
            }
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self.scale, self.step = float(state["scale"]), step

    def _accumulated(self) -> dict[str, float]:
        self.optimizer.zero_grad()
        rows = []
        for epoch, pair in step_pairs(self.pairs, self.seed, self.step, self.accumulate):
            self.interrupted()
            rows.append(self.backward(epoch, pair, self.scale / self.accumulate))
        return _means(rows)

    def _unscaled_norm(self) -> float:
        """Of the gradient, which is then cut to a length of ``MAX_GRAD_NORM``."""
        for parameter in self.parameters.values():
            # A layer that the model does not use in a step gets none; AdamW then would not keep a state of it.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= self.scale
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRAD_NORM).item()

    def _asked(self, epoch: int, pair: EncodedPair) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Tensor]]:
        """Of each side what computes its member's error, and the reference's errors."""
        drawn = draw(self.seed, epoch, pair.id, pair.chosen.latent.shape[1:])
        dropped = drawn.coin < self.null.probability
        chosen = self.errors.question(pair.chosen, pair.prompt, drawn)
        rejected = self.errors.question(pair.rejected, self.null.prompt if dropped else pair.prompt, drawn)
        references = {}
        with torch.no_grad():
            for name, question in (("chosen_reference", chosen), ("rejected_reference", rejected)):
                references[name] = self._error(None, question)
        return {
            "chosen": partial(self._error, PREFERRED, chosen),
            "rejected": partial(self._error, DISPREFERRED, rejected),
        }, references

    def _error(self, whose: str | None, question: Question) -> Tensor:
        # Not only around the forward pass: the backward pass runs the blocks again.
        self.adapters.active = whose
        return self.errors.error(question)


def _means(rows: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for loss, metrics in rows:
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] += value.item() / len(rows)
    return dict(sums)
