"""The sides of the training benchmark, each built and measured in the process that calls :func:`measure`."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import string
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DDIMScheduler
from torch import nn
from transformers import CLIPTextConfig

from chats_train.check.estimate import memory_bytes
from chats_train.check.readiness import model_size
from chats_train.data import PairDataset, open_dataset
from chats_train.data.images import pixels
from chats_train.encodings.cache import CachedEncodings, fill_cache
from chats_train.families import Family
from chats_train.families.sd15 import SD15
from chats_train.runs.opening import open_family
from chats_train.runs.processes import Processes
from chats_train.settings.config import RunConfig
from chats_train.settings.config_file import parse_config
from chats_train.training.trainer import Trainer

from .authors_step import AuthorsStep

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "train"))

import pictures  # noqa: E402  the tests' own helpers
import tiny_pipelines  # noqa: E402

CONFIGS = ROOT / "chats_train" / "families" / "configs" / "sd15"
# By the end of their names, with either training method.
OURS: dict[str, dict[str, Any]] = {
    ", gradient checkpointing": {"gradient_checkpointing": True},
    "": {},
    ", memory low": {"memory": "low"},
    # Once all of the reference's errors are known.
    ", draws repeat": {"reference_draws": 1},
    ", compiled": {"compile": True},
}
# By name: whose step, and the settings of ours. The authors' scripts checkpoint gradients.
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "authors, gradient checkpointing": ("authors", {"training_method": "full", "gradient_checkpointing": True}),
    "authors": ("authors", {"training_method": "full", "gradient_checkpointing": False}),
    **{
        f"{method}{name}": ("ours", {"training_method": method, "gradient_checkpointing": False, **changes})
        for method in ("full", "lora")
        for name, changes in OURS.items()
    },
}
# Those that the goals are about.
GOALS = (*list(SIDES)[:2], "full", "full, draws repeat", "lora, gradient checkpointing", "lora", "lora, draws repeat")
LORA_RANK = 16


@dataclass(frozen=True)
class Setting:
    """What is measured on: a folder for base, pairs and cache, and the benchmark's arguments."""

    folder: Path
    layout: str
    pixels: int
    rounds: int
    threads: int
    sides: tuple[str, ...]

    @property
    def base(self) -> Path:
        return self.folder / self.layout

    @property
    def pairs(self) -> Path:
        return self.folder / f"pairs-{self.pixels}"


# What is measured on.


def prepare(setting: Setting) -> dict[str, Any]:
    """Makes base, pairs and cache; CPU seconds that encoding takes once, per pair."""
    torch.set_num_threads(setting.threads)
    if not (setting.base / "model_index.json").exists():
        if setting.layout == "tiny":
            tiny_pipelines.save_pipeline("sd15", setting.base)
        else:
            save_sd15(setting.base, half=setting.layout == "half")
    names = string.ascii_lowercase[: setting.rounds]  # a pair for each step, as far as letters go
    pictures.write_folders(setting.pairs, names, (setting.pixels, setting.pixels))
    config, family, dataset = opened(setting, {})
    shutil.rmtree(config.cache_dir, ignore_errors=True)
    start = time.process_time()
    fill_cache(config.cache_dir, dataset.samples, family, progress=False)
    return {"encoding_seconds": (time.process_time() - start) / len(dataset.samples)}


# What is half as wide in the layout `half`: every part takes a quarter of the work.
WIDTHS = ("block_out_channels", "cross_attention_dim", "hidden_size", "intermediate_size", "projection_dim")


