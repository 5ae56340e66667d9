"""Whole tiny runs on the CPU: pairs of noise, settings that finish in seconds, and a trainer of them."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from chats_train.data import open_dataset
from chats_train.encodings.cache import CachedEncodings, fill_cache
from chats_train.runs.opening import open_family
from chats_train.runs.processes import Processes
from chats_train.settings.config import RunConfig
from chats_train.training.train import open_data
from chats_train.training.trainer import Trainer

PAIRS = 12
SETTINGS = {
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "resolution": 64,
    "bucket_reso_steps": 32,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 6,
    "checkpointing_steps": 2,
    "lr_warmup_steps": 2,
    "validation_pairs": 2,
    "validation_steps": 3,
    "learning_rate": 1e-4,
    # At the default a tiny base's loss is flat after a step, and nothing would be left to differ in.
    "beta": 10.0,
}


def write_pairs(folder: Path) -> Path:
    """Pairs as two folders with captions, in two aspect ratios."""
    generator = torch.Generator().manual_seed(0)
    for side in ("chosen", "rejected"):
        (folder / side).mkdir(parents=True)
        for index in range(PAIRS):
            height, width = (64, 64) if index % 3 else (48, 80)
            content = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(content).save(folder / side / f"{index:02}.png")
            (folder / side / f"{index:02}.txt").write_text(f"a picture {chr(97 + index)}")
    return folder


def run_settings(
    family: str, base: Path, pairs: Path, folder: Path, output: str = "run", **settings: Any
) -> dict[str, Any]:
    """A run's YAML; its output and cache go below ``folder``."""
    raw = {"version": 1, "family": family, "pretrained_model": str(base), "data": {"path": str(pairs)}, **SETTINGS}
    return {**raw, "output_dir": str(folder / output), "cache_dir": str(folder / f"cache-{family}"), **settings}


def trainer_of(config: RunConfig, processes: Processes | None = None) -> Trainer:
    family, dataset = open_family(config, "cpu"), open_dataset(config, progress=False)
    fill_cache(config.cache_dir, dataset.samples, family, progress=False)
    encodings = CachedEncodings(config.cache_dir, family.fingerprint)
    return Trainer(config, family, dataset, encodings, processes or Processes())


def first_step(config: RunConfig, folder: Path) -> None:
    """The gradients and the report of a run's first step, as files that its first process writes; the others take the
    pairs of that, which leaves no file of them."""
    processes = Processes()
    samples = open_data(config, processes).samples
    assert len(samples) == PAIRS
    assert samples[0].chosen.read()
    processes.wait()
    assert not list(config.cache_dir.glob(".pairs*"))
    trainer = trainer_of(config)
    report = trainer.train_step()
    if trainer.processes.is_main:
        gradients = {name: value.grad for name, value in trainer.parameters.items() if value.grad is not None}
        save_file(gradients, folder / "gradients.safetensors")
        (folder / "metrics.json").write_text(json.dumps(report.metrics))
