"""What the trainer's step costs beside the authors' (``authors_step``): time of a pair and memory, on the CPU.

    python -m benchmarks.training --layout tiny --pixels 64
    python -m benchmarks.training --layout sd15 --pixels 256 --rounds 3 --threads 1 --markdown FILE

All sides are measured in one process, a step of each in turn, so that on a busy machine their ratios hold where their
seconds do not: a side's time is the median, over rounds, of its CPU seconds to those of the authors' step in the same
round. What is measured already is kept, so a run that was stopped goes on (``--folder`` elsewhere starts anew). `sd15`
has SD1.5's UNet, VAE and CLIP at their real sizes with random weights, `half` all three at half their widths.

Whole models of real size with gradients and AdamW's moments need over 31 GB. On `sd15` and `half` all UNets are thus
on one set of weights, to which whole models are equal at the first step, and each gradient of a whole model is dropped
as soon as it is whole: all of forward and backward runs, none of the optimizer. Memory is weights, gradients and
moments, counted, and what a step took beside them, measured. LoRAs have their optimizer's step, and on `tiny` all have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chats.files import write_text
from chats_train.support.jsonl import read_rows

from . import sides


def main() -> None:
    args = arguments()
    names = sides.GOALS if args.goals else tuple(sides.SIDES)
    setting = sides.Setting(args.folder, args.layout, args.pixels, args.rounds, args.threads, names)
    results = args.folder / f"{args.layout}-{args.pixels}-{args.threads}"
    results.mkdir(parents=True, exist_ok=True)
    prepared, rows = results / "prepared.json", results / "rows.jsonl"
    if not prepared.exists():
        write_text(prepared, json.dumps(sides.prepare(setting)))

    def keep(row: dict[str, Any]) -> None:
        print(time.strftime("%H:%M:%S"), json.dumps(row), file=sys.stderr)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    done = rounds_of(read_rows(rows), names)
    if len(done) < args.rounds:
        sides.measure(setting, args.rounds - len(done), keep)
        done = rounds_of(read_rows(rows), names)
    encoding = json.loads(prepared.read_text(encoding="utf-8"))["encoding_seconds"]
    text = report(args, done, sides.counted(setting), encoding) + compiling(read_rows(rows))
    print(text)
    if args.markdown:
        write_text(args.markdown, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=("tiny", "half", "sd15"), default="tiny")
    parser.add_argument("--pixels", type=int, default=256, help="side of the square pictures")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--goals", action="store_true", help="only the sides that the goals are about")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "chats-training-benchmark",
        help="base, pairs, results",
    )
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    return parser.parse_args()


Round = dict[str, dict[str, float]]


def rounds_of(rows: list[dict[str, Any]], names: Sequence[str]) -> list[Round]:
    """Whole rounds of some sides, in the order in which they were measured."""
    by_side = {name: [row for row in rows if row["side"] == name and "cpu" in row] for name in names}
    count = min(len(found) for found in by_side.values())
    return [{name: found[number] for name, found in by_side.items()} for number in range(count)]


def report(args: argparse.Namespace, rounds: list[Round], counted: dict[str, int], encoding: float) -> str:
    """Markdown: every side, in its own figures and relative to the authors' step with and without gradient
    checkpointing."""
    baselines = [name for name, (whose, _) in sides.SIDES.items() if whose == "authors"]
    lines = [
        f"`python -m benchmarks.training --layout {args.layout} --pixels {args.pixels} --rounds {args.rounds} "
        f"--threads {args.threads}{' --goals' if args.goals else ''}`, {time.strftime('%Y-%m-%d')}, "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {sides.torch.__version__}. Rounds: {len(rounds)}; one "
        "pair a step, fp32, AdamW; ratios are medians over rounds, of seconds of the processor, by the clock, and "
        "of memory, to the authors' step with \\| without gradient checkpointing.",
        "",
        "| step | CPU seconds | CPU time to authors' | least and most | seconds | time to authors' | GB: weights, "
        "gradients, AdamW | GB: a step beside them | memory to authors' |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    step = {name: statistics.median(each[name]["step"] for each in rounds) for name in counted}

    def time_cells(name: str, clock: str) -> tuple[list[list[float]], list[str]]:
        ratios = [[each[name][clock] / each[base][clock] for each in rounds] for base in baselines]
        seconds = statistics.median(each[name][clock] for each in rounds)
        return ratios, [f"{seconds:.2f}", " \\| ".join(f"{statistics.median(each):.2f}" for each in ratios)]

    for name in counted:
        ratios, processor = time_cells(name, "cpu")
        total = counted[name] + step[name]
        cells = [
            name,
            *processor,
            f"{min(ratios[0]):.2f} to {max(ratios[0]):.2f}",
            *time_cells(name, "wall")[1],
            gigabytes(counted[name]),
            gigabytes(step[name]),
            " \\| ".join(f"{total / (counted[base] + step[base]):.2f}" for base in baselines),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Encoding, once for the cache: {encoding:.2f} CPU seconds a pair."]
    return "\n".join(lines) + "\n"


def compiling(rows: list[dict[str, Any]]) -> str:
    """What the first steps of compiled sides took, by the clock."""
    firsts = {row["side"]: row["first"] for row in rows if "first" in row}
    told = ", ".join(f"{name} {seconds:.0f}" for name, seconds in firsts.items())
    return f"\nSeconds of a first step, which compiles: {told}.\n" if told else ""


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


if __name__ == "__main__":
    main()
