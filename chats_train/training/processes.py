"""Several processes as one: which share of a step is whose, and sums over all. One process needs none of torch.distributed.

``accelerate launch`` (or torchrun) starts the processes and states their number in the environment; accelerate joins them. Gradients
are summed by hand, once for each optimizer step: exact whatever the graphs were, and the modules stay unwrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")


class Processes:
    """This process among its peers."""

    def __init__(self) -> None:
        from accelerate import PartialState

        # Without an accelerator, accelerate takes several processes for several lone ones, unless it is told to use the CPU.
        state = PartialState(cpu=not torch.accelerator.is_available())
        self.index, self.count, self.device = state.process_index, state.num_processes, state.device
        self._state = state

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process; each item is one process's."""
        return items[self.index :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over all processes; a parameter that had no part in a process counts as zero there."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def any(self, value: bool) -> bool:
        """Whether it holds in any process."""
        if self.count == 1:
            return value
        return bool(self.sum(torch.tensor(float(value), device=self.device)).item())
