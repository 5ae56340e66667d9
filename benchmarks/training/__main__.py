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
from pathlib import Path
from typing import Any

from chats.files import write_text
from chats_train.support.jsonl import read_rows

from . import sides


def main() -> None:
    args = arguments()
    setting = sides.Setting(args.folder, args.layout, args.pixels, args.rounds, args.threads)
    results = args.folder / f"{args.layout}-{args.pixels}-{args.threads}"
    results.mkdir(parents=True, exist_ok=True)
    prepared, rows = results / "prepared.json", results / "rows.jsonl"
    if not prepared.exists():
        write_text(prepared, json.dumps(sides.prepare(setting)))

    def keep(row: dict[str, Any]) -> None:
        print(f"{time.strftime('%H:%M:%S')} {row['side']}: {row['cpu']:.1f} CPU seconds", file=sys.stderr)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    done = rounds_of(read_rows(rows))
    if len(done) < args.rounds:
        sides.measure(setting, args.rounds - len(done), keep)
        done = rounds_of(read_rows(rows))
    encoding = json.loads(prepared.read_text(encoding="utf-8"))["encoding_seconds"]
    text = report(args, done, sides.counted(setting), encoding)
    print(text)
    if args.markdown:
        write_text(args.markdown, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=("tiny", "half", "sd15"), default="tiny")
    parser.add_argument("--pixels", type=int, default=256, help="side of the square pictures")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "chats-training-benchmark",
        help="base, pairs, results",
    )
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    return parser.parse_args()


Round = dict[str, dict[str, float]]


def rounds_of(rows: list[dict[str, Any]]) -> list[Round]:
    """Whole rounds of the sides that there are, in the order in which they were measured."""
    by_side = {name: [row for row in rows if row["side"] == name] for name in sides.SIDES}
    count = min(len(found) for found in by_side.values())
    return [{name: found[number] for name, found in by_side.items()} for number in range(count)]


def report(args: argparse.Namespace, rounds: list[Round], counted: dict[str, int], encoding: float) -> str:
    """Markdown: every side, in its own figures and relative to the authors' step with and without gradient
    checkpointing."""
    baselines = [name for name, (whose, _) in sides.SIDES.items() if whose == "authors"]
    lines = [
        f"`python -m benchmarks.training --layout {args.layout} --pixels {args.pixels} --rounds {args.rounds} "
        f"--threads {args.threads}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, torch "
        f"{sides.torch.__version__}. {len(rounds)} rounds, one pair a step, fp32, AdamW; ratios are of CPU time and of "
        "memory, to the authors' step with \\| without gradient checkpointing.",
        "",
        "| step | CPU seconds | time to authors' | least and most | GB: weights, gradients, AdamW | GB: a step beside "
        "them | memory to authors' |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    step = {name: statistics.median(each[name]["step"] for each in rounds) for name in sides.SIDES}
    for name in sides.SIDES:
        ratios = [[each[name]["cpu"] / each[base]["cpu"] for each in rounds] for base in baselines]
        total = counted[name] + step[name]
        cells = [
            name,
            f"{statistics.median(each[name]['cpu'] for each in rounds):.2f}",
            " \\| ".join(f"{statistics.median(each):.2f}" for each in ratios),
            f"{min(ratios[0]):.2f} to {max(ratios[0]):.2f}",
            gigabytes(counted[name]),
            gigabytes(step[name]),
            " \\| ".join(f"{total / (counted[base] + step[base]):.2f}" for base in baselines),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Encoding, once for the cache: {encoding:.2f} CPU seconds a pair."]
    return "\n".join(lines) + "\n"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


if __name__ == "__main__":
    main()
