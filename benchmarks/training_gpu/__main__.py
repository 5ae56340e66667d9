"""What the trainer's step costs on a graphics card, beside the authors' (``authors``), at published sizes.

    python -m benchmarks.training_gpu --out FOLDER [--family sdxl] [--only "full" "lora"] [--seconds 540]
    python -m benchmarks.training_gpu --out FOLDER --tiny --device cpu
    python -m benchmarks.training_gpu --table FOLDER/rows.jsonl > benchmarks/training_gpu/results.md

Random weights in bf16, one pair a pass. A side has a process of its own, which gets ready while the one before it is
measured. Each row is printed and kept in FOLDER/rows.jsonl when it is known; what a process says is in FOLDER/log.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import sides

# Seconds that a side gets: what it compiles takes minutes.
LIMIT = 300


def main() -> None:
    asked = arguments()
    if asked.table:
        from .table import page

        print(page(asked.table))
        return
    setting = sides.Setting(
        asked.folder, asked.family, asked.tiny, asked.pixels, asked.pairs, asked.steps, asked.device
    )
    if asked.side:
        # All is imported; the one before has the card until a line comes.
        sys.stdin.readline()
        row = sides.prepare(setting) if asked.side == "prepare" else sides.measure(setting, asked.side)
        print(json.dumps({"side": asked.side, **row}))
    else:
        run_all(asked, setting)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of rows.jsonl and log.txt")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "chats-training-gpu", help="base, pairs, cache"
    )
    parser.add_argument("--family", choices=("sdxl", "z_image", "qwen_image"), default="sdxl")
    parser.add_argument("--only", nargs="+", choices=list(sides.SIDES), help="these sides")
    parser.add_argument("--tiny", action="store_true", help="a tiny base, to see whether all of it runs")
    parser.add_argument("--pixels", type=int, default=1024, help="side of the square pictures")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a step, one a pass")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each side")
    parser.add_argument("--seconds", type=float, default=3600, help="after which nothing more is begun")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--table", type=Path, help="a rows.jsonl to make the page of")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table is None and asked.side is None and asked.out is None:
        parser.error("--out is needed")
    return asked


def run_all(asked: argparse.Namespace, setting: sides.Setting) -> None:
    asked.out.mkdir(parents=True, exist_ok=True)
    asked.folder.mkdir(parents=True, exist_ok=True)
    names = asked.only or (sides.OF_SDXL if asked.family == "sdxl" else sides.OF_OTHERS)
    began, facts = time.monotonic(), {"setting": {**dataclasses.asdict(setting), "folder": None}}
    with (asked.out / "rows.jsonl").open("a", encoding="utf-8") as rows, (asked.out / "log.txt").open("a") as log:
        waiting = ["prepare", *names]
        following = start(asked, waiting[0], log)
        for number, name in enumerate(waiting):
            process = following
            if number + 1 < len(waiting):
                following = start(asked, waiting[number + 1], log)
            if time.monotonic() - began > asked.seconds:
                row = {"side": name, "left_out": "no time was left"}
                process.kill()
            else:
                log.write(f"== {name}\n")
                log.flush()
                row = outcome(name, process)
            line = json.dumps({**row, **facts, "date": time.strftime("%Y-%m-%d")})
            rows.write(line + "\n")
            rows.flush()
            print(f"{time.monotonic() - began:.0f} s", json.dumps(row), flush=True)


def start(asked: argparse.Namespace, side: str, log: Any) -> subprocess.Popen:
    """A process that imports what a side needs, and waits for a line. It is alone, as a launcher would state it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"--{name}={getattr(asked, name)}" for name in ("folder", "family", "pixels", "pairs", "steps", "device")]
    command = [sys.executable, "-m", "benchmarks.training_gpu", *words, f"--side={side}", *["--tiny"] * asked.tiny]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **(alone if "shards" in side else {})}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )


def outcome(name: str, process: subprocess.Popen) -> dict[str, Any]:
    """The row that a process gives, or why there is none."""
    try:
        said, _ = process.communicate("go\n", timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return {"side": name, "failed": f"not done after {LIMIT} s"}
    if process.returncode != 0:
        return {"side": name, "failed": f"status {process.returncode}, see log.txt"}
    return json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    main()
