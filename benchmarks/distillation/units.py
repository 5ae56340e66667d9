"""What is done at a time: pairs of pictures, a pair of models, a student; and how each is counted."""

from __future__ import annotations

import contextlib
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from chats.files import replacing
from chats_train.data import open_dataset
from chats_train.demo.detector import judge
from chats_train.demo.samplers import Sampler, base_sampler, pair_sampler, sample_pictures
from chats_train.demo.taste import tastes
from chats_train.distillation.distill import make_trainer
from chats_train.distillation.finished_run import FinishedRun, open_finished_run
from chats_train.distillation.settings import DistillSettings, student_config
from chats_train.distillation.student import STUDENT
from chats_train.encodings.cache import CachedEncodings
from chats_train.families import Family
from chats_train.runs.members import DISPREFERRED, PREFERRED
from chats_train.runs.processes import Processes
from chats_train.runs.trained import trained_members
from chats_train.sampling.sampler import SamplingSettings
from chats_train.training.train import train
from chats_train.training.trainer import Trainer

from ..miniature import units as miniature
from ..miniature.plan import ALPHA
from ..miniature.plan import REGIMES as WORLDS
from .own_data import OwnData, OwnPaths, OwnPictures, own_data
from .plan import Plan, Student, Unit, pair_training

SETS = {"dev": miniature.DEV_SEED, "test": miniature.TEST_SEED}


def run(unit: Unit, plan: Plan, folder: Path) -> dict[str, Any]:
    """Does a unit; returns what is recorded of it, with the seconds of this process's time."""
    started = time.process_time()
    do = {"pictures": make_pictures, "base": count_base, "pair": train_and_count_pair, "student": distill_and_count}
    found = do[unit.kind](unit, plan, folder)
    facts = {"unit": unit.name, "kind": unit.kind, "regime": unit.regime, "machine": miniature.machine()}
    return {**facts, **found, "seconds": round(time.process_time() - started, 2)}


def make_pictures(unit: Unit, plan: Plan, folder: Path) -> dict[str, Any]:
    return miniature.make_pairs(unit.regime, plan.world, folder)


def count_base(unit: Unit, plan: Plan, folder: Path) -> dict[str, Any]:
    family = miniature.base_family(unit.regime, folder)
    sampler = base_sampler(family, family.load_denoiser(), sampled_at(unit.scale, plan))
    return {"points": {"base": Judge(unit, plan, folder, family).count(sampler)}}


def train_and_count_pair(unit: Unit, plan: Plan, folder: Path) -> dict[str, Any]:
    """The pair at the unit's scale, whose pictures are kept, and its preferred model alone, in one pass a step."""
    run = finished_pair(unit, plan, folder)
    family = miniature.base_family(unit.regime, folder)
    members = trained_members(run.config, family, run.checkpoint, with_reference=False)
    preferred = members.denoiser(PREFERRED)
    pair = pair_sampler(family, preferred, members.denoiser(DISPREFERRED), sampled_at(unit.scale, plan))
    judge_of = Judge(unit, plan, folder, family)
    points = {"pair": judge_of.count(pair, keep=True)}
    points["preferred"] = judge_of.count(base_sampler(family, preferred, sampled_at(0.0, plan)))
    return {"points": points}


