"""What one process of the miniature does at a time: make a regime's pairs, train, count on dev or on test, probe. Each
is a unit of less than 90 seconds."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from chats.files import replacing, write_text
from chats_train.data import open_dataset
from chats_train.demo.detector import judge
from chats_train.demo.make_pairs import draw_pairs, makers_pairs
from chats_train.demo.samplers import Sampler, base_sampler, pair_sampler, sample_pictures
from chats_train.demo.taste import tastes
from chats_train.demo.weak_base import BASE as BUNDLED
from chats_train.demo.weak_base import write_weak_base
from chats_train.demo.world import RESOLUTION, ScenePrompt, balanced_prompts, prompt_sets
from chats_train.encodings.cache import fill_cache
from chats_train.families import Family, load_family
from chats_train.runs.folder import CHECKPOINTS
from chats_train.runs.members import DISPREFERRED, PREFERRED, Members
from chats_train.runs.trained import open_trained
from chats_train.runs.whole_members import make_members
from chats_train.sampling.sampler import SamplingSettings
from chats_train.settings.config import CONFIG_VERSION, RunConfig
from chats_train.settings.config_file import parse_config
from chats_train.support.jsonl import read_rows
from chats_train.training.reports import METRICS_FILE
from chats_train.training.train import train

from .mechanism import mechanism
from .plan import ALPHA, REGIMES, WITH_BETA, Condition, Plan, Training

PAIR_SEED, DEV_SEED, TEST_SEED = 0, 5000, 9000
LOG = "training.log"
Kind = Literal["pairs", "train", "dev", "test", "mechanism"]


@dataclass(frozen=True)
class Unit:
    """A piece of work: of a regime (its pairs) or of a training. ``points`` are what to count."""

    kind: Kind
    regime: str
    training: Training | None = None
    points: tuple[tuple[Condition, float], ...] = ()

    @property
    def name(self) -> str:
        if self.training is None:
            return f"{self.kind} {self.regime}"
        whose = self.training.run if self.kind == "train" else self.training.name
        return " ".join([self.kind, whose, *(f"{condition}@{scale:g}" for condition, scale in self.points)])


def one_thread() -> None:
    """For each process of the pool; numbers so small that they are slow count as 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def run(unit: Unit, plan: Plan, folder: Path) -> dict[str, Any]:
    """Does a unit; returns what is recorded of it, with the seconds of this process's time."""
    started = time.process_time()
    if unit.training is None:
        found = make_pairs(unit.regime, plan, folder)
    elif unit.kind == "train":
        found = run_training(unit.training, plan, folder)
    else:
        family, members = opened(unit.training, plan, folder)
        if unit.kind == "mechanism":
            assert members is not None, "the base has no mechanism"
            found = mechanism(family, members, unit.training.method.training_method == "full")
        else:
            found = {"points": counted(unit, plan, family, members)}
    whose = {"training": unit.training.name} if unit.training else {}
    facts = {"unit": unit.name, "kind": unit.kind, **whose, "regime": unit.regime, "machine": machine()}
    return {**facts, **found, "seconds": round(time.process_time() - started, 2)}


def machine() -> str:
    """Where a unit was done."""
    names = [line.partition(":")[2].strip() for line in read_lines(Path("/proc/cpuinfo")) if "model name" in line]
    return f"{platform.machine()}, {names[0] if names else platform.processor()}, torch {torch.__version__}"


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


# Pairs and training.


def data_folder(regime: str, folder: Path) -> Path:
    return folder / "data" / regime


def pairs_made(regime: str, folder: Path) -> bool:
    return (data_folder(regime, folder) / "made.json").exists()


def base_folder(regime: str, folder: Path) -> Path:
    return data_folder(regime, folder) / "base" if REGIMES[regime].weak_base else BUNDLED


def base_family(regime: str, folder: Path) -> Family:
    return load_family("sd15", str(base_folder(regime, folder)))


def pair_prompts(plan: Plan) -> list[ScenePrompt]:
    """What a regime's pairs are made for; some texts come again."""
    return balanced_prompts(prompt_sets().pairs, plan.pairs, PAIR_SEED)


def make_pairs(regime: str, plan: Plan, folder: Path) -> dict[str, Any]:
    """A regime's base, its pairs, and the cache of their latents, so that no two trainings encode at once."""
    facts, home = REGIMES[regime], data_folder(regime, folder)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if facts.weak_base:
        write_weak_base(home / "base")
    family = base_family(regime, folder)
    prompts = pair_prompts(plan)
    if facts.source == "makers":
        counts = makers_pairs(prompts, home / "pairs", facts.taste, PAIR_SEED)
    else:
        settings = SamplingSettings(plan.pair_steps, guidance_scale=plan.pair_scale)
        denoiser = family.load_denoiser()
        counts = draw_pairs(
            family,
            denoiser,
            prompts,
            home / "pairs",
            candidates=plan.candidates,
            settings=settings,
            seed=PAIR_SEED,
            taste=facts.taste,
        )
    config = run_config(regime, home / "unused", folder, {"max_train_steps": 1})
    fill_cache(config.cache_dir, open_dataset(config, progress=False).samples, family, progress=False)
    write_text(home / "made.json", json.dumps(asdict(counts)))
    return {"pairs": asdict(counts)}


def run_config(regime: str, output: Path, folder: Path, changes: dict[str, Any]) -> RunConfig:
    home = data_folder(regime, folder)
    return parse_config(
        {
            "version": CONFIG_VERSION,
            "family": "sd15",
            "output_dir": str(output),
            "cache_dir": str(home / "cache"),
            "pretrained_model": str(base_folder(regime, folder)),
            "data": {"path": str(home / "pairs"), **changes.pop("data", {})},
            "resolution": RESOLUTION,
            "enable_bucket": False,
            "bucket_reso_steps": 8,
            "gradient_accumulation_steps": 1,
            "lr_scheduler": "cosine",
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "validation_pairs": 0,
            **changes,
        }
    )


