"""Members in shards against whole ones: every family, both methods, several layouts; and processes that are killed.

    python benchmarks/sharding.py matrix --steps 5
    python benchmarks/sharding.py kills --kills 20

Real processes on the CPU, joined by gloo as accelerate's launcher joins them, on tiny bases. A distance is that of all
weights after the steps from those of one process that holds everything, relative to their norm; beside it, that of how
far they moved. A kill takes one of two processes, at a moment between their meeting and a second step; the other has
to end by itself. In the end the run has to equal, to the last bit, one that was left alone, and gone on with by another
number of processes to come to its weights. The status is 1 when anything differs.

The matrix keeps what it has measured (`--rows`) and measures the rest, so it can be made a family or a layout at a
time; its table is of all that is kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "train")]

from chats_train.settings.facts import FAMILIES  # noqa: E402
from chats_train.support.jsonl import read_rows  # noqa: E402

LIMIT = 1e-5
END_SECONDS = 60
METHODS = ("full", "lora")
HSDP = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}
OFFLOAD = {"FSDP_OFFLOAD_PARAMS": "true"}
# Processes, and what the launcher sets beside their number.
LAYOUTS: dict[str, tuple[int, dict[str, str]]] = {
    "2 × 2 processes": (4, HSDP),
    "4 processes": (4, {}),
    "2, every block": (2, {}),
    "2, offloaded": (2, OFFLOAD),
}
# Pairs of two sizes: where each size has an odd number of them they are five passes, which no layout shares evenly.
PAIRS_A_STEP, BATCH = 8, 2
SETTINGS: dict[str, Any] = {
    "train_batch_size": BATCH,
    "seed": 2,
    "gradient_checkpointing": True,
    "validation_pairs": 3,
    "lr_warmup_steps": 0,
    "max_grad_norm": 0.01,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("matrix", "kills"))
    parser.add_argument("--steps", type=int, default=5, help="of each run of the matrix")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="of the matrix")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of the matrix")
    parser.add_argument(
        "--rows",
        type=Path,
        default=Path(tempfile.gettempdir()) / "chats-sharding-benchmark.jsonl",
        help="what the matrix has measured",
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.part == "matrix":
            measure(Path(folder), args.rows, args.families, args.layouts, args.steps)
            lines, right = matrix(args.rows, args.steps)
        else:
            lines, right = kills(Path(folder), args.kills, args.seed)
    text = "\n".join([f"# Members in shards: {args.part}", "", *lines]) + "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    sys.exit(0 if right else 1)


def made(command: str, *days: str) -> str:
    """What was run, when and where."""
    import torch

    return (
        f"`python benchmarks/sharding.py {command}`, {' to '.join(days)}, {platform.machine()} without a GPU, shared "
        f"with other work, torch {torch.__version__}, gloo, tiny bases."
    )


def settings_of(family: str, folder: Path, processes: int, output: str, **settings: Any):
    """A run over the tiny base of a family, which is made once."""
    import tiny_pipelines
    import tiny_runs

    from chats_train.settings.config_file import parse_config

    base, pairs = folder / f"base-{family}", folder / "pairs"
    if not base.exists():
        tiny_pipelines.save_pipeline(family, base)
    if not pairs.exists():
        tiny_runs.write_pairs(pairs)
        for caption in pairs.glob("*/*.txt"):
            caption.write_text(caption.read_text() + " in a field" * (int(caption.stem) % 3))
    accumulation = PAIRS_A_STEP // BATCH // processes
    side = max(16, FAMILIES[family].multiple)
    sizes = {"bucket_reso_steps": side, "resolution": 4 * side}
    wanted = {**SETTINGS, **sizes, "gradient_accumulation_steps": accumulation, **settings}
    return parse_config(tiny_runs.run_settings(family, base, pairs, folder, output, **wanted))


def measure(folder: Path, path: Path, families: Sequence[str], layouts: Sequence[str], steps: int) -> None:
    """Adds to the rows what they lack: distances of a family's runs in a layout from those of one process."""
    from sharded_runs import distances, run_processes, steps_in_shards, weights_after
    from tiny_runs import trainer_of

    def run_of(family: str, method: str, processes: int):
        average = {"ema_decay": 0.9} if method == "full" else {}
        name = f"{family}-{method}"
        return settings_of(family, folder, processes, name, training_method=method, **average)

    for family in families:
        done = {row["layout"] for row in rows_of(path, steps) if row["family"] == family}
        missing = [layout for layout in layouts if layout not in done]
        alone = {method: weights_after(trainer_of(run_of(family, method, 1)), steps) for method in METHODS if missing}
        for layout in missing:
            processes, environment = LAYOUTS[layout]
            runs = {method: run_of(family, method, processes) for method in METHODS}
            coarse = not layout.endswith("every block")
            began, log = time.monotonic(), folder / f"log {family}"
            started = [list(runs.values()), steps, folder, coarse]
            run_processes(log, processes, steps_in_shards, *started, **environment)
            row = {"family": family, "layout": layout, "steps": steps, "day": date.today().isoformat()}
            row |= {method: distances(folder, run, alone[method]) for method, run in runs.items()}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{family}, {layout}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def rows_of(path: Path, steps: int) -> list[dict[str, Any]]:
    return [row for row in read_rows(path) if row["steps"] == steps]


