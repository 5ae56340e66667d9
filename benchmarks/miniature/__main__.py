"""The paper's claims, measured on a world so small that two cores hold it, every method trained and counted alike.

    python -m benchmarks.miniature --output FOLDER            # the whole study, two hours or so on two cores
    python -m benchmarks.miniature --quick                    # a reduced table in less than a quarter of an hour
    python -m benchmarks.miniature --report RESULTS.json      # table and plot of a study that is done

The world, its detector and the base are those of `python -m chats_train demo`; trainer and sampler are the ordinary
ones. Three sets of prompts that share none: the base draws pictures for the first, and the detector makes preference
pairs of them; on the second (dev) each method's learning rate and guidance scale are chosen, by one search for all; the
third (test) is counted once, at what was chosen.
A study that was stopped goes on: what is done lies in FOLDER, a file for each training.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path

from .plot import draw
from .report import Records, best_rates, chosen_scales, report, test_points
from .trainings import BASE, Method, Plan, Training, count_test, develop, make_pairs, one_thread

# Neighbours are a factor of 1.5 apart: with α = 0.5, s at α and (1+α)s at α = 0 are both in the sweep.
SCALES = tuple(round(16 / 1.5**power, 3) for power in range(8, -1, -1))
RATES = {"full": (5e-5, 2e-4), "lora": (5e-4, 2e-3)}
MAIN = (
    Method("supervised_all"),
    Method("supervised_chosen"),
    Method("two_models_without_reference"),
    *(Method(objective, beta) for objective in ("diffusion_dpo", "chats") for beta in (100.0, 1000.0)),
)
FURTHER = (
    *(Method(objective, 100.0, pairs=pairs) for pairs in (100, 400) for objective in ("diffusion_dpo", "chats")),
    Method("supervised_chosen", training_method="lora"),
    *(Method(objective, 100.0, training_method="lora") for objective in ("diffusion_dpo", "chats")),
)
FULL_PLAN = Plan(
    (*MAIN, *FURTHER),
    pair_prompts=4800,
    train_steps=160,
    seeds=3,
    dev_prompts=60,
    test_prompts=120,
    scales=SCALES,
    rates=RATES,
)
QUICK_PLAN = Plan(
    tuple(
        replace(Method(objective, 100.0), pairs=400) for objective in ("supervised_chosen", "diffusion_dpo", "chats")
    ),
    pair_prompts=1200,
    train_steps=100,
    seeds=1,
    dev_prompts=48,
    test_prompts=180,
    scales=SCALES[1:7],
    rates={"full": (2e-4,)},
)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.miniature", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("miniature"), help="the study's folder (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="few methods, one training seed, fewer pairs and prompts")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--report", type=Path, help="write table and plot of this file of results, and do nothing else")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # bars of single trainings, in all processes
    results = options.report or run_study(options.output, QUICK_PLAN if options.quick else FULL_PLAN, options.processes)
    print(write(results))


def write(path: Path) -> str:
    """Writes table and plot beside a file of results; returns the text."""
    results = json.loads(path.read_text(encoding="utf-8"))
    text = report(results, path.with_suffix(".png").name)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    return text


def run_study(folder: Path, plan: Plan, processes: int) -> Path:
    """The whole study; returns its file of results."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{(time.monotonic() - started) / 60:5.1f} min] {text}", flush=True)

    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=one_thread) as pool:
        drawing = pool.submit(make_pairs, folder, plan)
        base = [Training(BASE, 0.0, seed) for seed in range(plan.seeds)]
        records = gather(base, lambda training: pool.submit(develop, folder, plan, training), say)
        pairs = drawing.result()
        say(f"pairs: {pairs['right']:.3f} of {pairs['drawn']} pictures right, {pairs['pairs']} clear pairs")

        def developed(trainings: Iterable[Training]) -> Records:
            return gather(trainings, lambda training: pool.submit(develop, folder, plan, training), say)

        searched = [
            Training(method, rate, 0)
            for method in searched_methods(plan)
            for rate in plan.rates[method.training_method]
        ]
        records |= developed(searched)
        rates = best_rates(searched, records)
        chosen = [
            Training(method, rates[searched_as(method, plan)], seed)
            for seed in range(plan.seeds)
            for method in plan.methods
        ]
        records |= developed(training for training in chosen if training.name not in records)
        scales = chosen_scales([*base, *chosen], records)
        say(f"guidance scales: {scales}")
        points = {training.name: test_points(training.method, scales) for training in [*base, *chosen]}
        tests = gather(
            [*base, *chosen],
            lambda training: pool.submit(count_test, folder, plan, training, points[training.name]),
            say,
        )
    results = folder / "results.json"
    results.write_text(
        json.dumps(
            {
                "date": date.today().isoformat(),
                "machine": f"{platform.machine()}, {processes} processes of one thread",
                # Of all its processes together, also of those that ran before it was interrupted.
                "process_minutes": round(
                    sum(each["seconds"] for each in (pairs, *records.values(), *tests.values())) / 60
                ),
                "plan": asdict(plan),
                "pairs": pairs,
                "scales": scales,
                "rates": {method.name: rate for method, rate in rates.items()},
                "searched": {training.name: records[training.name] for training in searched},
                "trainings": [
                    {
                        **asdict(each),
                        "name": each.name,
                        "row": each.method.name,
                        **records[each.name],
                        "test": tests[each.name]["test"],
                    }
                    for each in [*base, *chosen]
                ],
            }
        ),
        encoding="utf-8",
    )
    return results


def searched_as(method: Method, plan: Plan) -> Method:
    """The method whose learning rate a method takes: the same on all pairs."""
    return replace(method, pairs=max(each.pairs for each in plan.methods))


def searched_methods(plan: Plan) -> list[Method]:
    return list(dict.fromkeys(searched_as(method, plan) for method in plan.methods))


def gather(trainings: Iterable[Training], submit: Callable, say: Callable[[str], None]) -> Records:
    """What the pool makes of each training, by its name; says so as each is done."""
    jobs = {training.name: submit(training) for training in trainings}
    records = {}
    for name, job in jobs.items():
        records[name] = job.result()
        say(f"{name}: {records[name]['seconds']:.0f} s")
    return records


if __name__ == "__main__":
    main()
