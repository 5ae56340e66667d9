"""What one process of the miniature does: draw the pairs, train a method, count its pictures. Each result is a file,
made once."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chats.files import write_text
from chats_train.demo.demo import BASE as BASE_FOLDER
from chats_train.demo.detector import judge
from chats_train.demo.make_pairs import draw_pairs
from chats_train.demo.samplers import Sampler, base_sampler, pair_sampler, sample_pictures
from chats_train.demo.world import CATEGORIES, RESOLUTION, ScenePrompt, balanced_prompts, split_prompts
from chats_train.families import Denoiser, Family, load_family
from chats_train.runs.checkpoint import has_checkpoint
from chats_train.runs.folder import CHECKPOINTS
from chats_train.runs.members import DISPREFERRED, PREFERRED, Members
from chats_train.runs.trained import open_trained, trained_members
from chats_train.sampling.probe import probe_proxy
from chats_train.sampling.sampler import SamplingSettings, initial_noise
from chats_train.settings.config import CONFIG_VERSION, RunConfig
from chats_train.settings.config_file import parse_config
from chats_train.training.train import train

ALPHA = 0.5
PAIR_SEED, DEV_SEED, TEST_SEED = 0, 5000, 9000
PROBED_PROMPTS = 48
# How one model is sampled, and how a pair is; "cfg" is the preferred model alone. α = 0 is CFG with two models, in
# either form.
SINGLE, PAIR = ("cfg",), ("cfg", "alpha0", "proxy", "exact")
LOG = "training.log"


@dataclass(frozen=True)
class Method:
    """What is trained, how, and on how many pairs; ``beta`` where the objective has one."""

    objective: str
    beta: float = 1000.0
    pairs: int = 1600
    training_method: str = "full"

    @property
    def name(self) -> str:
        if not self.pairs:
            return self.objective
        parts = [self.objective]
        if self.objective in ("chats", "diffusion_dpo"):
            parts.append(f"beta{self.beta:g}")
        return "-".join([*parts, self.training_method, str(self.pairs)])

    @property
    def conditions(self) -> tuple[str, ...]:
        return PAIR if self.objective in ("chats", "two_models_without_reference") else SINGLE


# Trains nothing; its seeds are those of the noise alone.
BASE = Method("base", pairs=0)


@dataclass(frozen=True)
class Training:
    """One training of a method."""

    method: Method
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        rate = f"-rate{self.learning_rate:g}" if self.learning_rate else ""
        return f"{self.method.name}{rate}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """How much of everything; scales are the paper's s, ``rates`` the learning rates to search by training method."""

    methods: tuple[Method, ...]
    pair_prompts: int
    train_steps: int
    seeds: int
    dev_prompts: int
    test_prompts: int
    scales: tuple[float, ...]
    rates: dict[str, tuple[float, ...]]
    candidates: int = 4
    pair_steps: int = 8
    pair_guidance_scale: float = 1.0
    train_batch_size: int = 32
    sample_steps: int = 10


def one_thread() -> None:
    torch.set_num_threads(1)


def prompt_sets() -> tuple[list[ScenePrompt], list[ScenePrompt], list[ScenePrompt]]:
    """Prompts for the pairs, for dev and for test, none in two of them: the demo's held-out third is test, a quarter of
    the rest dev."""
    rest, test = split_prompts()
    pairs, dev = [], []
    for category in CATEGORIES:
        for index, prompt in enumerate(prompt for prompt in rest if prompt.category == category):
            (pairs if index % 4 else dev).append(prompt)
    return pairs, dev, list(test)


def make_pairs(folder: Path, plan: Plan) -> dict[str, Any]:
    """The pairs, from the base, and the cache of their latents."""

    def make() -> dict[str, Any]:
        family = load_family("sd15", str(BASE_FOLDER))
        shutil.rmtree(folder / "pairs", ignore_errors=True)
        prompts = balanced_prompts(prompt_sets()[0], plan.pair_prompts, PAIR_SEED)
        settings = SamplingSettings(plan.pair_steps, guidance_scale=plan.pair_guidance_scale)
        counts = draw_pairs(
            family,
            family.load_denoiser(),
            prompts,
            folder / "pairs",
            candidates=plan.candidates,
            settings=settings,
            seed=PAIR_SEED,
        )
        wanted = max(method.pairs for method in plan.methods)
        if counts.pairs < wanted:
            raise ValueError(
                f"`pair_prompts` is {plan.pair_prompts}, which gave {counts.pairs} clear pairs of {wanted}; raise it"
            )
        fill(folder, plan)
        return asdict(counts)

    return once(folder / "pairs.json", make)


def fill(folder: Path, plan: Plan) -> None:
    """Encodes all pairs before the first training, so that no two trainings do it at once."""
    from chats_train.data import open_dataset
    from chats_train.encodings.cache import fill_cache

    config = run_config(folder, plan, Training(max(plan.methods, key=lambda method: method.pairs), 1e-4, 0))
    fill_cache(
        config.cache_dir,
        open_dataset(config, progress=False).samples,
        load_family("sd15", str(BASE_FOLDER)),
        progress=False,
    )


