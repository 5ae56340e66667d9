"""The paper's claims, measured on a world so small that a few cores hold it, every method trained and counted alike.

    python -m benchmarks.miniature                    # the whole study, some hours of one core in all
    python -m benchmarks.miniature --plan further     # what was cut of it: more of LoRAs and of another taste
    python -m benchmarks.miniature --quick            # a reduced table in less than a quarter of an hour on two cores
    python -m benchmarks.miniature --budget           # what it will take, by regime
    python -m benchmarks.miniature --report RESULTS   # tables and plot of a study, and the tables of docs/evidence.md

The world, its detector, its tastes, its makers and its bases are those of `python -m chats_train demo`; trainer and
sampler are the ordinary ones. Pairs are made for some prompts; on others (dev) each method's settings and guidance are
chosen, by one rule and one search for all; on a third set (test) what was chosen is counted once. No text is in two of
them, or in one twice.
A study that was stopped goes on: what is done are lines of FOLDER/results.jsonl. With `--minutes` it stops by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chats.files import write_text
from chats_train.support.jsonl import read_rows

from .choices import Records
from .plan import PLANS, Plan
from .plot import draw
from .report import report
from .schedule import budget, cost, next_units
from .tables import filled
from .units import Unit, one_thread, pairs_made, run, weights_file

RECORDS, LOG, RESULTS = "results.jsonl", "study.log", "results.json"
# How many of the last units say how fast this machine is, how much more room each unit gets, and how many seconds.
REMEMBERED, ROOM, SPARE_SECONDS = 24, 1.4, 6.0


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.miniature", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("miniature"), help="the study's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--plan", choices=PLANS, default="full", help="further does more, tiny shows that all of it runs"
    )
    parser.add_argument("--quick", action="store_const", const="quick", dest="plan", help="the same as --plan quick")
    parser.add_argument("--processes", type=int, default=2, help="units at a time, one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time, to go on later")
    parser.add_argument("--budget", action="store_true", help="say what the plan takes, and do nothing else")
    parser.add_argument(
        "--report",
        type=Path,
        help="write tables and plot of this file of results, of the committed one those of the docs too",
    )
    options = parser.parse_args()
    plan = PLANS[options.plan]
    if options.budget:
        print(budget_text(plan))
    elif options.report:
        print(write(options.report))
        if options.report.resolve().parent == Path(__file__).resolve().parent:
            fill_docs(options.report)
    else:
        # Of all processes: no bars of single trainings, one core each, no GPU, whose sums differ from run to run.
        os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if Study(options.output, plan).run(options.processes, time.monotonic() + 60 * options.minutes):
            print(write(finish(options.output, plan)))


def budget_text(plan: Plan) -> str:
    spent = budget(plan)
    lines = [f"{seconds:8.0f} s  {name}" for name, seconds in spent.items()]
    total = sum(spent.values())
    return "\n".join([*lines, f"{total:8.0f} s, {total / 3600:.2f} hours of one core, in all"])


def finish(folder: Path, plan: Plan) -> Path:
    """Writes the file of results out of the records; returns it."""
    rows = list(Records(read_rows(folder / RECORDS)).rows.values())
    facts = {
        "plan": plan.name,
        "date": date.today().isoformat(),
        "machines": sorted({row["machine"] for row in rows}),
        # Of all that was done, also what a stop undid.
        "hours": round(sum(row["seconds"] for row in read_rows(folder / RECORDS)) / 3600, 2),
        "settings": asdict(plan),
    }
    told = {} if len(facts["machines"]) > 1 else {"machine"}
    lines = [json.dumps({name: value for name, value in row.items() if name not in told}) for row in rows]
    # A line for each unit, so that a change of one is seen as one.
    write_text(folder / RESULTS, json.dumps(facts)[:-1] + ', "units": [\n' + ",\n".join(lines) + "\n]}\n")
    return folder / RESULTS


def write(path: Path) -> str:
    """Writes tables and plot beside a file of results; returns the text."""
    results = json.loads(path.read_text(encoding="utf-8"))
    text = report(results, path.with_suffix(".png").name)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    return text


def fill_docs(path: Path) -> None:
    """Puts the tables of the committed results into the page that shows them."""
    page = Path(__file__).parents[2] / "docs" / "evidence.md"
    results = json.loads(path.read_text(encoding="utf-8"))
    write_text(page, filled(page.read_text(encoding="utf-8"), results))


class Study:
    """A study in its folder, and its units one after another, as many at a time as there are processes."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.records = Records(read_rows(folder / RECORDS))
        end_line(folder / RECORDS)
        # Seconds that units took, and their estimates; before the first one, twice the estimate.
        self.took: list[tuple[float, float]] = [(2.0, 1.0)]

    def run(self, processes: int, end: float) -> bool:
        """Does units until all are done, or until none that is left would end in time; whether all are done."""
        running: dict[Future[dict[str, Any]], tuple[Unit, float]] = {}
        failed: set[str] = set()
        self.say(f"plan {self.plan.name}, {processes} processes, {len(self.records.rows)} units done before")
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=one_thread) as pool:
            while True:
                taken = failed | {unit.name for unit, _ in running.values()}
                for unit in self.units(taken, processes - len(running), end):
                    running[pool.submit(run, unit, self.plan, self.folder)] = unit, time.monotonic()
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    unit, since = running.pop(future)
                    if error := future.exception():
                        failed.add(unit.name)
                        self.say(f"FAILED {unit.name}: {error!r}")
                    else:
                        self.keep(unit, future.result(), time.monotonic() - since)
        left = [unit for unit in next_units(self.plan, self.records, self.ready)]
        self.say(f"{'stopped, with more to do' if left else 'done'}; {len(failed)} units failed")
        return not left

    def units(self, taken: set[str], count: int, end: float) -> list[Unit]:
        """The next units that are not taken, at most ``count``, of those that end in time."""
        found: dict[str, Unit] = {}
        took, estimated = (sum(each) for each in zip(*self.took[-REMEMBERED:], strict=True))
        left = end - time.monotonic() - SPARE_SECONDS
        for unit in next_units(self.plan, self.records, self.ready):
            if len(found) >= count:
                break
            if unit.name not in taken and ROOM * cost(unit, self.plan) * took / estimated < left:
                found[unit.name] = unit
        return list(found.values())

    def ready(self, unit: Unit) -> bool:
        if unit.training is None:
            return pairs_made(unit.regime, self.folder)
        return weights_file(unit.training, self.folder).exists()

    def keep(self, unit: Unit, row: dict[str, Any], seconds: float) -> None:
        """Adds a line to the records, which are written at once."""
        with (self.folder / RECORDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.records.add(row)
        self.took.append((seconds, cost(unit, self.plan)))
        self.say(f"{row['unit']}: {row['seconds']:.1f} s, {seconds:.1f} s with waiting")

    def say(self, text: str) -> None:
        line = f"[{(time.monotonic() - self.started) / 60:5.1f} min] {text}"
        print(line, flush=True)
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def end_line(path: Path) -> None:
    """A line that a kill cut off ends here, and does not take the next one with it."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        path.write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
