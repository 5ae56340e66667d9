"""Several processes as one: which share of a step is whose, and sums over all. One process needs none of
torch.distributed.

``accelerate launch --multi_gpu`` (or torchrun) starts the processes and states their number in the environment;
accelerate joins them. Where each process holds all of the models, gradients are summed by hand, once for each optimizer
step: exact whatever the graphs were, and the modules stay unwrapped. In shards, torch sums them on the way.
"""

from __future__ import annotations

import atexit
import os
import secrets
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..sharding.layout import wanted_layout
from ..sharding.modules import Shards
from ..support.errors import UserError

Item = TypeVar("Item")


class Processes:
    """This process among its peers.

    Args:
        may_shard: whether models can be cut over them, where the launcher asks for that.

    Attributes:
        shards: what models are cut over; None where each process holds them whole.

    Raises:
        UserError: when they were launched in a way that cannot be followed.
    """

    def __init__(self, may_shard: bool = False) -> None:
        from accelerate import PartialState

        # Without an accelerator, accelerate takes several processes for several lone ones, unless it is told to use the
        # CPU.
        state = PartialState(cpu=not torch.accelerator.is_available())
        self.index, self.count, self.device = state.process_index, state.num_processes, state.device
        self._state = state
        _refuse_a_lone_process(self.count)
        layout = wanted_layout(self.count, may_shard)
        self.shards = Shards(layout, self.device, self.is_main) if layout is not None else None
        if self.count > 1:
            atexit.register(_part)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process; each item is one process's."""
        return items[self.index :: self.count]

    def passes(self, items: Sequence[Item]) -> list[tuple[Item, bool]]:
        """The items of this process, and whether each counts. In shards every process calls the models equally often:
        where its items are fewer, others' fill up, which do not count."""
        own = self.share(items)
        most = -(-len(items) // self.count) if self.shards is not None else len(own)
        return [*((item, True) for item in own), *((items[0], False) for _ in range(most - len(own)))]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over all processes; a parameter that had no part in a process counts as zero there, and
        one that had none in any stays without. Those of shards are summed already."""
        if self.count == 1:
            return
        whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        parts = self.sum(torch.tensor([float(parameter.grad is not None) for parameter in whole], device=self.device))
        for parameter, had in zip(whole, parts.tolist(), strict=True):
            if not had:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def any(self, value: bool) -> bool:
        """Whether it holds in any process."""
        if self.count == 1:
            return value
        return bool(self.sum(torch.tensor(float(value), device=self.device)).item())

    def one_number(self) -> int:
        """A random number of 48 bits, the same in all processes."""
        number = torch.tensor(secrets.randbits(48) if self.is_main else 0, device=self.device)
        return int(self.sum(number).item())

    def agree(self, number: int) -> bool:
        """Whether a number is the same in all processes."""
        total = self.sum(torch.tensor(number, device=self.device)).item()
        return not self.any(total != number * self.count)


def _part() -> None:
    """Ends the connection, and with it torch's threads, while Python still runs: one that lets go of a tensor later
    wants the interpreter, and where that is ending, the process aborts, its work done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _refuse_a_lone_process(count: int) -> None:
    """With --cpu, accelerate's launcher starts one process whatever --num_processes says, unless mpirun starts them; on
    two machines these would be two runs in one folder. It then states where they should meet, but not who is who."""
    if count == 1 and "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise UserError(
            "`accelerate launch` was asked for several processes and started one alone, as it does with `--cpu`; "
            "launch with `--multi_gpu --num_processes N` (also where there is no GPU), or with torchrun"
        )