def distill_and_count(unit: Unit, plan: Plan, folder: Path) -> dict[str, Any]:
    """A distillation, counted after some of its steps; of each its loss, as a share of the preferred model's own, in
    the mean of the last eighth of all steps before it."""
    assert unit.student is not None
    home = folder / "students" / unit.name
    shutil.rmtree(home, ignore_errors=True)
    trainer = student_trainer(unit, unit.student, plan, folder, home)
    family = trainer.family
    judge_of = Judge(unit, plan, folder, family)
    student = trainer.members.denoiser(STUDENT)
    points, errors = {}, []
    while trainer.step < max(unit.marks):
        metrics = trainer.train_step().metrics
        errors.append((metrics["loss"], metrics["preferred_error"]))
        if trainer.step in unit.marks:
            last = errors[-max(1, plan.steps // 8) :]
            loss, all_there_is = (sum(each) for each in zip(*last, strict=True))
            found = judge_of.count(base_sampler(family, student, sampled_at(0.0, plan)))
            points[str(trainer.step)] = found | {"error_left": round(loss / all_there_is, 4)}
    shutil.rmtree(home, ignore_errors=True)
    return {"points": points}


def sampled_at(scale: float, plan: Plan) -> SamplingSettings:
    return SamplingSettings(plan.world.sample_steps, guidance_scale=scale, alpha=ALPHA, form="proxy")


# Pair and student.


def finished_pair(unit: Unit, plan: Plan, folder: Path) -> FinishedRun:
    """The run of a pair, trained where it is not there."""
    training = pair_training(unit.regime, unit.seed, plan)
    home = folder / "runs" / training.run
    if not (home / "trained").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        with open(home / miniature.LOG, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            train(miniature.training_config(training, plan.world, home, folder))
        (home / "trained").touch()
    return open_finished_run(home, [], "latest")


def student_trainer(unit: Unit, student: Student, plan: Plan, folder: Path, home: Path) -> Trainer:
    """A distillation before its first step, as `python -m chats_train distill` begins it."""
    run = finished_pair(unit, plan, folder)
    settings = DistillSettings(
        form="proxy",
        guidance_scale=student.scale,
        alpha=ALPHA,
        method=student.method,
        rank=student.rank or 1,
        steps=plan.steps,
        learning_rate=student.rate,
        batch_size=plan.batch_size,
        seed=unit.seed,
    ).filled_in(run)
    family = miniature.base_family(unit.regime, folder)
    dataset = open_dataset(run.config, progress=False)
    config = student_config(settings, run.config, family, home, 1)
    encodings = CachedEncodings(run.config.cache_dir, family.fingerprint)
    make = partial(make_trainer, run, settings, config, family, dataset)
    if student.data == "pairs":
        return make(encodings, Processes())
    own = drawn_by_teacher(unit, student, plan, folder, run, family, encodings)
    if student.data == "own pictures":
        return make(OwnPictures(run.config.cache_dir, family.fingerprint, dataset.samples, own), Processes())
    return make(encodings, Processes(), partial(OwnPaths, own, unit.seed))


def drawn_by_teacher(
    unit: Unit,
    student: Student,
    plan: Plan,
    folder: Path,
    run: FinishedRun,
    family: Family,
    encodings: CachedEncodings,
) -> OwnData:
    members = trained_members(run.config, family, run.checkpoint, with_reference=False)
    samples = open_dataset(run.config, progress=False).samples
    path = folder / "own" / f"{unit.regime}-seed{unit.seed}-s{student.scale:g}.safetensors"
    return own_data(path, family, members, encodings, samples, sampled_at(student.scale, plan), unit.seed)


# Counting.


class Judge:
    """Counts samplers on the texts of dev and test, and how far their pictures are from the teacher's."""

    def __init__(self, unit: Unit, plan: Plan, folder: Path, family: Family):
        self.unit, self.plan, self.folder, self.family = unit, plan, folder, family

    def count(self, sampler: Sampler, keep: bool = False) -> dict[str, Any]:
        """On dev means, on test picture by picture (taste in thousandths). ``distance`` is the mean square of the
        difference from the teacher's pictures, of values from −1 to 1; with ``keep`` these are those."""
        found: dict[str, Any] = {}
        for name, seed in SETS.items():
            if name == "test" and not self.unit.with_test:
                continue
            prompts = miniature.prompts_of(name, self.plan.world)
            pictures = sample_pictures(self.family, sampler, prompts, seed + self.unit.seed)
            right, liked = judge(pictures, prompts), tastes(pictures, WORLDS[self.unit.regime].taste)
            if name == "dev":
                found[name] = {"right": sum(right) / len(right), "taste": sum(liked) / len(liked)}
            else:
                bits = "".join(str(int(each)) for each in right)
                found[name] = {"right": bits, "taste": [round(1000 * each) for each in liked]}
            if keep:
                self.keep(name, pictures)
            elif self.unit.kind != "base":
                found[name]["distance"] = round((pictures - self.teachers(name)).square().mean().item(), 5)
        return found

    def keep(self, name: str, pictures: Tensor) -> None:
        self.path(name).parent.mkdir(exist_ok=True)
        with replacing(self.path(name)) as temporary:
            save_file({"pictures": pictures.contiguous()}, temporary)

    def teachers(self, name: str) -> Tensor:
        return load_file(self.path(name))["pictures"]

    def path(self, name: str) -> Path:
        scale = self.unit.student.scale if self.unit.student else self.unit.scale
        return self.folder / "pictures" / f"{self.unit.regime}-seed{self.unit.seed}-s{scale:g}-{name}.safetensors"
