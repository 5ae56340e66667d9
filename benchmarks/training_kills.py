"""Kills the training node with SIGKILL at random moments; no saved step is lost, and the end is the same to the bit.

    COMFYUI_PATH=<ComfyUI> <ComfyUI's python> benchmarks/training_kills.py --markdown benchmarks/training_kills.md

A mini SD3 and a rated data set, as the tests have them. The run saves its state after every step. Children are forked
where ComfyUI is loaded and the encodings are kept; each goes on with the run, and is killed after a time drawn up to
what four steps take. After each kill the state is read as it lies there: it is whole, and no earlier than the child
before left it. The last child is not killed; what it writes must equal a run that was never stopped. The status is 1
where anything differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))

import conftest

if not conftest.USABLE:
    sys.exit(conftest.SKIPPED)

import comfy.sd
import folder_paths
import mini_architectures
import torch
import training_runs
from comfyui_version import __version__
from safetensors.torch import load_file
from serving import vae_weights

MOST_STEPS = 4


def train(models: tuple, name: str, steps: int) -> None:
    node = conftest.pack_module("nodes.training.train_lora_pair").CHATSTrainLoRAPair
    settings = dict(rank=2, layers="attention", steps=steps, learning_rate=1e-2, accumulate=1, beta=50.0, minutes=0)
    with torch.inference_mode():
        node.execute(*models, "my taste", name, **settings, null_prompt_prob=0.5, resolution=training_runs.SIZE, seed=1)


def forked(work, seconds: float | None) -> bool:
    """Runs ``work`` in a child, killed after some seconds; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        os.close(2)
        os.open(os.devnull, os.O_WRONLY)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a child failed by itself")
    return os.WIFEXITED(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    session, saved = (conftest.pack_module(f"nodes.training.{name}") for name in ("session", "saved_run"))
    session.SECONDS_BETWEEN_SAVES = 0.0
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder_paths.set_output_directory(scratch)
        loras = Path(scratch) / "loras"
        folder_paths.folder_names_and_paths["loras"] = ([str(loras)], {".safetensors"})
        data_set = Path(scratch) / "chats" / "my taste"
        training_runs.rate(data_set)
        models = (
            mini_architectures.model("sd3"),
            training_runs.Clip(),
            comfy.sd.VAE(sd=vae_weights(4, latent_channels=16)),
        )
        steps = 4 * arguments.kills
        started = time.monotonic()
        train(models, "whole", steps)
        step_seconds = (time.monotonic() - started) / steps
        moments, folder, at, kills, left = random.Random(arguments.seed), data_set / "runs" / "killed", 0, 0, 0
        while kills < arguments.kills:
            ended = forked(lambda: train(models, "killed", steps), MOST_STEPS * step_seconds * moments.random())
            run = saved.load_run(folder)  # raises where it is not whole
            now = 0 if run is None else run.step
            if now < at:
                sys.exit(f"step {at} was saved, and {now} is there after a kill")
            at, left = now, max(left, len(list(folder.glob(".*"))))
            kills += not ended
            if ended:
                break
        train(models, "killed", steps)
        whole, killed = (load_file(data_set / "runs" / name / saved.FILE) for name in ("whole", "killed"))
        same = whole.keys() == killed.keys() and all(torch.equal(each, whole[key]) for key, each in killed.items())
        files = [
            load_file(loras / f"{name}_{member}.safetensors")
            for member in ("preferred", "dispreferred")
            for name in ("whole", "killed")
        ]
        same &= all(
            torch.equal(each, ours[key]) for ours, theirs in (files[:2], files[2:]) for key, each in theirs.items()
        )
    line = (
        f"{kills} kills in a run of {steps} steps, at step {at} after the last of them; at most {left} hidden files "
        f"stood there at once. State and files are {'equal' if same else 'NOT EQUAL'} to those of a run that was never "
        f"stopped, to the bit. ComfyUI {__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{time.strftime('%Y-%m-%d')}."
    )
    print(line)
    if arguments.markdown:
        arguments.markdown.write_text(f"# A run of the training node, killed\n\n{line}\n", encoding="utf-8")
    sys.exit(not same)


if __name__ == "__main__":
    main()