def matrix(path: Path, steps: int) -> tuple[list[str], bool]:
    """What is measured as a table, and whether all weights are within the limit."""
    cells = {(row["family"], row["layout"]): row for row in rows_of(path, steps)}
    families = [family for family in FAMILIES if any(family == each for each, _ in cells)]
    layouts = [layout for layout in LAYOUTS if any(layout == each for _, each in cells)]
    found = [row[method] for row in cells.values() for method in METHODS]
    largest = max(max(each["weights"], each.get("averages", 0.0)) for each in found)

    def cell(family: str, layout: str, method: str) -> str:
        if (row := cells.get((family, layout))) is None:
            return "—"
        return f"{row[method]['weights']:.1e} ({row[method]['moves']:.1e})"

    asked = " ".join(f'"{layout}"' for layout in layouts)
    days = sorted({row["day"] for row in cells.values()})
    table = [
        made(f"matrix --families {' '.join(families)} --layouts {asked}", *dict.fromkeys((days[0], days[-1]))),
        "",
        f"Relative distance of all weights after {steps} steps from those of one process (in brackets: their moves). "
        "AdamW, checkpointing, clipping; averages of whole models. A step has 8 pairs of two sizes with captions of "
        "three lengths, in batches of at most two, of which the processes have unequally many; validation is padded "
        "too. Blocks of SD1.5, SDXL, SD3 and Flux are cut coarsely, but where it says every block; those of the others "
        f"are always cut. —: not measured. Largest: {largest:.1e}; allowed: {LIMIT:.0e}.",
        "",
        "| run | " + " | ".join(layouts) + " |",
        "| --- |" + " --- |" * len(layouts),
        *(
            f"| {family}, {method} | " + " | ".join(cell(family, layout, method) for layout in layouts) + " |"
            for family in families
            for method in METHODS
        ),
    ]
    return table, largest <= LIMIT


