"""Pictures a second, from prompt to picture, on the device there is: Table 6."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from chats.files import write_text

from ...families import Family
from ...runs.members import Members
from ...sampling.pictures import to_images
from ...sampling.sampler import SamplingSettings, initial_noise, sample_cfg_in_one_batch
from ...settings.config import RunConfig
from ..conditions import Condition, sample_condition
from ..drawing import digest
from ..statistics import Estimate
from .layout import Method
from .paper import BATCH_SIZES

THROUGHPUT_FILE = "throughput.json"
PROMPTS = ("a cat on a chair", "a red bicycle", "two birds on a branch", "a bowl of fruit")
REPEATS = 3
# Steps of the pass that warms up: kernels are chosen and compiled in the first.
WARM_UP_STEPS = 2
TIMING_VERSION = 1


def device_name(device: torch.device) -> str:
    """What was measured on, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def measure(
    methods: Sequence[Method],
    config: RunConfig,
    family: Family,
    weights: str,
    members: Members,
    steps: int,
    folder: Path,
) -> dict[tuple[str, int], Estimate]:
    """Pictures a second by method and batch size: the mean of ``REPEATS`` batches after a warm-up, with its error. What
    was measured before on this device, of the same weights and settings, is taken from throughput.json.

    The base under CFG computes both passes in one batch, as pipelines do; two models cannot.
    """
    path = folder / THROUGHPUT_FILE
    kept: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = {}
    for method in methods:
        for size in BATCH_SIZES:
            key = digest(_depends(method.condition, size, config, family, weights, steps))
            if key not in kept:
                kept[key] = _rates(method.condition, size, config, family, members, steps)
                write_text(path, json.dumps(kept, indent=1) + "\n")
            rates = kept[key]
            error = statistics.stdev(rates) / math.sqrt(len(rates))
            found[method.title, size] = Estimate(statistics.fmean(rates), error, size, size * len(rates))
    return found


def _depends(
    condition: Condition, size: int, config: RunConfig, family: Family, weights: str, steps: int
) -> dict[str, Any]:
    return {
        "version": TIMING_VERSION,
        **condition.weights,
        "members": weights,
        "batch": size,
        "resolution": config.resolution,
        "steps": steps,
        "dtype": str(family.dtype),
        "device": device_name(family.device),
        "torch": torch.__version__,
    }


def _rates(
    condition: Condition, size: int, config: RunConfig, family: Family, members: Members, steps: int
) -> list[float]:
    """Pictures a second of each timed batch."""
    prompts = [PROMPTS[place % len(PROMPTS)] for place in range(size)]
    null, side = family.null_prompt(), config.resolution

    def draw(count: int) -> None:
        noise = initial_noise(family, size, side, side, 0).to(family.device)
        prompt = family.encode_prompt(prompts)
        if condition.models == "base":
            settings = SamplingSettings(steps=count, guidance_scale=condition.guidance_scale)
            latents = sample_cfg_in_one_batch(family, members.reference(), prompt, null, noise, settings)
        else:
            latents = sample_condition(condition, family, members, prompt, null, noise, count)
        for one in latents:
            to_images(family.decode_image(one[None]))

    draw(min(steps, WARM_UP_STEPS))
    return [size / _seconds(lambda: draw(steps), family.device) for _ in range(REPEATS)]


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _finish(device)
    begun = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - begun


def _finish(device: torch.device) -> None:
    """Waits for what a GPU was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
