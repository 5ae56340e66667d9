"""What draws that come again cost in quality (`reference_draws`), in the demo's world: K of them against fresh ones.

    python -m benchmarks.reference_draws --markdown FILE

Whole models on the weak base and pairs of makers, as `python -m benchmarks.miniature` trains CHATS there, for one
number of steps on few pairs, each visited often, and on many, each visited seldom. Some pairs are held out; pictures
are those of the study's test prompts. A study that was stopped goes on: what is done are lines of
FOLDER/results.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from chats.files import write_text
from chats_train.demo.detector import judge
from chats_train.demo.samplers import sample_pictures
from chats_train.demo.taste import tastes
from chats_train.runs.trained import open_trained
from chats_train.runs.whole_members import make_members
from chats_train.support.jsonl import read_rows
from chats_train.training.reports import METRICS_FILE
from chats_train.training.train import train

from .miniature.plan import FULL_PLAN, MAKERS
from .miniature.units import (
    TEST_SEED,
    base_family,
    machine,
    make_pairs,
    one_thread,
    pairs_made,
    prompts_of,
    run_config,
    sampler_of,
)

HELD_OUT, BATCH, STEPS = 60, 16, 240
# What the study of all methods chose for CHATS with 60 pairs.
RATE, BETA, SCALE = 4e-4, 100.0, 4.741
CONDITIONS = {"alpha0": "α = 0", "proxy": "α = 0.5, proxy"}
SEEDS = (0, 1, 2)
MEASURED = ("implicit_accuracy", "z", "error_chosen", "error_rejected")


@dataclass(frozen=True)
class Setting:
    """So many pairs are trained on; each K of ``repeats`` is held against fresh draws."""

    pairs: int
    repeats: tuple[int, ...]

    @property
    def draws(self) -> tuple[int | None, ...]:
        return (None, *self.repeats)

    @property
    def epochs(self) -> int:
        return STEPS * BATCH // self.pairs

    def folder(self, output: Path) -> Path:
        return output / f"{self.pairs}-pairs"


SETTINGS = (Setting(60, (4, 8, 16)), Setting(480, (4,)))
# By pairs, seed and K.
Runs = dict[tuple[int, int, int | None], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.reference_draws", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reference-draws"), help="folder (default: %(default)s)")
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    options = parser.parse_args()
    os.environ |= {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    one_thread()
    options.output.mkdir(parents=True, exist_ok=True)
    records = options.output / "results.jsonl"
    for seed in SEEDS:
        for setting in SETTINGS:
            for draws in setting.draws:
                if (setting.pairs, seed, draws) not in runs_of(records):
                    row = measured(setting, options.output, seed, draws)
                    with records.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
    text = report(runs_of(records))
    print(text)
    if options.markdown:
        write_text(options.markdown, text)


def runs_of(records: Path) -> Runs:
    """What is done."""
    return {(row["pairs"], row["seed"], row["draws"]): row for row in read_rows(records)}


def measured(setting: Setting, output: Path, seed: int, draws: int | None) -> dict[str, Any]:
    """One training: what it came to on held-out pairs and in pictures, and its processor seconds."""
    plan, folder = replace(FULL_PLAN, pairs=setting.pairs + HELD_OUT), setting.folder(output)
    if not pairs_made(MAKERS.name, folder):
        make_pairs(MAKERS.name, plan, folder)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    changes = {
        "objective": "chats",
        "training_method": "full",
        "beta": BETA,
        "learning_rate": RATE,
        "max_train_steps": STEPS,
        "lr_warmup_steps": STEPS // 10,
        "train_batch_size": BATCH,
        "checkpointing_steps": STEPS,
        "validation_pairs": HELD_OUT,
        "validation_steps": STEPS // 4,
        "seed": seed,
        "reference_draws": draws,
    }
    config = run_config(MAKERS.name, run, folder, changes)
    started = time.process_time()
    with open(folder / "training.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        ended = train(config)
    if not ended.startswith("trained"):
        raise SystemExit(f"{ended}; start the study again, and this training with it")
    seconds = time.process_time() - started
    rows = [row for row in read_rows(run / METRICS_FILE) if "validation_loss" in row]
    family = base_family(MAKERS.name, folder)
    members = make_members(config, family, 2, False, torch.device("cpu"))
    members.load_state(open_trained(config, "latest").weights())
    prompts = prompts_of("test", plan)
    found = {}
    for condition in CONDITIONS:
        sampler = sampler_of(family, members, condition, SCALE, plan.sample_steps)
        pictures = sample_pictures(family, sampler, prompts, TEST_SEED + seed)
        found[condition] = {
            "right": [int(each) for each in judge(pictures, prompts)],
            "taste": tastes(pictures, MAKERS.taste),
        }
    shutil.rmtree(run)
    held_out = [{name: row[f"validation_{name}"] for name in MEASURED} for row in rows]
    facts = {"pairs": setting.pairs, "seed": seed, "draws": draws, "machine": machine(), "seconds": seconds}
    return {**facts, "held_out": held_out, "pictures": found}


def report(runs: Runs) -> str:
    """Markdown: each K beside fresh draws of the same seeds, over all texts and seeds."""
    hours = sum(row["seconds"] for row in runs.values()) / 3600
    lines = [
        "# Draws that come again",
        "",
        f"`python -m benchmarks.reference_draws`, {date.today().isoformat()}, {next(iter(runs.values()))['machine']}: "
        f"{len(runs)} trainings, {hours:.2f} hours of one core. CHATS, whole models, pairs of makers on the weak base, "
        f"{STEPS} steps of {BATCH} pairs, learning rate {RATE:g}, β = {BETA:g}; {HELD_OUT} pairs held out; s = "
        f"{SCALE:g}, {FULL_PLAN.test_prompts} texts, {len(SEEDS)} seeds. Differences are to fresh draws with the same "
        "seed, and on the same text and noise; standard errors are over texts, each the mean of its seeds.",
    ]
    for setting in SETTINGS:
        visits = [f"{setting.epochs / draws:g} times at K = {draws}" for draws in setting.repeats]
        lines += ["", f"## {setting.pairs} pairs, {setting.epochs} epochs", ""]
        lines += [f"A draw is seen {', '.join(visits)}, once where draws are fresh.", ""]
        lines += [*held_out_table(setting, runs), "", *pictures_table(setting, runs)]
    return "\n".join(lines) + "\n"


def held_out_table(setting: Setting, runs: Runs) -> list[str]:
    lines = [
        "| draws of a pair | seconds of training | held out: accuracy | less fresh, by seed | error, chosen | error, "
        "rejected |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    fresh = [held_out(runs, setting, seed, None)["implicit_accuracy"] for seed in SEEDS]
    for draws in setting.draws:
        last = [held_out(runs, setting, seed, draws) for seed in SEEDS]
        mean = {name: statistics.mean(each[name] for each in last) for name in MEASURED}
        apart = [each["implicit_accuracy"] - base for each, base in zip(last, fresh, strict=True)]
        by_seed = ", ".join(f"{each:+.3f}" for each in apart) if draws else ""
        seconds = statistics.mean(runs[setting.pairs, seed, draws]["seconds"] for seed in SEEDS)
        lines.append(
            f"| {draws or 'fresh'} | {seconds:.0f} | {mean['implicit_accuracy']:.3f} | {by_seed} | "
            f"{mean['error_chosen']:.4f} | {mean['error_rejected']:.4f} |"
        )
    return lines


def held_out(runs: Runs, setting: Setting, seed: int, draws: int | None) -> dict[str, float]:
    """What was measured last on pairs that were held out."""
    return runs[setting.pairs, seed, draws]["held_out"][-1]


def pictures_table(setting: Setting, runs: Runs) -> list[str]:
    lines = [
        "| draws of a pair | sampled with | % right | taste | right less fresh's | taste less fresh's | by seed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for draws in setting.draws:
        for condition, title in CONDITIONS.items():
            these, fresh = (
                [runs[setting.pairs, seed, each]["pictures"][condition] for seed in SEEDS] for each in (draws, None)
            )
            cells = pictures_cells(these, fresh if draws else None)
            lines.append(f"| {' | '.join([str(draws or 'fresh'), title, *cells])} |")
    return lines


def pictures_cells(these: Sequence[dict[str, Any]], fresh: Sequence[dict[str, Any]] | None) -> list[str]:
    """Of the runs of all seeds; what they differ by from those with fresh draws."""

    def difference(kind: str) -> list[list[float]]:
        pairs = zip(these, fresh or (), strict=True)
        return [[one - other for one, other in zip(a[kind], b[kind], strict=True)] for a, b in pairs]

    cells = [
        mean_and_error([each["right"] for each in these], 100, 1),
        mean_and_error([each["taste"] for each in these], 1, 3),
    ]
    if fresh is None:
        return [*cells, "", "", ""]
    right, taste = difference("right"), difference("taste")
    by_seed = ", ".join(
        f"{100 * statistics.mean(r):+.1f} / {statistics.mean(t):+.3f}" for r, t in zip(right, taste, strict=True)
    )
    return [*cells, mean_and_error(right, 100, 1, "+"), mean_and_error(taste, 1, 3, "+"), by_seed]


def mean_and_error(by_seed: list[list[float]], unit: int, digits: int, sign: str = "") -> str:
    """The mean over seeds and texts, and its standard error over texts."""
    texts = [unit * statistics.mean(each) for each in zip(*by_seed, strict=True)]
    error = statistics.stdev(texts) / len(texts) ** 0.5
    return f"{statistics.mean(texts):{sign}.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    main()
