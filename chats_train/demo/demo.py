"""``python -m chats_train demo``: from a weak base to a pair of a taste and a picture of both, by the ordinary trainer,
export and sampler."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

from chats.files import replacing, write_text

from ..families import Family
from ..runs.folder import PREVIEWS
from ..runs.members import DISPREFERRED, PREFERRED
from ..runs.opening import open_family
from ..runs.trained import open_trained, trained_members
from ..sampling.sampler import Form, SamplingSettings
from ..settings.config import CONFIG_VERSION, RunConfig
from ..settings.config_file import load_config
from ..support.errors import UserError
from ..training.reports import PLOT_FILE
from ..training.train import train
from .before_after import Half, before_and_after
from .make_pairs import draw_pairs
from .measure import Count, best, count, result_table, scales_table, shown, verdicts
from .samplers import base_sampler, pair_sampler
from .taste import Taste
from .weak_base import write_weak_base
from .world import RESOLUTION, ScenePrompt, balanced_prompts, prompt_sets

CONFIG, BASE_NAME, PAIRS, PICTURE, COUNTS = "run.yaml", "base", "pairs", "side_by_side.png", "counts.json"
PREVIEW_PROMPTS = 4
# Threads that sample; fixed, so that pictures do not depend on the machine's cores.
WORKERS = 2
TASTE: Taste = "low"
SIDES = ("base", "pair")
TASTE_IN_WORDS = "things stand at the foot of the picture"
NEXT_STEPS = """\
what to do next, with your own model:
  in ComfyUI: draw candidates with CHATS Save Candidates, rate them (key T), train on them with CHATS Train LoRA Pair
  without it: `python -m chats_train init sdxl --output run.yaml`, then `check run.yaml` and `train run.yaml`
  either way step by step: docs/taste.md and docs/training.md"""


@dataclass(frozen=True)
class DemoSettings:
    """How much of everything; guidance scales are the paper's s. Learning rate and steps were chosen on
    ``prompt_sets().dev``, as each run chooses both sides' scales."""

    pair_prompts: int = 600
    candidates: int = 6
    pair_steps: int = 8
    pair_guidance_scale: float = 4.0
    train_steps: int = 300
    train_batch_size: int = 16
    learning_rate: float = 2e-4
    beta: float = 100.0
    validation_pairs: int = 32
    # Prompts to choose each side's scale on, and to measure at it. 0 takes all there are: 96 and 240.
    dev_prompts: int = 0
    test_prompts: int = 0
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    shown_prompts: int = 16
    preview_guidance_scale: float = 2.0
    sample_steps: int = 10
    form: Form = "proxy"
    seed: int = 0


def demo(output: Path, settings: DemoSettings | None = None) -> None:
    """Draws pairs, trains, exports, counts and shows, all in one new folder.

    Raises:
        UserError: when the folder holds something already.
        KeyboardInterrupt: when training was stopped by Ctrl-C; the run's folder says how to go on.
    """
    settings = settings or DemoSettings()
    started = time.monotonic()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"`--output` is {output}, which is there already; remove it or choose another folder")
    print(f"the demo, in {output}: opening the base …", flush=True)
    config = write_config(output, settings)
    write_weak_base(output / BASE_NAME)
    family = open_family(config)
    print(
        f"1. a base of {family.parameter_counts()['unet'] / 1e6:.1f} M parameters, pictures of {RESOLUTION} × "
        f"{RESOLUTION} pixels; it needs guidance, and it has no taste"
    )
    _draw(config, family, settings)
    print(f"3. training: `python -m chats_train train {output / CONFIG}`, or what that would do", flush=True)
    print(train(config))
    files = [output / f"{output.name}_{member}.safetensors" for member in (PREFERRED, DISPREFERRED)]
    if not all(file.exists() for file in files):
        # Ctrl-C came during training, which then ends with a checkpoint; the demo's own remaining steps are left out.
        print(
            f"this run alone goes on with `python -m chats_train train {output / CONFIG} --set "
            "resume_from_checkpoint=latest`"
        )
        raise KeyboardInterrupt
    _count(config, family, settings)
    print(
        f"in {output}: {PICTURE}, {COUNTS}, {', '.join(file.name for file in files)}, {PLOT_FILE}, {PREVIEWS}/, "
        f"{PAIRS}/, {BASE_NAME}/, {CONFIG}; this pair is too small for ComfyUI, which knows UNets by their published "
        "sizes"
    )
    print(NEXT_STEPS)
    print(f"the whole demo took {time.monotonic() - started:.0f} s; look at {output / PICTURE}")