def save_sd15(base: Path, half: bool) -> None:
    """A base of SD1.5's real sizes, or of half its widths, with random weights; its tokenizer knows letters only, and
    gives 77 tokens all the same."""
    torch.manual_seed(0)
    for part, cls in SD15.part_classes().items():
        config = json.loads((CONFIGS / part / "config.json").read_text(encoding="utf-8"))
        if half:
            config |= {name: halved(config[name]) for name in WIDTHS if name in config}
        module = cls(CLIPTextConfig(**config)) if part == "text_encoder" else cls.from_config(config)
        module.save_pretrained(base / part)
    tiny_pipelines.save_clip_tokenizer(base / "tokenizer")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(base / "scheduler")
    (base / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def halved(width: int | list[int]) -> int | list[int]:
    return [each // 2 for each in width] if isinstance(width, list) else width // 2


def opened(setting: Setting, settings: dict[str, Any]) -> tuple[RunConfig, Family, PairDataset]:
    raw = {
        "version": 1,
        "family": "sd15",
        "pretrained_model": str(setting.base),
        "data": {"path": str(setting.pairs)},
        "output_dir": str(setting.folder / "run"),
        "cache_dir": str(setting.folder / f"cache-{setting.layout}"),
        "resolution": setting.pixels,
        "enable_bucket": False,
        "mixed_precision": "no",
        "gradient_accumulation_steps": 1,
        "validation_pairs": 0,
        "network_rank": LORA_RANK,
    }
    config = parse_config(raw | settings)
    return config, open_family(config, "cpu"), open_dataset(config, progress=False)


# What is measured.

Step = Callable[[int], object]


def measure(setting: Setting, rounds: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Every side a step at a time, in turn, so that what else the machine does falls on all alike; what each step took
    is kept as it is known. One step, of the first side, is not timed: it readies torch. Of a side that is compiled the
    first step is kept apart."""
    torch.set_num_threads(setting.threads)
    config, family, dataset = opened(setting, {})
    if setting.layout != "tiny":
        share_weights(family)
    steps = {}
    for name in setting.sides:
        whose, settings = SIDES[name]
        config, _, _ = opened(setting, settings)
        make = authors_step if whose == "authors" else our_step
        steps[name], parameters = make(config, family, dataset)
        if setting.layout != "tiny" and config.training_method == "full":
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(drop_gradient)
    next(iter(steps.values()))(0)
    for name, step in steps.items():
        if SIDES[name][1].get("compile"):
            keep({"side": name, "first": timed(step, 0)["wall"]})
    for number in range(rounds):
        for name, step in steps.items():
            give_back()
            weights = memory("VmRSS")
            forget_peak()
            took = timed(step, number)
            keep({"side": name, **took, "step": memory("VmHWM") - weights})


def timed(step: Step, number: int) -> dict[str, float]:
    """Seconds of a step by the clock and of the processor."""
    before = time.perf_counter(), time.process_time()
    step(number)
    after = time.perf_counter(), time.process_time()
    return {"wall": after[0] - before[0], "cpu": after[1] - before[1]}


def counted(setting: Setting) -> dict[str, int]:
    """Of each side, bytes of weights, gradients and AdamW's moments."""
    found = {}
    for name in setting.sides:
        whose, settings = SIDES[name]
        config, family, _ = opened(setting, settings)
        found[name] = counted_bytes(config, family, whose)
    return found


def authors_step(config: RunConfig, family: Family, dataset: PairDataset) -> tuple[Step, list[nn.Parameter]]:
    """Their step by its number, and what it trains. The pixels are ready: their data loader has processes of its
    own."""
    step = AuthorsStep(family, config.gradient_checkpointing)
    make_resident([family.vae, *family.text_encoders, step.preferred])
    pairs = [
        (
            pixels(sample.chosen.read(), sample.bucket)[None],
            pixels(sample.rejected.read(), sample.bucket)[None],
            sample.prompt,
        )
        for sample in dataset.samples
    ]
    return lambda number: step(*pairs[number % len(pairs)]), step.parameters()


def our_step(config: RunConfig, family: Family, dataset: PairDataset) -> tuple[Step, list[nn.Parameter]]:
    """The trainer's step, which reads the cache, and what it trains."""
    trainer = Trainer(config, family, dataset, CachedEncodings(config.cache_dir, family.fingerprint), Processes())
    if trainer.references is not None:
        trainer.references.load(torch.zeros_like(trainer.references.table))
        trainer.members.release_reference()
    make_resident(trainer.members.modules)
    return lambda _: trainer.train_step(), list(trainer.parameters.values())


def share_weights(family: Family) -> None:
    """Makes all denoisers of a family share one set of weights; gradients stay each one's own."""
    cls, config = family.part_classes()[family.facts.denoiser_part], family.source.config(family.facts.denoiser_part)
    weights = family.load_denoiser().state_dict()

    def load() -> nn.Module:
        with init_empty_weights():
            module = cls.from_config(config)
        module.load_state_dict(weights, assign=True)
        return module.eval()

    family.load_denoiser = load


def drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


# Memory.


def give_back() -> None:
    """What was freed goes back to the system: memory that is used again would not count."""
    ctypes.CDLL(None).malloc_trim(0)


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, what it holds now, or VmHWM, the most it held."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    """VmHWM starts anew from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def make_resident(modules: Iterable[nn.Module]) -> None:
    """Reads every weight: those of a mapped file are in memory only from then on."""
    for module in modules:
        for parameter in module.parameters():
            parameter.detach().sum()


def counted_bytes(config: RunConfig, family: Family, whose: str) -> int:
    """Weights, gradients and AdamW's moments of everything that is in memory in a step."""
    parts = family.parameter_counts()
    size = model_size(config, family)
    encoders = 4 * (sum(parts.values()) - size.denoiser) if whose == "authors" else 0
    # A whole reference, which left.
    left = 4 * size.denoiser if config.reference_draws and config.training_method == "full" else 0
    return memory_bytes(config, size, config.training_method, "fp32") + encoders - left
