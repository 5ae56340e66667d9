"""Run by test_distillation_doors.py in the trainer's Python: `python distill_steps.py FOLDER` trains a pair on a mini
SD1.5, distills it, and writes what it was given: `base.safetensors` as ComfyUI loads it, and `steps.safetensors` with
latents and prompts by pair."""

import json
import sys
from pathlib import Path

import take_steps
import torch
from safetensors.torch import save_file

from chats.pair import PairMetadata
from chats_train.cli import main as chats_train
from chats_train.encodings.cache import CachedEncodings
from chats_train.runs.opening import open_family, open_pairs
from chats_train.runs.pair_files import export_full
from chats_train.settings.config_file import load_config

SETTINGS = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "guidance_scale": 5.0, "alpha": 0.4}


def make(folder: Path) -> None:
    # So that the members are far from each other.
    raw = take_steps.settings("sd15", folder) | {"learning_rate": 1e-2}
    (folder / "run.yaml").write_text(json.dumps(raw))
    stated = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    student = ["--layers", "pair", "--form", "proxy", "--rank", str(raw["network_rank"]), *stated]
    run = str(folder / "run.yaml")
    for arguments in (
        ["train", run],
        ["export", run, "--dtype", "fp32"],
        ["distill", run, "--dtype", "fp32", *student],
    ):
        assert chats_train(arguments) == 0
    config = load_config(folder / "run.yaml")
    family = open_family(config, "cpu")
    encodings = CachedEncodings(config.cache_dir, family.fingerprint)
    written = take_steps.given(family, open_pairs(config), encodings)
    save_file({key: value.clone().contiguous() for key, value in written.items()}, folder / "steps.safetensors")
    base = family.load_denoiser().state_dict()
    export_full(folder / "base.safetensors", family.name, base, PairMetadata("preferred"), title="base")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[1]))