def write_config(output: Path, settings: DemoSettings) -> RunConfig:
    """Writes the run's YAML as a user would, and reads it as any other."""
    raw = {
        "version": CONFIG_VERSION,
        "family": "sd15",
        "output_dir": str(output),
        "pretrained_model": str(output / BASE_NAME),
        "data": {"path": str(output / PAIRS)},
        "beta": settings.beta,
        "training_method": "full",
        "resolution": RESOLUTION,
        "enable_bucket": False,
        "bucket_reso_steps": 8,
        "max_train_steps": settings.train_steps,
        "train_batch_size": settings.train_batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": settings.train_steps // 10,
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "seed": settings.seed,
        "checkpointing_steps": settings.train_steps,
        "validation_pairs": settings.validation_pairs,
        "validation_steps": max(1, settings.train_steps // 8),
        "sample_every": max(1, settings.train_steps // 2),
        "sample_prompts": [prompt.text for prompt in prompt_sets().dev[-PREVIEW_PROMPTS:]],
        "sample_steps": settings.sample_steps,
        "guidance_scale": settings.preview_guidance_scale,
    }
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    write_text(
        output / CONFIG,
        f"# The demo's run. `python -m chats_train init sd15` writes a config with every setting explained.\n{text}",
    )
    return load_config(output / CONFIG)


def _draw(config: RunConfig, family: Family, settings: DemoSettings) -> None:
    """The pairs, from the base that is to be trained on them."""
    total = settings.pair_prompts * settings.candidates
    print(
        f"2. pairs: the base draws {settings.candidates} pictures for each of {settings.pair_prompts} prompts; of them "
        f"somebody who likes it when {TASTE_IN_WORDS} chooses the best and rejects the worst",
        flush=True,
    )
    with tqdm(total=total, desc="drawing", unit="picture") as bar:
        counts = draw_pairs(
            family,
            family.load_denoiser().to(family.device),
            balanced_prompts(prompt_sets().pairs, settings.pair_prompts, settings.seed),
            config.output_dir / PAIRS,
            candidates=settings.candidates,
            settings=SamplingSettings(steps=settings.pair_steps, guidance_scale=settings.pair_guidance_scale),
            seed=settings.seed,
            taste=TASTE,
            workers=WORKERS,
            bar=bar,
        )
    sides = (("all", counts.source), ("chosen", counts.chosen), ("rejected", counts.rejected))
    said = ", ".join(f"{name} {100 * each.right:.0f} % and {each.taste:.2f}" for name, each in sides)
    print(f"{counts.pairs} pairs in {config.output_dir / PAIRS}; right and taste (0 to 1): {said}")


def _count(config: RunConfig, family: Family, settings: DemoSettings) -> None:
    """Base and pair on prompts that no pair had, from the same noise, each at the scale that was best for it on other
    such prompts; the tables, the picture and the record."""
    counted = _counter(config, family, settings)
    dev = _shuffled(prompt_sets().dev, settings.seed, settings.dev_prompts)
    test = _shuffled(prompt_sets().test, settings.seed, settings.test_prompts)
    # Not the noise that the pairs were drawn from, and not the same twice.
    seed = settings.seed + 1000
    print(
        f"4. which guidance scale s: each side's is the one that is right most often for {len(dev)} held-out prompts",
        flush=True,
    )
    with tqdm(total=2 * len(settings.guidance_scales) * len(dev), desc="counting", unit="picture") as bar:
        base, pair = ([counted(side, scale, dev, seed, bar) for scale in settings.guidance_scales] for side in SIDES)
    print("\n".join(scales_table(base, pair)))
    print(
        f"5. what it is worth: one picture of each of {len(test)} other prompts that no pair had, from the same noise",
        flush=True,
    )
    with tqdm(total=2 * len(test), desc="counting", unit="picture") as bar:
        found = [
            counted(side, best(tried).guidance_scale, test, seed + 1, bar)
            for side, tried in zip(SIDES, (base, pair), strict=True)
        ]
    titles = "base, CFG", f"pair, CHATS ({settings.form}, alpha {config.alpha:g})"
    print("\n".join([*result_table(found[0], found[1], titles), *verdicts(found[0], found[1])]))
    _show(config.output_dir / PICTURE, found, test, settings)
    record = {"dev": _record(dev, base, pair), "test": _record(test, found[:1], found[1:])}
    write_text(config.output_dir / COUNTS, json.dumps(record) + "\n")


def _counter(
    config: RunConfig, family: Family, settings: DemoSettings
) -> Callable[[str, float, list[ScenePrompt], int, tqdm], Count]:
    """What counts a side's pictures at a guidance scale, of some prompts, from a seed."""
    members = trained_members(config, family, open_trained(config, "latest"))

    def counted(side: str, scale: float, prompts: list[ScenePrompt], seed: int, bar: tqdm) -> Count:
        sampling = SamplingSettings(settings.sample_steps, None, scale, config.alpha, settings.form)
        if side == "base":
            sampler = base_sampler(family, members.reference(), sampling)
        else:
            sampler = pair_sampler(family, members.denoiser(PREFERRED), members.denoiser(DISPREFERRED), sampling)
        return count(family, sampler, scale, prompts, TASTE, seed, WORKERS, bar)

    return counted


def _record(prompts: list[ScenePrompt], base: list[Count], pair: list[Count]) -> dict[str, object]:
    """Everything that was counted, in the order of the prompts."""
    sides = {side: [each.record() for each in counts] for side, counts in zip(SIDES, (base, pair), strict=True)}
    return {"prompts": [prompt.text for prompt in prompts], **sides}


def _show(path: Path, found: list[Count], prompts: list[ScenePrompt], settings: DemoSettings) -> None:
    """The picture, of prompts that were not picked."""
    chosen = random.Random(settings.seed).sample(range(len(prompts)), min(settings.shown_prompts, len(prompts)))
    halves = [
        Half(
            f"{heading}, s = {each.guidance_scale:g}",
            f"{shown(each.mean('right'), 'right')} right, taste {shown(each.mean('taste'), 'taste')}",
            each,
        )
        for heading, each in zip(("Before: the base, CFG", "After: the pair, CHATS"), found, strict=True)
    ]
    title = (
        f"Trained on choices of somebody who likes it when {TASTE_IN_WORDS}. {len(chosen)} of {len(prompts)} held-out "
        f"prompts, drawn at random (seed {settings.seed}); the same noise on both sides."
    )
    picture = before_and_after((halves[0], halves[1]), prompts, chosen, title)
    with replacing(path) as temporary:
        picture.save(temporary, format="png")


def _shuffled(prompts: tuple[ScenePrompt, ...], seed: int, number: int) -> list[ScenePrompt]:
    """Some of the prompts, or all of them for 0, in an order of the seed."""
    return random.Random(seed).sample(prompts, len(prompts))[: number or None]
