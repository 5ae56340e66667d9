"""The sides of the benchmark on a graphics card: each is built and measured in a process of its own."""

from __future__ import annotations

import os
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chats_train.check.estimate import memory_bytes
from chats_train.check.readiness import model_size
from chats_train.data import PairDataset, open_dataset
from chats_train.data.images import pixels
from chats_train.encodings.cache import CachedEncodings, fill_cache
from chats_train.families import Family
from chats_train.runs.opening import open_family
from chats_train.runs.processes import Processes
from chats_train.settings.config import RunConfig
from chats_train.settings.config_file import parse_config
from chats_train.training.trainer import Trainer

from .authors import AuthorsStep
from .bases import save_base, write_pairs

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
OFFLOADED = {**SHARDED, "FSDP_OFFLOAD_PARAMS": "true"}
WHOLE = {"training_method": "full", "optimizer": "adafactor"}
LORA = {"training_method": "lora", "optimizer": "adamw", "network_rank": 16}
# By name: the settings of ours (None: the authors' step) and what a launcher would set in the environment.
SIDES: dict[str, tuple[dict[str, Any] | None, dict[str, str]]] = {
    "authors": (None, {}),
    "authors, nothing offloaded": (None, {}),
    "full": (WHOLE, {}),
    "full, no checkpointing": ({**WHOLE, "gradient_checkpointing": False}, {}),
    "full, bf16 weights": ({**WHOLE, "weight_dtype": "bf16"}, {}),
    "full, draws repeat": ({**WHOLE, "reference_draws": 1}, {}),
    "full, compiled": ({**WHOLE, "compile": True}, {}),
    "full, in shards": (WHOLE, SHARDED),
    "full, in shards, offloaded": (WHOLE, OFFLOADED),
    "lora": (LORA, {}),
    "lora, no checkpointing": ({**LORA, "gradient_checkpointing": False}, {}),
    "lora, memory low": ({**LORA, "memory": "low"}, {}),
    "lora, draws repeat": ({**LORA, "reference_draws": 1}, {}),
    "lora, compiled": ({**LORA, "compile": True}, {}),
    "lora, no checkpointing, compiled": ({**LORA, "gradient_checkpointing": False, "compile": True}, {}),
    "lora, in shards": (LORA, SHARDED),
    "lora, in shards, offloaded": (LORA, OFFLOADED),
    "lora, nf4": ({**LORA, "base_quantization": "nf4"}, {}),
    "lora, int8": ({**LORA, "base_quantization": "int8"}, {}),
}
QUANTIZED = ("lora, nf4", "lora, int8")
# A family of its own size for each; the authors' step is SDXL's.
OF_SDXL = tuple(name for name in SIDES if name not in QUANTIZED)
OF_OTHERS = ("lora", "lora, compiled", *QUANTIZED)


@dataclass(frozen=True)
class Setting:
    """What is measured on: a folder for bases, pairs and caches, and the benchmark's arguments."""

    folder: Path
    family: str
    tiny: bool
    pixels: int
    pairs: int
    steps: int
    device: str

    @property
    def base(self) -> Path:
        return self.folder / f"{self.family}{'-tiny' if self.tiny else ''}"

    @property
    def images(self) -> Path:
        return self.folder / f"pairs-{self.pixels}-{self.pairs}"


def prepare(setting: Setting) -> dict[str, Any]:
    """Makes base, pairs and cache; seconds that encoding takes once, per pair."""
    made = time.perf_counter()
    if not (setting.base / "model_index.json").exists():
        save_base(setting.family, setting.base, setting.tiny, setting.device)
    write_pairs(setting.images, setting.pairs, setting.pixels)
    config, family, dataset = opened(setting, LORA)
    start = time.perf_counter()
    fill_cache(config.cache_dir, dataset.samples, family, progress=False)
    synchronize(setting)
    return {
        "base_seconds": start - made,
        "encoding_seconds": (time.perf_counter() - start) / len(dataset.samples),
        "parameters": family.parameter_counts(),
    }


