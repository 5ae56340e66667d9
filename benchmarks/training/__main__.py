"""What the trainer's step costs beside the authors' (``authors_step``): time of a pair and memory, on the CPU.

    python -m benchmarks.training --layout tiny --pixels 64
    python -m benchmarks.training --layout sd15 --pixels 256 --markdown FILE

Each side is measured in a process of its own, one at a time; what is measured already is not measured again, so a run
that was stopped goes on (``--folder`` elsewhere starts anew). `sd15` has SD1.5's UNet, VAE and CLIP at their real sizes
with random weights.

Whole models of that size with gradients and AdamW's moments need over 31 GB. On `sd15` the sides that train whole
models therefore run with their three UNets on one set of weights, to which they are equal at the first step, and each
gradient is dropped as soon as it is
whole: all of forward and backward runs, none of the optimizer. Their memory is weights, gradients and moments, counted,
and what a step took beside the weights, measured. The LoRA sides run whole, and so does everything on `tiny`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chats.files import write_text

from . import sides


def main() -> None:
    args = arguments()
    if args.measure:
        setting = sides.Setting(args.folder, args.layout, args.pixels, args.steps, args.threads)
        result = sides.prepare(setting) if args.measure == "prepare" else sides.measure(setting, args.measure)
        write_text(result_file(args, args.measure), json.dumps(result))
        return
    prepared = in_a_process(args, "prepare")
    text = report(args, prepared, {name: in_a_process(args, name) for name in sides.SIDES})
    print(text)
    if args.markdown:
        write_text(args.markdown, text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=("tiny", "sd15"), default="tiny")
    parser.add_argument("--pixels", type=int, default=256, help="side of the square pictures")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each side, after one that is not timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "chats-training-benchmark",
        help="base, pairs, results",
    )
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def result_file(args: argparse.Namespace, name: str) -> Path:
    return args.folder / f"{args.layout}-{args.pixels}-{args.steps}-{args.threads}" / f"{name}.json"


def in_a_process(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """A result, measured in a process of its own unless it is there already."""
    if not result_file(args, name).exists():
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--measure", name], check=True)
    return json.loads(result_file(args, name).read_text(encoding="utf-8"))


def report(args: argparse.Namespace, prepared: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """Markdown: every side, in its own figures and relative to the authors' step with and without gradient
    checkpointing."""
    rows = {name: figures(result) for name, result in results.items()}
    baselines = [rows[name] for name, (whose, _) in sides.SIDES.items() if whose == "authors"]
    lines = [
        f"`python -m benchmarks.training --layout {args.layout} --pixels {args.pixels} --steps {args.steps} --threads "
        f"{args.threads}`, "
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, torch {sides.torch.__version__}. "
        "One pair a step, "
        "fp32, AdamW; ratios are of CPU time and of memory, to the authors' step with | without gradient "
        "checkpointing.",
        "",
        "| step | seconds | CPU seconds | time to authors' | GB: weights, gradients, AdamW | GB: a step beside them | "
        "memory to authors' |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        ratios = [" \\| ".join(f"{row[key] / base[key]:.2f}" for base in baselines) for key in ("cpu", "bytes")]
        times, sizes = (
            f"{row['wall']:.2f} | {row['cpu']:.2f}",
            f"{gigabytes(row['counted'])} | {gigabytes(row['step'])}",
        )
        lines.append(f"| {name} | {times} | {ratios[0]} | {sizes} | {ratios[1]} |")
    lines += ["", f"Encoding, once for the cache: {prepared['encoding_seconds']:.2f} CPU seconds a pair.", ""]
    for name, result in results.items():
        if result["whole"]:
            peak, libraries = gigabytes(result["peak_bytes"]), gigabytes(result["libraries_bytes"])
            lines.append(
                f"- {name}: ran whole; its process held {peak} GB at most, {libraries} GB of it Python and its "
                "libraries"
            )
    return "\n".join(lines) + "\n"


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Medians of the times, in seconds a pair; bytes."""
    return {
        "wall": statistics.median(result["wall_seconds"]),
        "cpu": statistics.median(result["cpu_seconds"]),
        "counted": result["counted_bytes"],
        "step": result["step_bytes"],
        "bytes": result["counted_bytes"] + result["step_bytes"],
    }


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


if __name__ == "__main__":
    main()