def training_config(training: Training, plan: Plan, output: Path, folder: Path) -> RunConfig:
    settings, method = training.settings, training.method
    shortest = min(stops_of(training, plan))
    changes = {
        "data": {"max_pairs": method.pairs},
        "objective": method.objective,
        "beta": settings.beta,
        "training_method": method.training_method,
        "max_train_steps": settings.steps,
        "train_batch_size": plan.train_batch_size,
        "learning_rate": settings.rate,
        "lr_warmup_steps": settings.steps // 10,
        "seed": training.seed,
        "checkpointing_steps": shortest,
        "checkpoints_total_limit": None,
    }
    return run_config(training.regime, output, folder, changes)


def stops_of(training: Training, plan: Plan) -> list[int]:
    """After which steps a run's weights are kept."""
    steps = training.settings.steps
    shares = plan.stops if training.method.objective == "diffusion_dpo" else (1.0,)
    return [max(1, round(share * steps)) for share in shares]


def weights_file(training: Training, folder: Path) -> Path:
    return stopped_file(training.run, training.settings.stop, folder)


def stopped_file(run: str, step: int, folder: Path) -> Path:
    """Of a run after so many steps."""
    return folder / "weights" / f"{run}@{step}.safetensors"


def run_training(training: Training, plan: Plan, folder: Path) -> dict[str, Any]:
    """Trains by the trainer itself, from the start, and keeps the weights; what its metrics came to."""
    output = folder / "runs" / training.run
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    config = training_config(training, plan, output, folder)
    with (
        open(output / LOG, "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        train(config)
    rows = read_rows(output / METRICS_FILE)
    (folder / "weights").mkdir(exist_ok=True)
    for checkpoint in sorted((output / CHECKPOINTS).iterdir()):
        step = int(checkpoint.name.rpartition("-")[2])
        if step in stops_of(training, plan):
            weights = open_trained(config, str(checkpoint)).weights()
            with replacing(stopped_file(training.run, step, folder)) as temporary:
                save_file(weights, temporary)
    lost = [step for step in stops_of(training, plan) if not stopped_file(training.run, step, folder).exists()]
    assert not lost, f"{training.run} left no checkpoint of step {lost}"
    shutil.rmtree(output)
    tail = rows[-max(1, len(rows) // 7) :]
    names = [name for name in ("loss", "implicit_accuracy", "gate") if name in rows[0]]
    found = {name: sum(row[name] for row in tail) / len(tail) for name in names}
    if training.method.objective in WITH_BETA:
        # Of all steps: how much of the gradient came through, of ½ as at the first step.
        found["mean_gate"] = sum(row["gate"] for row in rows) / len(rows)
    return {"metrics": found}


def opened(training: Training, plan: Plan, folder: Path) -> tuple[Family, Members | None]:
    """The members of a training; None for the base."""
    family = base_family(training.regime, folder)
    if not training.method.pairs:
        return family, None
    config = training_config(training, plan, folder / "unused", folder)
    members = make_members(config, family, 2 if training.method.is_pair else 1, False, torch.device("cpu"))
    members.load_state(load_file(weights_file(training, folder)))
    return family, members


# Counting.


def prompts_of(kind: str, plan: Plan) -> list[ScenePrompt]:
    """Of dev or test: all of them, or in a smaller plan some, evenly spread."""
    prompts = prompt_sets().dev if kind == "dev" else prompt_sets().test
    count = plan.dev_prompts if kind == "dev" else plan.test_prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def counted(unit: Unit, plan: Plan, family: Family, members: Members | None) -> dict[str, dict[str, Any]]:
    """For each point the right pictures and the taste: means on dev, picture by picture on test (taste in
    thousandths)."""
    assert unit.training is not None, "only trainings are counted"
    prompts = prompts_of(unit.kind, plan)
    seed = (DEV_SEED if unit.kind == "dev" else TEST_SEED) + unit.training.seed
    taste = REGIMES[unit.regime].taste
    found = {}
    for condition, scale in unit.points:
        sampler = sampler_of(family, members, condition, scale, plan.sample_steps)
        pictures = sample_pictures(family, sampler, prompts, seed)
        right, liked = judge(pictures, prompts), tastes(pictures, taste)
        found[f"{condition}@{scale:g}"] = (
            {"right": sum(right) / len(right), "taste": sum(liked) / len(liked)}
            if unit.kind == "dev"
            else {"right": "".join(str(int(each)) for each in right), "taste": [round(1000 * each) for each in liked]}
        )
    return found


def sampler_of(family: Family, members: Members | None, condition: Condition, scale: float, steps: int) -> Sampler:
    if members is None:
        return base_sampler(family, family.load_denoiser(), SamplingSettings(steps, guidance_scale=scale))
    if condition in ("cfg", "dispreferred"):
        name = PREFERRED if condition == "cfg" else DISPREFERRED
        return base_sampler(family, members.denoiser(name), SamplingSettings(steps, guidance_scale=scale))
    alpha, form = (ALPHA, condition) if condition in ("proxy", "exact") else (0.0, "proxy")
    settings = SamplingSettings(steps, guidance_scale=scale, alpha=alpha, form=form)
    negative = family.load_denoiser() if condition == "base_negative" else members.denoiser(DISPREFERRED)
    return pair_sampler(family, members.denoiser(PREFERRED), negative, settings)


def passes(points: Sequence[tuple[Condition, float]]) -> int:
    """Calls of a model for each step of these."""
    return sum(3 if condition == "exact" else 2 for condition, _ in points)
