"""What `check` says of a run in shards: each card's memory, and the smallest launch that fits this machine."""

from __future__ import annotations

import os

import torch

from ..families import Family
from ..settings.config import RunConfig
from ..sharding.layout import require_shardable
from ..sharding.modules import largest_block
from ..support.amounts import bytes_text
from ..support.errors import UserError
from .cards import Launch, card_bytes, machine_bytes, smallest_launch
from .estimate import ModelSize

METHODS = {
    "lora": ("lora", "fp32"),
    "full, weight_dtype fp32": ("full", "fp32"),
    "full, weight_dtype bf16": ("full", "bf16"),
}
CARD_COUNTS = (2, 4, 8)


def print_shards(config: RunConfig, size: ModelSize, family: Family) -> None:
    """A line for each training method; a sentence where the run's settings keep it from shards."""
    try:
        require_shardable(config)
    except UserError as error:
        print(f"in shards: {error}")
        return
    block = largest_block(family)
    print("in shards (FSDP), each card, with the blocks that are gathered at a time:")
    for name, (method, weight_dtype) in METHODS.items():
        print(f"  {name}: {_of_cards(config, size, block, method, weight_dtype)}")
    if torch.cuda.is_available():
        cards = torch.cuda.device_count()
        least = min(torch.cuda.mem_get_info(card)[1] for card in range(cards))
        launch = smallest_launch(config, size, block, cards, least, _machine_memory())
        fits = f"`{launch.command}`" if launch else "none; set `training_method: lora`, or take more or larger cards"
        print(f"  smallest launch of this run that fits here, a fifth of {bytes_text(least)} for activations: {fits}")


def _of_cards(config: RunConfig, size: ModelSize, block: int, method: str, weight_dtype: str) -> str:
    def of_each(launch: Launch) -> str:
        return bytes_text(card_bytes(config, size, block, method, weight_dtype, launch))

    counts = ", ".join(f"{count} cards {of_each(Launch(count))}" for count in CARD_COUNTS)
    offloaded = Launch(1, offload=True)
    memory = bytes_text(machine_bytes(config, size, method, weight_dtype, offloaded))
    return f"{counts}; offloaded {of_each(offloaded)}, and {memory} of the machine's memory for all"


def _machine_memory() -> int:
    """Bytes of it; none where the system does not say, as Windows, where nothing runs in shards."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
