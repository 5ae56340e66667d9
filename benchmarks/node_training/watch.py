"""What is seen of the training node while it works: the seconds of its steps, its check of the gradient, memory."""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from conftest import pack_module

from .comfyui import Memory

# Repetitions of a pass that is timed alone.
PASSES = 3


class Checked(Exception):
    """Ends a training after its check."""


class Watch:
    """Stands between the node and its steps while it trains.

    Args:
        memory: that is looked at.
        alike: whether passes are compared before the check.
        passes: whether a forward and a backward pass are also timed alone.
        check: whether the gradient is checked; "alone" ends the training with that.
    """

    def __init__(self, memory: Memory, alike: bool, passes: bool, check: bool | str):
        self.memory, self.alike, self.passes, self.check = memory, alike, passes, check
        self.seconds: list[float] = []
        self.seen: dict[str, Any] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        session, steps = (pack_module(f"nodes.training.{name}") for name in ("session", "steps"))
        take, check = steps.Steps.take, session.check_gradient
        steps.Steps.take = self._taking(take)
        session.check_gradient = self._checking(check)
        try:
            yield
        finally:
            steps.Steps.take, session.check_gradient = take, check

    def row(self) -> dict[str, Any]:
        """The first step warms up, and does not count."""
        rest = self.seconds[1:]
        told = {"steps": len(self.seconds), "first_step_seconds": round(self.seconds[0], 3)} if self.seconds else {}
        if rest:
            median = statistics.median(rest)
            told |= {"step_seconds": round(median, 4), "steps_a_second": round(1 / median, 3)}
        ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        return {**told, **self.seen, **self.memory.peak(), "peak_ram_gib": round(ram, 1)}

    def timed(self, work: Callable[[], Any]) -> float:
        self.memory.synchronize()
        started = time.perf_counter()
        work()
        self.memory.synchronize()
        return time.perf_counter() - started

    def _taking(self, take: Callable) -> Callable:
        def watched(steps: Any) -> dict[str, float]:
            means: list[dict[str, float]] = []
            self.seconds.append(self.timed(lambda: means.append(take(steps))))
            return means[0]

        return watched

    def _checking(self, check: Callable) -> Callable:
        wrong = pack_module("nodes.training.self_check").GradientIsWrong

        def watched(steps: Any, question: Any, half_precision: bool) -> list[float]:
            model = steps.errors.model
            self.seen["loaded_gib"] = self.memory.now()
            self.seen["weights_on_card_gib"] = round(model.model_loaded_weight_memory / 1024**3, 3)
            self.seen["weights_gib"] = round(_bytes(model) / 1024**3, 3)
            self.seen["computed_in"] = str(model.manual_cast_dtype or model.get_dtype()).removeprefix("torch.")
            if self.alike:
                self.seen |= self._alike(steps, question)
            if not self.check:
                return []
            found: list[Any] = []

            def checked() -> None:
                try:
                    found.append([round(ratio, 3) for ratio in check(steps, question, half_precision)])
                except wrong as error:
                    found.append(str(error))  # said, and the run goes on: its speed is asked for too

            self.seen["check_seconds"] = round(self.timed(checked), 2)
            self.seen["check"] = found[0]
            if self.check == "alone":
                raise Checked
            if self.passes:
                self.seen |= self._alone(steps, question)
            return []

        return watched

    def _alike(self, steps: Any, question: Any) -> dict[str, bool]:
        """Which of four passes give the same gradient, bitwise: the first of all, two more, and one where every block
        is taken for one that changes tensors in place."""
        block = pack_module("nodes.training.checkpointing")._Block
        care, found = block.care, []
        steps.adapters.active = "preferred"
        try:
            for everywhere in (False, False, False, True):
                block.care = _everywhere if everywhere else care
                steps.errors.error(question).sum().backward()
                grads = [each.grad for each in steps.parameters.values() if each.grad is not None]
                found.append(torch.cat([grad.flatten() for grad in grads]))
                steps.optimizer.zero_grad()
        finally:
            block.care = care
            steps.adapters.active = None
        first, second, third, cared = found
        return {
            "first_pass_as_second": torch.equal(first, second),
            "second_pass_as_third": torch.equal(second, third),
            "pass_with_care_as_without": torch.equal(third, cared),
        }

    def _alone(self, steps: Any, question: Any) -> dict[str, float]:
        """Seconds of a forward pass without a graph, of one with its backward pass, and of that where every block is
        taken for one that changes tensors in place."""
        block = pack_module("nodes.training.checkpointing")._Block
        care = block.care

        def forward() -> None:
            with torch.no_grad():
                steps.errors.error(question)

        def backward() -> None:
            steps.errors.error(question).sum().backward()

        told = {}
        steps.adapters.active = "preferred"
        try:
            for name, work, cares in (
                ("forward_seconds", forward, care),
                ("forward_and_backward_seconds", backward, care),
                ("with_care_everywhere", backward, _everywhere),
            ):
                block.care = cares
                work()
                told[name] = round(statistics.median(self.timed(work) for _ in range(PASSES)), 4)
        finally:
            block.care = care
            steps.adapters.active = None
            steps.optimizer.zero_grad()
        return told


def _everywhere(block: Any) -> Any:
    return torch.autograd.graph.allow_mutation_on_saved_tensors()


def _bytes(model: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@contextlib.contextmanager
def as_chosen(repeatable: bool) -> Iterator[None]:
    """With torch's kernels chosen as the node chooses them, which is so that they repeat, or as torch does."""
    within = pack_module("nodes.training.within_comfyui")
    whole, steps = within._repeatable, within.STEPS_AFTER_ATTENTION
    if not repeatable:
        within._repeatable, within.STEPS_AFTER_ATTENTION = contextlib.nullcontext, 0
    try:
        yield
    finally:
        within._repeatable, within.STEPS_AFTER_ATTENTION = whole, steps
