"""The training node on models of real size with random weights, in bf16, in a real ComfyUI with dynamic VRAM.

    COMFYUI_PATH=... ComfyUI's-python -m benchmarks.node_training --out FOLDER [--only sdxl] [--smoke]
    COMFYUI_PATH=... ComfyUI's-python -m benchmarks.node_training --out FOLDER --cpu [--precision fp8]
    COMFYUI_PATH=... ComfyUI's-python -m benchmarks.node_training --out FOLDER --size mini --cpu
    python -m benchmarks.node_training --table FOLDER/results.jsonl > benchmarks/node_training.md

Steps a second, memory, the check of the gradient, a run that is stopped and goes on in another session, the base
afterwards and the pair in use; then with little memory left on the card. On the CPU, where a step takes a minute, the
check of the gradient, whether it refuses a network that loses a path, and a short run that is stopped; Z-Image with
fewer layers. Each row is printed, and kept in FOLDER/results.jsonl, when it is measured; what ComfyUI says is in
FOLDER/log.txt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Seconds that a process gets, of which a CPU needs more, and that all get.
PROCESS, ON_CPU, ALL = 200, 1200, 560


def tasks(kinds: list[str], free: dict[str, tuple[float, ...]], **settings: Any) -> list[dict[str, Any]]:
    """What each process does, in order."""
    made = []
    for kind in kinds:
        shared = {"kind": kind, **settings}
        made.append({**shared, "parts": ["make", "whole", "first half"]})
        made.append({**shared, "parts": ["second half", "again", "choices"]})
        made += [{**shared, "parts": ["little memory"], "free_gib": each} for each in free.get(kind, ())]
    return made


def tasks_on_cpu(**settings: Any) -> list[dict[str, Any]]:
    """A process of its own for each, whose memory is then that part's."""
    made = []
    for kind in ("sdxl", "z_image_short"):
        shared = {"kind": kind, **settings, "alike": False}
        made += [{**shared, "parts": [part]} for part in ("make", "gradient", "lost paths")]
        made += [{**shared, "parts": parts, "check": False} for parts in (["unbroken", "first half"], ["second half"])]
    return made


def planned(asked: argparse.Namespace, scratch: str) -> list[dict[str, Any]]:
    shared = {"scratch": scratch, "cpu": asked.cpu, "precision": asked.precision}
    if asked.size == "mini":
        return tasks(["mini_sd3", "mini_sdxl"], {}, pixels=64, steps=4, sampled=3, **shared)
    if asked.smoke:
        free = {"z_image_short": (4.0,)}
        return tasks(["mini_sdxl", "z_image_short"], free, pixels=512, steps=4, sampled=3, **shared)
    if asked.cpu:
        return tasks_on_cpu(pixels=asked.pixels, steps=2, sampled=2, **shared)
    free = {"sdxl": (7.0, 4.0), "z_image": (15.0, 11.0)}
    return tasks(["sdxl", "z_image"], free, pixels=1024, steps=asked.steps, sampled=8, **shared)


def child(task: dict[str, Any], results: Path) -> None:
    from .comfyui import start

    start(task["cpu"])
    from .parts import Task, printed, work_on

    work_on(Task(**{**task, "parts": tuple(task["parts"])}), printed(results))


def run_all(asked: argparse.Namespace) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    results, started = asked.out / "results.jsonl", time.monotonic()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch, (asked.out / "log.txt").open("a") as log:
        for task in planned(asked, scratch):
            task["parts"] = [part for part in task["parts"] if part not in asked.leave_out]
            if asked.only not in task["kind"] or not task["parts"]:
                continue
            left = asked.seconds - (time.monotonic() - started)
            told = {"kind": task["kind"], "parts": task["parts"], "free_gib": task.get("free_gib")}
            if left < 20:
                print(json.dumps({**told, "left_out": "no time was left"}), flush=True)
                continue
            limit = min(ON_CPU if asked.cpu else PROCESS, left)
            command = [sys.executable, "-m", "benchmarks.node_training", "--out", str(asked.out)]
            try:
                subprocess.run([*command, "--task", json.dumps(task)], stderr=log, check=True, timeout=limit)
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                line = json.dumps({**told, "failed": f"{type(error).__name__} {getattr(error, 'returncode', '')}"})
                print(line, flush=True)
                with results.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    print(f"{time.monotonic() - started:.0f} s in all", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of results.jsonl and log.txt")
    parser.add_argument("--only", default="", help="models whose names hold this")
    parser.add_argument("--leave-out", nargs="*", default=[], help="parts, as results.jsonl names them")
    parser.add_argument("--smoke", action="store_true", help="short models, to see whether all of it runs")
    parser.add_argument("--size", choices=["real", "mini"], default="real")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--precision", choices=["bf16", "fp16", "fp8"], default="bf16", help="of the weights")
    parser.add_argument("--pixels", type=int, default=256, help="of a side of the pictures, on the CPU")
    parser.add_argument("--steps", type=int, default=16, help="of a whole run")
    parser.add_argument("--seconds", type=float, default=ALL, help="after which nothing more is begun")
    parser.add_argument("--scratch", help="folder for models and runs, 20 GB; else the system's")
    parser.add_argument("--table", type=Path, help="a results.jsonl to make the page of")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table:
        from .table import page

        print(page(asked.table))
    elif asked.out is None:
        parser.error("--out is needed")
    elif asked.task:
        child(asked.task, asked.out / "results.jsonl")
    else:
        run_all(asked)


if __name__ == "__main__":
    main()
