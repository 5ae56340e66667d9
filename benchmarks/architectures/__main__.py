"""Pairs held against the formula on mini models of many architectures, in a real ComfyUI on the CPU, a row at a time.

    COMFYUI_PATH=... ComfyUI's-python -m benchmarks.architectures --results FILE [--only TEXT] [--again]
    COMFYUI_PATH=... ComfyUI's-python -m benchmarks.architectures --padding

FILE (JSON lines) keeps each finished row: run again, it goes on with those that are missing, and prints the table of
all. Rows of other packs are made where `CHATS_PACKS` names a folder that holds them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "comfy"))

import conftest

if not conftest.USABLE:
    sys.exit(conftest.SKIPPED)

import torch
from comfyui_version import __version__

from .measure import Errors, errors_of
from .padding import padding_report
from .report import report
from .rows import ROWS


def measured(name: str) -> Errors:
    negative = conftest.pack_module("nodes.sampling.proxy_prompt").build_negative
    apply_pair = conftest.pack_module("nodes.sampling.apply").apply_pair
    return errors_of(ROWS[name](), lambda *members: apply_pair(*members, 0.0, 1.0), negative)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--results", type=Path, help="the file of finished rows")
    asked.add_argument("--padding", action="store_true", help="measure longer null prompts instead")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)
    if asked.padding:
        print(padding_report())
        return
    done = {}
    if asked.results.is_file():
        done = {row["name"]: row for row in map(json.loads, asked.results.read_text("utf-8").splitlines())}
    for name in ROWS:
        if asked.only.lower() not in name.lower() or (name in done and not asked.again):
            continue
        started = time.monotonic()
        try:
            row = measured(name).as_dict()
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {error}"}
        done[name] = {"name": name, **row, "seconds": round(time.monotonic() - started, 1), "comfyui": __version__}
        print(json.dumps(done[name]), file=sys.stderr, flush=True)
        with asked.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[name]) + "\n")
    print(report([done[name] for name in ROWS if name in done]))


if __name__ == "__main__":
    main()