def develop(folder: Path, plan: Plan, training: Training) -> dict[str, Any]:
    """Trains, and counts every condition at every scale on dev."""

    def make() -> dict[str, Any]:
        family, members = trained(folder, plan, training)
        prompts = balanced_prompts(prompt_sets()[1], plan.dev_prompts, DEV_SEED)
        points = [(condition, scale) for condition in training.method.conditions for scale in plan.scales]
        counts = counted(family, members, plan, points, prompts, DEV_SEED + training.seed)
        return {"dev": counts, "probe": probed(family, members, training.method)}

    return once(folder / "dev" / f"{training.name}.json", make)


def count_test(folder: Path, plan: Plan, training: Training, points: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Counts some conditions and scales on test."""

    def make() -> dict[str, Any]:
        family, members = trained(folder, plan, training)
        prompts = balanced_prompts(prompt_sets()[2], plan.test_prompts, TEST_SEED)
        return {
            "points": [list(point) for point in points],
            "test": counted(family, members, plan, points, prompts, TEST_SEED + training.seed),
        }

    path = folder / "test" / f"{training.name}.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["points"] != [list(point) for point in points]:
        path.unlink()  # of other scales
    return once(path, make)


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in a file, with the seconds that it took; made and written where there is none."""
    if not path.exists():
        started = time.monotonic()
        write_text(path, json.dumps({**make(), "seconds": time.monotonic() - started}))
    return json.loads(path.read_text(encoding="utf-8"))


def run_config(folder: Path, plan: Plan, training: Training) -> RunConfig:
    method = training.method
    return parse_config(
        {
            "version": CONFIG_VERSION,
            "family": "sd15",
            "output_dir": str(folder / "runs" / training.name),
            "cache_dir": str(folder / "cache"),
            "pretrained_model": str(BASE_FOLDER),
            "data": {"path": str(folder / "pairs"), "max_pairs": method.pairs},
            "objective": method.objective,
            "beta": method.beta,
            "training_method": method.training_method,
            "resolution": RESOLUTION,
            "enable_bucket": False,
            "bucket_reso_steps": 8,
            "max_train_steps": plan.train_steps,
            "train_batch_size": plan.train_batch_size,
            "gradient_accumulation_steps": 1,
            "learning_rate": training.learning_rate,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": plan.train_steps // 10,
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "seed": training.seed,
            "checkpointing_steps": plan.train_steps,
            "validation_pairs": 0,
            "resume_from_checkpoint": "latest",
        }
    )


def trained(folder: Path, plan: Plan, training: Training) -> tuple[Family, Members | None]:
    """The members of a training, trained where that was not done yet; None for the base."""
    family = load_family("sd15", str(BASE_FOLDER))
    if not training.method.pairs:
        return family, None
    config = run_config(folder, plan, training)
    if not has_checkpoint(config.output_dir / CHECKPOINTS):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        with (
            open(config.output_dir / LOG, "a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            train(config)
    return family, trained_members(config, family, open_trained(config, "latest"))


def counted(
    family: Family,
    members: Members | None,
    plan: Plan,
    points: Sequence[tuple[str, float]],
    prompts: list[ScenePrompt],
    seed: int,
) -> dict[str, dict[str, str]]:
    """For each condition and scale, a 1 for each prompt that is drawn right and a 0 for each that is not."""
    bits: dict[str, dict[str, str]] = {}
    for condition, scale in points:
        pictures = sample_pictures(
            family, sampler_of(family, members, condition, scale, plan.sample_steps), prompts, seed
        )
        bits.setdefault(condition, {})[f"{scale:g}"] = "".join(str(int(right)) for right in judge(pictures, prompts))
    return bits


def sampler_of(family: Family, members: Members | None, condition: str, scale: float, steps: int) -> Sampler:
    if condition == "cfg":
        denoiser: Denoiser = family.load_denoiser() if members is None else members.denoiser(PREFERRED)
        return base_sampler(family, denoiser, SamplingSettings(steps, guidance_scale=scale))
    alpha, form = (0.0, "proxy") if condition == "alpha0" else (ALPHA, condition)
    settings = SamplingSettings(steps, guidance_scale=scale, alpha=alpha, form=form)
    return pair_sampler(family, members.denoiser(PREFERRED), members.denoiser(DISPREFERRED), settings)


@torch.no_grad()
def probed(family: Family, members: Members | None, method: Method) -> dict[str, float] | None:
    """The probe of the proxy prompt on the dispreferred model (on the base itself for the base), on pictures that the
    base draws."""
    if method.conditions == SINGLE and members is not None:
        return None
    denoiser = family.load_denoiser()
    prompts = balanced_prompts(prompt_sets()[1], PROBED_PROMPTS, DEV_SEED)
    latents = family.encode_image(
        sample_pictures(
            family, base_sampler(family, denoiser, SamplingSettings(10, guidance_scale=1.0)), prompts, DEV_SEED
        )
    )
    noise: Tensor = initial_noise(family, len(prompts), RESOLUTION, RESOLUTION, DEV_SEED + 1)
    embedded = family.encode_prompt([prompt.text for prompt in prompts])
    dispreferred = denoiser if members is None else members.denoiser(DISPREFERRED)
    return probe_proxy(family, dispreferred, latents, noise, embedded, family.null_prompt(), ALPHA).means
