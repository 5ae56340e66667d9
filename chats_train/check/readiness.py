"""What `check` says of memory and disk, before anything heavy."""

from __future__ import annotations

import math

import torch

from chats.draws import held_out_count

from ..data import PairDataset
from ..families import Family
from ..families.prompts import MASK
from ..settings.config import RunConfig
from ..support.amounts import bytes_text
from ..support.errors import UserError
from ..training.reference_errors import repeats_note
from .estimate import (
    ModelSize,
    adapter_parameters,
    block_parameters,
    cache_bytes,
    checkpoint_bytes,
    disk_of,
    folder_bytes,
    memory_bytes,
)


def model_size(config: RunConfig, family: Family) -> ModelSize:
    """The sizes that a run's memory and disk follow from, from headers alone."""
    shapes = family.source.shapes(family.facts.denoiser_part)
    targets = tuple(config.network_target_modules or family.facts.lora_targets)
    adapter = adapter_parameters(shapes, targets, config.network_rank)
    denoiser = family.parameter_counts()[family.facts.denoiser_part]
    prompt_numbers = sum(math.prod(shape) for name, shape in family.prompt_shapes().items() if name != MASK)
    facts = family.facts
    own = (facts.longest_prompt, facts.template_tokens) if facts.longest_prompt else None
    blocks = block_parameters(shapes)
    return ModelSize(denoiser, blocks, adapter, family.latent_channels, family.vae_scale_factor, prompt_numbers, own)


def print_memory(config: RunConfig, size: ModelSize) -> None:
    """What each training method would take, and what this machine's GPU has."""
    print(f"memory of weights, gradients and {config.optimizer}, activations on top:")
    for quantization in ("none", "nf4", "int8"):
        chosen = config.training_method == "lora" and quantization == config.base_quantization
        name = "lora" if quantization == "none" else f"lora, base_quantization {quantization}"
        _print_bytes(name, memory_bytes(config, size, "lora", "fp32", quantization), chosen)
    for weight_dtype in ("fp32", "bf16"):
        chosen = config.training_method == "full" and weight_dtype == config.weight_dtype
        _print_bytes(f"full, weight_dtype {weight_dtype}", memory_bytes(config, size, "full", weight_dtype), chosen)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"  this GPU has {bytes_text(total)}, {bytes_text(free)} of it free")


def _print_bytes(name: str, count: int, chosen: bool) -> None:
    print(f"  {name}: {bytes_text(count)}{' (this run)' if chosen else ''}")


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


def print_repeats(config: RunConfig, dataset: PairDataset) -> None:
    """What is known of draws that come as often again as in this run, with one process."""
    pairs = len(dataset.samples) - held_out_count(len(dataset.samples), config.validation_pairs)
    note = repeats_note(config, pairs, config.train_batch_size * config.gradient_accumulation_steps)
    if note is not None:
        print(f"note: {note}")
