"""Run by running.py in the trainer's Python: runs scripts of this folder, one for each line that it reads, in children
of one process that has loaded the packages, since that takes longer than most of them.

A line is JSON, the script's file and its arguments; the answer is a line too: what the script said where it failed,
else nothing, as JSON.
"""

import json
import multiprocessing
import os
import runpy
import sys
import tempfile

import tiny_pipelines  # noqa: F401  loads diffusers and transformers
import torch

import chats_train.training.trainer  # noqa: F401

MOST_CHARACTERS = 4000


def run(command: list[str], said: str) -> None:
    """Runs a script with all that it says in a file."""
    handle = os.open(said, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    torch.set_num_threads(1)
    kind = "fork" if hasattr(os, "fork") else "spawn"
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            said = os.path.join(folder, "said.txt")
            open(said, "w").close()
            child = multiprocessing.get_context(kind).Process(target=run, args=(json.loads(line), said))
            child.start()
            child.join()
            with open(said, encoding="utf-8", errors="replace") as file:
                words = file.read()[-MOST_CHARACTERS:]
        answer = f"exit status {child.exitcode}: {words}" if child.exitcode else ""
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
