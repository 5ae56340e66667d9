"""What `check` says of memory and disk, before anything heavy."""

from __future__ import annotations

import math
import os

import torch

from ..data import PairDataset
from ..families import Family
from ..families.prompts import MASK
from ..settings.config import RunConfig
from ..sharding.layout import require_shardable
from ..sharding.modules import largest_block
from ..support.amounts import bytes_text
from ..support.errors import UserError
from .cards import Launch, card_bytes, machine_bytes, smallest_launch
from .estimate import ModelSize, adapter_parameters, cache_bytes, checkpoint_bytes, disk_of, folder_bytes, memory_bytes

METHODS = (("lora", "fp32"), ("full", "fp32"), ("full", "bf16"))
CARD_COUNTS = (2, 4, 8)


def model_size(config: RunConfig, family: Family) -> ModelSize:
    """The sizes that a run's memory and disk follow from, from headers alone."""
    shapes = family.source.shapes(family.facts.denoiser_part)
    targets = tuple(config.network_target_modules or family.facts.lora_targets)
    adapter = adapter_parameters(shapes, targets, config.network_rank)
    denoiser = family.parameter_counts()[family.facts.denoiser_part]
    prompt_numbers = sum(math.prod(shape) for name, shape in family.prompt_shapes().items() if name != MASK)
    facts = family.facts
    own = (facts.longest_prompt, facts.template_tokens) if facts.longest_prompt else None
    return ModelSize(denoiser, adapter, family.latent_channels, family.vae_scale_factor, prompt_numbers, own)


def print_memory(config: RunConfig, size: ModelSize) -> None:
    """What each training method would take, and what this machine's GPU has."""
    print(f"memory of weights, gradients and {config.optimizer}, activations on top:")
    for method, weight_dtype in METHODS:
        chosen = method == config.training_method and (method == "lora" or weight_dtype == config.weight_dtype)
        memory = bytes_text(memory_bytes(config, size, method, weight_dtype))
        print(f"  {_named(method, weight_dtype)}: {memory}{' (this run)' if chosen else ''}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"  this GPU has {bytes_text(total)}, {bytes_text(free)} of it free")


def print_shards(config: RunConfig, size: ModelSize, family: Family) -> None:
    """What each training method would take of each card in shards, and the smallest launch that fits this machine."""
    try:
        require_shardable(config)
    except UserError as error:
        print(f"in shards: {error}")
        return
    block = largest_block(family)
    print("in shards (FSDP), a card, with the blocks that are gathered at a time:")
    for method, weight_dtype in METHODS:

        def of_a_card(launch: Launch, method: str = method, weight_dtype: str = weight_dtype) -> str:
            return bytes_text(card_bytes(config, size, block, method, weight_dtype, launch))

        counts = ", ".join(f"{count} cards {of_a_card(Launch(count))}" for count in CARD_COUNTS)
        offloaded = Launch(1, offload=True)
        memory = bytes_text(machine_bytes(config, size, method, weight_dtype, offloaded))
        print(
            f"  {_named(method, weight_dtype)}: {counts}; offloaded {of_a_card(offloaded)}, and {memory} of the CPU's"
        )
    if not torch.cuda.is_available():
        return
    cards = torch.cuda.device_count()
    least = min(torch.cuda.mem_get_info(card)[1] for card in range(cards))
    launch = smallest_launch(config, size, block, cards, least, _machine_memory())
    fits = f"`{launch.command}`" if launch else "none; set `training_method: lora`, or take more or larger cards"
    print(f"  smallest launch of this run that fits here, with a fifth of {bytes_text(least)} for activations: {fits}")


def _machine_memory() -> int:
    """Bytes of it; none where the system does not say, as Windows, where nothing runs in shards."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _named(method: str, weight_dtype: str) -> str:
    return "lora" if method == "lora" else f"full, weight_dtype {weight_dtype}"


def print_disk(config: RunConfig, size: ModelSize, dataset: PairDataset) -> None:
    """Room wanted beyond what is there already, and room free; UserError where it cannot suffice."""
    # One more than are kept: the new one is whole before the oldest goes. Where all are kept, all of the run's.
    checkpoints = 1 + (config.checkpoints_total_limit or config.max_train_steps // config.checkpointing_steps)
    wanted = {
        "cache_dir": cache_bytes(config, size, dataset),
        "output_dir": checkpoint_bytes(config, size) * checkpoints,
    }
    cached = folder_bytes(config.cache_dir)
    saved = folder_bytes(config.output_dir) - (cached if config.cache_dir.is_relative_to(config.output_dir) else 0)
    present = {"cache_dir": cached, "output_dir": saved}
    missing: dict[int, float] = {}
    for setting, bytes_wanted in wanted.items():
        folder = getattr(config, setting)
        disk, free = disk_of(folder)
        # The two folders may share a disk, and then their wants add up.
        missing[disk] = missing.get(disk, 0) + max(0, bytes_wanted - present[setting])
        print(f"disk: `{setting}` {folder} takes up to {bytes_text(bytes_wanted)}, {bytes_text(free)} are free")
        if missing[disk] > free:
            raise UserError(
                f"`{setting}` is {folder}, which lacks {bytes_text(missing[disk] - free)}; make room or choose another "
                "disk"
            )
