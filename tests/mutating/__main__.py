"""Damages inputs at random, has each read, and counts what came of it.

    python tests/mutating --kinds pairs configs data --count 1000
    COMFYUI_PATH=<ComfyUI> <ComfyUI's python> tests/mutating --kinds loaders workflows --count 1000

Every damaged input is to be taken, or refused in a sentence that says what to do: no traceback, no hang (20 s), no
memory that grows by more than 1 GB, no input file changed. Inputs that were not are listed by their cause, and the
status is then 1. The same seed gives the same inputs. Everything is read in this process, but for workflows, which a
ComfyUI server runs.
"""

from __future__ import annotations

import argparse
import collections
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

# In place of this folder, whose names are not for the whole program.
sys.path[0] = str(Path(__file__).resolve().parents[1])
# Nothing here may go online.
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})

from mutating import cases  # noqa: E402

TRAINERS = ("pairs", "configs", "data")
COMFYUIS = ("loaders", "workflows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=(*TRAINERS, *COMFYUIS), default=list(TRAINERS))
    parser.add_argument("--count", type=int, default=1000, help="damaged inputs of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        # Relative paths of damaged configs stay in here.
        os.chdir(folder)
        for name in args.kinds:
            results.append(run_kind(name, Path(folder) / name, args))
    lines = [heading(args), "", *table(results), *listed_failures(results)]
    text = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace").decode("utf-8")
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    sys.exit(1 if any(result.failures() for result in results) else 0)


def run_kind(name: str, folder: Path, args: argparse.Namespace) -> cases.Result:
    folder.mkdir()
    started = time.perf_counter()

    def progress(index: int) -> None:
        if index % 100 == 99:
            print(f"{name}: {index + 1} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    if name in TRAINERS:
        cases.limit_memory()
        return cases.run(trainer_kind(name, folder), args.count, args.seed, folder, progress)
    from mutating import comfy

    return comfy.run(name, args.count, args.seed, folder, progress)


def trainer_kind(name: str, folder: Path) -> cases.Kind:
    from mutating.configs import Configs
    from mutating.data_sets import DataSets
    from mutating.pair_files import PairFiles
    from mutating.workbench import set_up

    kind = {"pairs": PairFiles, "configs": Configs, "data": DataSets}[name]
    return kind(set_up(folder / "whole", trained=name == "pairs"))


def heading(args: argparse.Namespace) -> str:
    command = f"tests/mutating --kinds {' '.join(args.kinds)} --count {args.count} --seed {args.seed}"
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {platform.machine()}, Python "
        f"{platform.python_version()}"
    )


def table(results: list[cases.Result]) -> list[str]:
    lines = [
        "| input | damaged | readings | taken | refused in a sentence | neither | slowest | most memory |",
        f"| --- |{' --- |' * 7}",
    ]
    for result in results:
        outcomes = collections.Counter(reading.outcome for reading in result.readings)
        counts = (
            f"{result.mutations} | {len(result.readings)} | {outcomes['accepted']} | {outcomes['refused']} | "
            f"{outcomes['failed']}"
        )
        seconds = max(reading.seconds for reading in result.readings)
        peak = max(reading.peak_bytes for reading in result.readings)
        lines.append(f"| {result.kind} | {counts} | {seconds:.1f} s | {peak / 1e6:.0f} MB |")
    for result in results:
        by_mutation = collections.defaultdict(collections.Counter)
        for reading in result.readings:
            by_mutation[reading.mutation][reading.outcome] += 1
        lines += ["", f"**{result.kind}**, readings by what was done (taken, refused):"]
        lines.append(
            ", ".join(
                f"{name} ({counts['accepted']}, {counts['refused']})" for name, counts in sorted(by_mutation.items())
            )
        )
    return lines


def listed_failures(results: list[cases.Result]) -> list[str]:
    lines = []
    for result in results:
        for cause, readings in sorted(result.failures().items(), key=lambda item: -len(item[1])):
            lines.append(
                f"- {result.kind}: {len(readings)} × {cause} (such as {readings[0].mutation}: {readings[0].detail})"
            )
    return ["", "Neither taken nor refused in a sentence:", *lines] if lines else []


if __name__ == "__main__":
    main()
