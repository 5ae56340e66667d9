"""What a run in shards takes of each card and of the machine's memory, and the smallest launch that fits. Pure
arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..settings.config import RunConfig
from ..support.dtypes import TORCH_DTYPES, forward_dtype
from .estimate import FP32_BYTES, ModelSize, adapter_bytes, memory_bytes

# Of a card's memory, for activations: what is counted here may take the rest.
LEFT_FOR_ACTIVATIONS = 0.2
# A block that is used, and the next, which is fetched meanwhile.
BLOCKS_AT_ONCE = 2


@dataclass(frozen=True)
class Launch:
    """How a run is started on one machine.

    Attributes:
        cards: processes, of one card each.
        sharded: whether models are cut over them; otherwise each card holds all.
        offload: whether the parts rest in the machine's memory.
    """

    cards: int
    sharded: bool = True
    offload: bool = False

    @property
    def command(self) -> str:
        """What the user types, without the config."""
        if not self.sharded:
            return "python -m chats_train train"
        offload = "--fsdp_offload_params true " if self.offload else ""
        return (
            f"accelerate launch --use_fsdp --fsdp_version 2 {offload}--num_processes {self.cards} -m chats_train train"
        )


def card_bytes(config: RunConfig, size: ModelSize, block: int, method: str, weight_dtype: str, launch: Launch) -> int:
    """Bytes on each card of weights, gradients and optimizer states, and of what is gathered at a time; activations
    come on top.

    Args:
        block: parameters of the largest block that is gathered at once.
    """
    everything = memory_bytes(config, size, method, weight_dtype)
    if not launch.sharded:
        return everything
    whole = adapter_bytes(config, size) if method == "lora" else 0
    resting = 0 if launch.offload else -(-(everything - whole) // launch.cards)
    gathered = BLOCKS_AT_ONCE * block * _gathered_width(config, method, weight_dtype)
    return resting + whole + gathered


def machine_bytes(config: RunConfig, size: ModelSize, method: str, weight_dtype: str, launch: Launch) -> int:
    """Bytes in the machine's own memory of what does not rest on the cards."""
    if not launch.offload:
        return 0
    whole = adapter_bytes(config, size) if method == "lora" else 0
    return memory_bytes(config, size, method, weight_dtype) - whole


def smallest_launch(
    config: RunConfig, size: ModelSize, block: int, cards: int, card_memory: int, machine_memory: int
) -> Launch | None:
    """The first launch of the run that fits: whole on one card, in shards over ever more, and then with parts that rest
    in the machine's memory; None where none does."""
    method, weight_dtype = config.training_method, config.weight_dtype
    for launch in _launches(cards):
        room = card_memory * (1 - LEFT_FOR_ACTIVATIONS)
        if (
            card_bytes(config, size, block, method, weight_dtype, launch) <= room
            and machine_bytes(config, size, method, weight_dtype, launch) <= machine_memory
        ):
            return launch
    return None


def _launches(cards: int) -> Iterator[Launch]:
    yield Launch(1, sharded=False)
    yield from (Launch(count) for count in range(2, cards + 1))
    yield from (Launch(count, offload=True) for count in range(1, cards + 1))


def _gathered_width(config: RunConfig, method: str, weight_dtype: str) -> int:
    """Bytes of a gathered weight, and, where it trains, of its gradient."""
    gathered = forward_dtype(config.mixed_precision).itemsize
    if method == "lora":
        return gathered
    width = TORCH_DTYPES[weight_dtype].itemsize
    return min(width, gathered) + (FP32_BYTES if gathered < FP32_BYTES else width)
