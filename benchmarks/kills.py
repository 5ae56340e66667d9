"""Kills a training run with SIGKILL at random moments, lets it go on, and compares its end with a run left alone.

    python benchmarks/kills.py --kills 10 --seed 0

Real processes of `python -m chats_train train` on a tiny SD1.5, for both training methods. A kill comes up to a second
after a random number of further steps, and where that number is none, at any moment of the start-up. Every other kill
is aimed: from such a moment on it waits for the next checkpoint to be begun (or removed), and comes up to 20 ms after
that. Equal means byte for byte: every file of the last checkpoint and both exported files; and the losses of every
step. The status is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "train")]

WRITE_SECONDS = 0.02
POLL_SECONDS = 0.002
# Settings beside the method: everything that a checkpoint can hold, and one after each step.
SETTINGS = {
    "ema_decay": 0.9,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 2,
    "resume_from_checkpoint": "latest",
}


@dataclass(frozen=True)
class Kill:
    """One kill: seconds after its process began, the step of the newest whole checkpoint then, what the process was
    at."""

    seconds: float
    step: int
    aimed: bool
    phase: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each training method")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--steps", type=int, default=80, help="of a run; more kills need more, or it ends before the last of them"
    )
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    args = parser.parse_args()
    lines, equal = [heading(args)], True
    for method in ("full", "lora"):
        with tempfile.TemporaryDirectory() as folder:
            kills, differences = kill_run(Path(folder), method, args)
        lines += described(method, kills, differences, args.kills)
        equal = equal and not differences and len(kills) == args.kills
    text = "\n".join(lines) + "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    sys.exit(0 if equal else 1)


def kill_run(folder: Path, method: str, args: argparse.Namespace) -> tuple[list[Kill], list[str]]:
    """The kills of one run, and what differs at its end from a run without any."""
    config = write_config(folder, method, args.steps)
    output, whole = folder / "run", folder / "whole"
    started = time.time()
    subprocess.run(command(config), check=True, capture_output=True, env=environment())
    startup = (output / "config.yaml").stat().st_mtime - started
    output.rename(whole)  # to the same place again: the folder's name goes into the exported files
    moments = random.Random(f"{args.seed} {method}")
    kills = []
    while len(kills) < args.kills:
        # So few steps ahead that the run lasts for all kills.
        ahead, aimed = moments.randint(0, args.steps // args.kills), len(kills) % 2 == 1
        kill = kill_once(
            config, output, ahead, moments.uniform(0, 1 if ahead else startup), moments.uniform(0, WRITE_SECONDS), aimed
        )
        if kill is None:
            break
        print(f"{method}: {kill}", file=sys.stderr)
        kills.append(kill)
    subprocess.run(command(config), check=True, capture_output=True, env=environment())
    return kills, differences(whole, output, args.steps)


def write_config(folder: Path, method: str, steps: int) -> Path:
    """A tiny base, pairs and a run over them; its cache is its own."""
    import tiny_pipelines
    import tiny_runs

    base = tiny_pipelines.save_pipeline("sd15", folder / "base")
    pairs = tiny_runs.write_pairs(folder / "pairs")
    raw = tiny_runs.run_settings("sd15", base, pairs, folder, training_method=method, max_train_steps=steps, **SETTINGS)
    (folder / "run.yaml").write_text(json.dumps(raw), encoding="utf-8")
    return folder / "run.yaml"


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "chats_train", "train", str(config)]


def environment() -> dict[str, str]:
    """One thread, as the order of sums depends on their number; from wherever this was started."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def kill_once(config: Path, output: Path, ahead: int, delay: float, write_delay: float, aimed: bool) -> Kill | None:
    """Starts the run and kills it ``delay`` seconds after so many steps; None when it ended before."""
    rows_before, left_before, goal = rows(output), half_written(output), newest_step(output) + ahead
    started = time.perf_counter()
    process = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    while process.poll() is None and newest_step(output) < goal:
        time.sleep(POLL_SECONDS)
    time.sleep(delay)
    if aimed:
        there = half_written(output)
        while process.poll() is None and not half_written(output) - there:
            time.sleep(POLL_SECONDS)
        time.sleep(write_delay)
    process.kill()
    process.wait()
    if process.returncode == 0:
        return None
    writes = half_written(output) - left_before
    phase = "writing a checkpoint" if writes else "training" if rows(output) != rows_before else "starting"
    return Kill(time.perf_counter() - started, newest_step(output), aimed, phase)


def half_written(output: Path) -> set[str]:
    """Hidden folders of checkpoints that are being written or removed, or were when a kill came."""
    return {path.name for path in (output / "checkpoints").glob(".step-*.tmp")}


def newest_step(output: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in (output / "checkpoints").glob("step-*")), default=0)


def rows(output: Path) -> bytes:
    path = output / "metrics.jsonl"
    return path.read_bytes() if path.exists() else b""


def differences(whole: Path, killed: Path, steps: int) -> list[str]:
    """Files of the two runs' ends that are not equal."""
    names = [str(path.relative_to(whole)) for path in sorted((whole / "checkpoints" / f"step-{steps:08d}").iterdir())]
    names += [path.name for path in sorted(whole.glob("*.safetensors"))]
    different = [
        name
        for name in names
        if not (killed / name).exists() or (whole / name).read_bytes() != (killed / name).read_bytes()
    ]
    return different + ([] if losses(whole) == losses(killed) else ["losses of metrics.jsonl"])


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in rows(output).decode().splitlines()]


def heading(args: argparse.Namespace) -> str:
    import torch

    return (
        f"`benchmarks/kills.py --kills {args.kills} --seed {args.seed} --steps {args.steps}`, "
        f"{time.strftime('%Y-%m-%d')}, "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )


def described(method: str, kills: list[Kill], different: list[str], wanted: int) -> list[str]:
    phases = [kill.phase for kill in kills]
    counts = ", ".join(
        f"{phases.count(phase)} while {phase}" for phase in ("starting", "training", "writing a checkpoint")
    )
    end = "differs in " + ", ".join(different) if different else "equal, byte for byte"
    short = "" if len(kills) == wanted else f" of {wanted}: the run ended before"
    lines = ["", f"**{method}**: {len(kills)} kills{short} ({counts}); the end is {end}.", ""]
    lines += [
        "| kill | seconds after the start | aimed at a checkpoint | newest checkpoint | while |",
        "| --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {number} | {kill.seconds:.2f} | {'yes' if kill.aimed else 'no'} | step {kill.step} | {kill.phase} |"
        for number, kill in enumerate(kills, 1)
    ]


if __name__ == "__main__":
    main()
