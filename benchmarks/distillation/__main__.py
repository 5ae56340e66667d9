"""What is left of a pair when it is distilled into one LoRA: counted in the miniature's world beside the pair itself.

    python -m benchmarks.distillation                    # the whole study, three quarters of an hour of one core
    python -m benchmarks.distillation --report RESULTS   # tables and plot, and the tables of docs/evidence.md

World, pairs, texts, noise, detector and taste are those of `python -m benchmarks.miniature`, which also chose how the
pairs are trained and sampled; the distillation is that of `python -m chats_train distill`. The LoRA's learning rate is
chosen on dev, for all rows alike; the texts of test are counted once. A study that was stopped goes on: what is done are
lines of FOLDER/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chats.files import write_text
from chats_train.support.jsonl import read_rows

from ..miniature.__main__ import end_line
from ..miniature.units import one_thread
from .choices import chosen_rate
from .plan import PLANS, Plan, Unit, units
from .units import run

RECORDS, LOG, RESULTS = "results.jsonl", "study.log", "results.json"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.distillation", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("miniature") / "distillation",
        help="the study's folder (default: %(default)s)",
    )
    parser.add_argument("--plan", choices=PLANS, default="full", help="tiny proves that all of it runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no unit later, to go on another time")
    options = parser.parse_args()
    # No bars of single trainings, one core, no GPU, whose sums differ from run to run.
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    study(options.output, PLANS[options.plan], time.monotonic() + 60 * options.minutes)


def study(folder: Path, plan: Plan, end: float) -> bool:
    """Does units until all are done, or the time is over; whether all are done."""
    folder.mkdir(parents=True, exist_ok=True)
    end_line(folder / RECORDS)
    done = {row["unit"]: row for row in read_rows(folder / RECORDS)}
    started = time.monotonic()
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=one_thread) as pool:
        while unit := next((each for each in units(plan, chosen_rate(plan, done)) if each.name not in done), None):
            if time.monotonic() > end:
                return False
            row = done[unit.name] = pool.submit(run, unit, plan, folder).result()
            with (folder / RECORDS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            line = f"[{(time.monotonic() - started) / 60:5.1f} min] {unit.name}: {row['seconds']:.1f} s"
            print(line, flush=True)
            with (folder / LOG).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return True


if __name__ == "__main__":
    main()