def kills(folder: Path, count: int, seed: int) -> tuple[list[str], bool]:
    """Kills one of two processes at random moments, and compares the end with a run that was left alone."""
    from sharded_runs import differing, relative_distance, run_processes, save_shallow_base, train_in_shards

    from chats_train.runs.checkpoint import RESUME, open_checkpoint

    steps = 2 * count + 4
    shared = {
        "training_method": "full",
        "ema_decay": 0.9,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": None,
        "max_train_steps": steps,
        "gradient_checkpointing": False,
        "validation_steps": steps,
        "resume_from_checkpoint": "latest",
    }
    settings_of("sd15", folder, 2, "left")
    shared["pretrained_model"] = str(save_shallow_base(folder / "base-sd15", folder / "shallow"))
    left = settings_of("sd15", folder, 2, "left", **shared)
    run_processes(folder / "log", 2, train_in_shards, left)
    killed = settings_of("sd15", folder, 2, "killed", **shared)
    moments, rows = random.Random(seed), []
    while len(rows) < count and newest_step(killed) < steps:
        rows.append(kill_once(folder, killed, moments))
        print(rows[-1], file=sys.stderr)
    run_processes(folder / "log", 2, train_in_shards, killed)
    wrong = differing(*(run.output_dir / "checkpoints" / f"step-{steps:08d}" for run in (left, killed)))
    half = list((killed.output_dir / "checkpoints").glob(".*"))
    ends: dict[int, list[float]] = {}
    middle = killed.output_dir / "checkpoints" / f"step-{steps - 4:08d}"
    for processes in (1, 4):
        name = f"on {processes}"
        other = settings_of("sd15", folder, processes, name, **{**shared, "resume_from_checkpoint": str(middle)})
        run_processes(folder / "log", processes, train_in_shards, other)
        lasts = [open_checkpoint(run.output_dir / "checkpoints", "latest", RESUME) for run in (left, other)]
        moments_of = [first_moments(last.tensors("optimizer")) for last in lasts]
        ends[processes] = [
            relative_distance(*(last.tensors("members") for last in lasts)),
            relative_distance(*moments_of),
        ]
    far = max(weights for weights, _ in ends.values())
    longest = max(row[2] for row in rows)
    state = f"DIFFERS ({', '.join(wrong)})" if wrong else "equals, to the last bit,"
    others = " and by ".join(
        f"{processes}: {weights:.1e} ({moments:.1e})" for processes, (weights, moments) in ends.items()
    )
    lines = [
        made("kills", date.today().isoformat()),
        "",
        f"**Killed**: {len(rows)} SIGKILLs of one of two processes, whole SD1.5 models of one level, {steps} steps, a "
        f"checkpoint after each. The last checkpoint {state} that of the run that was left alone; half-written folders "
        f"left: {len(half)}. The other process ended by itself after {longest:.1f} s at most. Four steps from the end, "
        f"gone on with by so many processes, the weights (in brackets: AdamW's first moments) come to so far from the "
        f"same: by {others}.",
        "",
        "| kill | process | newest checkpoint | the other ended after |",
        "| --- | --- | --- | --- |",
        *(f"| {number} | {row[0]} | step {row[1]} | {row[2]:.1f} s |" for number, row in enumerate(rows, 1)),
    ]
    return lines, not wrong and not half and far <= LIMIT and longest <= END_SECONDS and len(rows) == count


def kill_once(folder: Path, run: Any, moments: random.Random) -> tuple[int, int, float]:
    """Which process was killed, the newest checkpoint then, and seconds until the other had ended."""
    from sharded_runs import start_processes, train_in_shards

    (folder / "log-0").unlink(missing_ok=True)
    goal, delay, index = newest_step(run) + moments.randint(0, 1), moments.uniform(0, 3), moments.randint(0, 1)
    processes = start_processes(folder / "log", 2, train_in_shards, run)
    log = folder / "log-0"
    # Before they have joined it is the launcher that ends the others, and there is none here.
    while all(process.is_alive() for process in processes) and not (log.exists() and b"data:" in log.read_bytes()):
        time.sleep(0.05)
    while all(process.is_alive() for process in processes) and newest_step(run) < goal:
        time.sleep(0.005)
    time.sleep(delay)
    processes[index].kill()
    killed_at = time.monotonic()
    step = newest_step(run)
    processes[1 - index].join(END_SECONDS)
    seconds = time.monotonic() - killed_at
    for process in processes:
        process.kill()
        process.join()
    return index, step, seconds


def first_moments(optimizer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in optimizer.items() if name.endswith("exp_avg")}


def newest_step(run: Any) -> int:
    folders = sorted((run.output_dir / "checkpoints").glob("step-*"))
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


if __name__ == "__main__":
    main()
