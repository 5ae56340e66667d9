"""What is left of a pair when it is distilled into one LoRA: counted in the miniature's world beside the pair itself.

    python -m benchmarks.distillation                    # the whole study, three quarters of an hour of one core
    python -m benchmarks.distillation --report RESULTS   # tables and plot, and the tables of docs/evidence.md

World, pairs, texts, noise, detector and taste are those of `python -m benchmarks.miniature`, which also chose how the
pairs are trained and sampled; the distillation is that of `python -m chats_train distill`, at its defaults where
nothing else is said. Nothing is chosen on the texts of test. A study that was stopped goes on: what is done are lines
of FOLDER/results.jsonl.
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

from chats.files import write_text
from chats_train.support.jsonl import read_rows

from ..miniature.__main__ import end_line
from ..miniature.units import one_thread
from .plan import PLANS, Plan, units
from .plot import draw
from .report import filled, report
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
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no unit later, to go on another time"
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="write tables and plot of this file of results, of the committed one those of the docs too",
    )
    options = parser.parse_args()
    if options.report:
        write(options.report)
        return
    # No bars of single trainings, one core, no GPU, whose sums differ from run to run.
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    plan = PLANS[options.plan]
    if study(options.output, plan, time.monotonic() + 60 * options.minutes):
        write(finish(options.output, plan))


def finish(folder: Path, plan: Plan) -> Path:
    """Writes the file of results out of the records; returns it."""
    done = {row["unit"]: row for row in read_rows(folder / RECORDS)}
    rows = [done[unit.name] for unit in units(plan) if unit.name in done]
    facts = {
        "plan": plan.name,
        "date": date.today().isoformat(),
        "machines": sorted({row["machine"] for row in rows}),
        "minutes": round(sum(row["seconds"] for row in rows) / 60),
        "settings": asdict(plan),
    }
    lines = [json.dumps({name: value for name, value in row.items() if name != "machine"}) for row in rows]
    # A line for each unit, so that a change of one is seen as one.
    write_text(folder / RESULTS, json.dumps(facts)[:-1] + ', "units": [\n' + ",\n".join(lines) + "\n]}\n")
    return folder / RESULTS


def write(path: Path) -> None:
    """Writes tables and plot beside a file of results; of the committed one also the tables of the page that shows
    them."""
    results = json.loads(path.read_text(encoding="utf-8"))
    write_text(path.with_suffix(".md"), report(results, path.with_suffix(".png").name) + "\n")
    draw(results, path.with_suffix(".png"))
    if path.resolve().parent == Path(__file__).resolve().parent:
        page = Path(__file__).parents[2] / "docs" / "evidence.md"
        write_text(page, filled(page.read_text(encoding="utf-8"), results))


def study(folder: Path, plan: Plan, end: float) -> bool:
    """Does units until all are done, or the time is over; whether all are done."""
    folder.mkdir(parents=True, exist_ok=True)
    end_line(folder / RECORDS)
    done = {row["unit"]: row for row in read_rows(folder / RECORDS)}
    started = time.monotonic()
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=one_thread) as pool:
        while unit := next((each for each in units(plan) if each.name not in done), None):
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
