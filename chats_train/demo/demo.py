"""``python -m chats_train demo``: from the bundled base to a pair and a picture, by the ordinary trainer, export and
sampler."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import yaml

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
from .make_pairs import draw_pairs
from .measure import Count, best, category_table, count, side_by_side, table, verdict
from .samplers import base_sampler, pair_sampler
from .weak_base import BASE
from .world import RESOLUTION, balanced_prompts, split_prompts

CONFIG, PAIRS, PICTURE = "run.yaml", "pairs", "side_by_side.png"
PREVIEW_PROMPTS = 4
SHOWN_PROMPTS = 12


@dataclass(frozen=True)
class DemoSettings:
    """How much of everything; guidance scales are the paper's s."""

    pair_prompts: int = 1200
    candidates: int = 4
    pair_steps: int = 8
    pair_guidance_scale: float = 1.0
    train_steps: int = 160
    train_batch_size: int = 32
    # Rate, β and steps are those of `benchmarks/miniature/results.md`, where they were chosen.
    learning_rate: float = 5e-5
    beta: float = 100.0
    validation_pairs: int = 32
    counted_prompts: int = 300
    # Both sides are counted at all of these. Both are best near 2, and the base falls faster from there on.
    guidance_scales: tuple[float, ...] = (1.0, 2.0, 4.0, 7.0)
    preview_guidance_scale: float = 4.0
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
    config = write_config(output, settings)
    family = open_family(config)
    print(
        f"base: {family.parameter_counts()['unet'] / 1e6:.1f} M parameters, pictures of {RESOLUTION} × {RESOLUTION} "
        "pixels"
    )
    _draw(config, family, settings)
    print(f"training: `python -m chats_train train {output / CONFIG}`, or what that would do")
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
        f"in {output}: {', '.join(file.name for file in files)}, {PICTURE}, {PLOT_FILE}, {PREVIEWS}/, {PAIRS}/, "
        f"{CONFIG}"
    )
    print(
        "the pair has the files of any other, but is too small for ComfyUI, which knows UNets by their published sizes"
    )
    print(f"the whole demo took {time.monotonic() - started:.0f} s")


def write_config(output: Path, settings: DemoSettings) -> RunConfig:
    """Writes the run's YAML as a user would, and reads it as any other."""
    _, held_out = split_prompts()
    raw = {
        "version": CONFIG_VERSION,
        "family": "sd15",
        "output_dir": str(output),
        "pretrained_model": str(BASE),
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
        "sample_prompts": [
            prompt.text for prompt in balanced_prompts(held_out, 2 * PREVIEW_PROMPTS, settings.seed)[-PREVIEW_PROMPTS:]
        ],
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
    prompts, _ = split_prompts()
    total = settings.pair_prompts * settings.candidates
    print(
        f"pairs: the base draws {total} pictures for {settings.pair_prompts} prompts, a detector says which are right "
        "…",
        flush=True,
    )
    counts = draw_pairs(
        family,
        family.load_denoiser().to(family.device),
        balanced_prompts(prompts, settings.pair_prompts, settings.seed),
        config.output_dir / PAIRS,
        candidates=settings.candidates,
        settings=SamplingSettings(steps=settings.pair_steps, guidance_scale=settings.pair_guidance_scale),
        seed=settings.seed,
    )
    print(
        f"pairs: {100 * counts.source.right:.0f} % are right; {counts.pairs} pairs of a better and a worse one in "
        f"{config.output_dir / PAIRS}"
    )


def _count(config: RunConfig, family: Family, settings: DemoSettings) -> None:
    """Base and pair on prompts that no pair was drawn for, from the same noise, at the same scales; the table and the
    picture."""
    _, held_out = split_prompts()
    prompts = balanced_prompts(held_out, settings.counted_prompts, settings.seed)
    form = f"{settings.form}, alpha {config.alpha:g}"
    print(f"counting: {len(prompts)} pictures a side and scale, prompts that no pair had, same seeds …", flush=True)
    members = trained_members(config, family, open_trained(config, "latest"))
    seed = settings.seed + 1000  # not the noise that the pairs were drawn from
    base: list[Count] = []
    pair: list[Count] = []
    for scale in settings.guidance_scales:
        sampling = SamplingSettings(settings.sample_steps, guidance_scale=scale, alpha=config.alpha, form=settings.form)
        chats = pair_sampler(family, members.denoiser(PREFERRED), members.denoiser(DISPREFERRED), sampling)
        base.append(count(family, base_sampler(family, members.reference(), sampling), scale, prompts, seed))
        pair.append(count(family, chats, scale, prompts, seed))
    print("\n".join(table(base, pair, f"pair, CHATS ({form})")))
    base_best, pair_best = best(base), best(pair)
    print(f"by category, each at its best scale (s = {base_best.guidance_scale:g} and {pair_best.guidance_scale:g}):")
    print("\n".join(category_table(base_best, pair_best, prompts)))
    print(verdict(base_best, pair_best))
    titles = f"base, CFG, s = {base_best.guidance_scale:g}", f"CHATS, {settings.form}, s = {pair_best.guidance_scale:g}"
    picture = side_by_side(base_best, pair_best, prompts[:SHOWN_PROMPTS], titles)
    with replacing(config.output_dir / PICTURE) as temporary:
        picture.save(temporary, format="png")
