"""Members in shards against whole ones: every family, both methods, several layouts; and processes that are killed.

    python benchmarks/sharding.py matrix --steps 5
    python benchmarks/sharding.py kills --kills 20

Real processes on the CPU, joined by gloo as accelerate's launcher joins them, on tiny bases. A distance is that of all
weights after the steps from those of one process that holds everything, relative to their norm; beside it, that of how
far they moved. A kill takes one of two processes, at a moment between their meeting and a second step; the other has
to end by itself. In the end the run has to equal, to the last bit, one that was left alone, and gone on with by another
number of processes to come to its weights. The status is 1 when anything differs.
"""

from __future__ import annotations

import argparse
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

LIMIT = 1e-5
END_SECONDS = 60
FAMILIES = ("sd15", "sdxl", "sd3", "flux")
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
# Four processes have a pass each of a step's pairs; of the three held-out ones one is left over and does not count.
PAIRS_A_STEP, BATCH = 4, 1
SETTINGS: dict[str, Any] = {
    "train_batch_size": BATCH,
    "bucket_reso_steps": 16,
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
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="of the matrix")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of the matrix")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.part == "matrix":
            lines, right = matrix(Path(folder), args.families, args.layouts, args.steps)
        else:
            lines, right = kills(Path(folder), args.kills, args.seed)
    text = "\n".join([*heading(args), *lines]) + "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    sys.exit(0 if right else 1)


def heading(args: argparse.Namespace) -> list[str]:
    import torch

    asked = f" --families {' '.join(args.families)}" if args.part == "matrix" else ""
    return [
        f"# Members in shards: {args.part}",
        "",
        f"`python benchmarks/sharding.py {args.part}{asked}`, "
        f"{date.today().isoformat()}, {platform.machine()} without a GPU, shared with other work, torch "
        f"{torch.__version__}, gloo, tiny bases.",
        "",
    ]


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
    accumulation = PAIRS_A_STEP // BATCH // processes
    wanted = {**SETTINGS, "gradient_accumulation_steps": accumulation, **settings}
    return parse_config(tiny_runs.run_settings(family, base, pairs, folder, output, **wanted))


def matrix(folder: Path, families: Sequence[str], layouts: Sequence[str], steps: int) -> tuple[list[str], bool]:
    """Distances of each layout as a table, and whether all weights are within the limit."""
    from sharded_runs import distances, run_processes, steps_in_shards, weights_after
    from tiny_runs import trainer_of

    names = [f"{family}, {method}" for family in families for method in METHODS]

    def run_of(name: str, processes: int):
        family, method = name.split(", ")
        average = {"ema_decay": 0.9} if method == "full" else {}
        return settings_of(family, folder, processes, name, training_method=method, **average)

    alone = {name: weights_after(trainer_of(run_of(name, 1)), steps) for name in names}
    cells: dict[str, list[str]] = {name: [] for name in names}
    largest = 0.0
    for layout in layouts:
        processes, environment = LAYOUTS[layout]
        runs = [run_of(name, processes) for name in names]
        every = layout.endswith("every block")
        run_processes(
            folder / f"log {layout}", processes, steps_in_shards, runs, steps, folder, not every, **environment
        )
        for name, run in zip(names, runs, strict=True):
            found = distances(folder, run, alone[name])
            largest = max(largest, found["weights"], found.get("averages", 0.0))
            cells[name].append(f"{found['weights']:.1e} ({found['moves']:.1e})")
        print(f"{layout}: done", file=sys.stderr)
    table = [
        f"Relative distance of all weights after {steps} steps from those of one process (in brackets: their moves). "
        "AdamW, checkpointing, clipping, padded validation; averages of whole models. Blocks are cut coarsely, but "
        f"where it says every block. Largest: {largest:.1e}; allowed: {LIMIT:.0e}.",
        "",
        "| run | " + " | ".join(layouts) + " |",
        "| --- |" + " --- |" * len(layouts),
        *(f"| {name} | " + " | ".join(row) + " |" for name, row in cells.items()),
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
    ends = {}
    middle = killed.output_dir / "checkpoints" / f"step-{steps - 4:08d}"
    for processes in (1, 4):
        name = f"on {processes}"
        other = settings_of("sd15", folder, processes, name, **{**shared, "resume_from_checkpoint": str(middle)})
        run_processes(folder / "log", processes, train_in_shards, other)
        last = [
            open_checkpoint(run.output_dir / "checkpoints", "latest", RESUME).tensors("members")
            for run in (left, other)
        ]
        ends[processes] = relative_distance(*last)
    far = max(ends.values())
    longest = max(row[2] for row in rows)
    state = f"DIFFERS ({', '.join(wrong)})" if wrong else "equals, to the last bit,"
    others = " and by ".join(f"{processes}: {end:.1e}" for processes, end in ends.items())
    lines = [
        f"**Killed**: {len(rows)} SIGKILLs of one of two processes, whole SD1.5 models of one level, {steps} steps, a "
        f"checkpoint after each. The last checkpoint {state} that of the run that was left alone; half-written folders "
        f"left: {len(half)}. The other process ended by itself after {longest:.1f} s at most. Four steps from the end, "
        f"gone on with by so many processes, the weights come to so far from the same: by {others}.",
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


def newest_step(run: Any) -> int:
    folders = sorted((run.output_dir / "checkpoints").glob("step-*"))
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


if __name__ == "__main__":
    main()