def opened(setting: Setting, settings: dict[str, Any]) -> tuple[RunConfig, Family, PairDataset]:
    config = parse_config(
        {
            "version": 1,
            "family": setting.family,
            "pretrained_model": str(setting.base),
            "data": {"path": str(setting.images)},
            "output_dir": str(setting.folder / "run"),
            "cache_dir": str(setting.folder / f"cache-{setting.base.name}-{setting.pixels}"),
            "resolution": setting.pixels,
            "enable_bucket": False,
            "mixed_precision": "bf16",
            "gradient_accumulation_steps": setting.pairs,
            "validation_pairs": 0,
            "lr_warmup_steps": 0,
            **settings,
        }
    )
    return config, open_family(config, setting.device), open_dataset(config, progress=False)


def measure(setting: Setting, name: str) -> dict[str, Any]:
    """Seconds of each step, by the clock, and the card's memory. The first step readies everything and is told
    apart."""
    settings, environment = SIDES[name]
    os.environ.update(environment)
    torch.manual_seed(0)
    random.seed(0)
    make = authors_step if settings is None else our_step
    begun = time.perf_counter()
    step, says = make(setting, settings or {"offloads": name == "authors"})
    row: dict[str, Any] = {"side": name, "load_seconds": time.perf_counter() - begun, "check_says_bytes": says}
    row |= {"held_bytes": allocated(setting), "first_seconds": timed(setting, step)}
    forget_peak(setting)
    seconds = [timed(setting, step) for _ in range(setting.steps)]
    return {
        **row,
        "seconds": seconds,
        "pair_seconds": statistics.median(seconds) / setting.pairs,
        **peak(setting),
        "ram_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else "CPU",
        "torch": torch.__version__,
    }


Step = Callable[[], object]


def authors_step(setting: Setting, settings: dict[str, Any]) -> tuple[Step, None]:
    """Their step. The pixels are ready: their data loader has processes of its own."""
    torch.backends.cuda.matmul.allow_tf32 = True  # as their scripts say
    _, family, dataset = opened(setting, LORA)  # a base in bf16
    step = AuthorsStep(family, settings["offloads"])
    pairs = [
        (
            pixels(sample.chosen.read(), sample.bucket)[None],
            pixels(sample.rejected.read(), sample.bucket)[None],
            sample.prompt,
        )
        for sample in dataset.samples
    ]
    return lambda: step(pairs), None


def our_step(setting: Setting, settings: dict[str, Any]) -> tuple[Step, int]:
    """The trainer's step, which reads the cache, and the bytes that `check` says it takes beside activations."""
    config, family, dataset = opened(setting, settings)
    processes = Processes(may_shard=True)
    trainer = Trainer(config, family, dataset, CachedEncodings(config.cache_dir, family.fingerprint), processes)
    if trainer.references is not None:
        trainer.references.load(torch.zeros_like(trainer.references.table))
        trainer.members.release_reference()
    method, quantization = config.training_method, config.base_quantization
    says = memory_bytes(config, model_size(config, family), method, config.weight_dtype, quantization)
    return trainer.train_step, says


def timed(setting: Setting, step: Step) -> float:
    synchronize(setting)
    start = time.perf_counter()
    step()
    synchronize(setting)
    return time.perf_counter() - start


# The card; on a CPU, where all of this can be tried, there is nothing to say of its memory.


def synchronize(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def allocated(setting: Setting) -> int:
    return torch.cuda.memory_allocated() if setting.device == "cuda" else 0


def forget_peak(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(setting: Setting) -> dict[str, int]:
    """Bytes of tensors at most in the timed steps, and what torch held of the card for them."""
    if setting.device != "cuda":
        return {"peak_bytes": 0, "reserved_bytes": 0}
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
