"""Run by test_trained.py in the trainer's Python: `python train_members.py FOLDER FAMILY-METHOD …` trains pairs on
mini bases, each in a folder of its name.

The base is a diffusers folder whose denoiser and text encoders have the widths that ComfyUI knows the family by. Beside
the pair that `chats_train train` leaves in `run`, and the LoRA that is distilled from it, it writes the base's denoiser
as ComfyUI loads it, and what the headless sampler gives.
"""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import tiny_pipelines
import torch
from PIL import Image
from safetensors.torch import save_file

from chats.pair import PairMetadata
from chats_train.cli import main as chats_train
from chats_train.distillation.finished_run import open_finished_run
from chats_train.distillation.settings import DistillSettings, student_config
from chats_train.distillation.student import STUDENT
from chats_train.families import Denoiser, Family
from chats_train.runs.adapters import LoRAMembers
from chats_train.runs.opening import open_family
from chats_train.runs.pair_files import export_full
from chats_train.runs.trained import open_trained, trained_members
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_pair
from chats_train.settings.config_file import load_config

SEED, STEPS, PIXELS, GUIDANCE_SCALE, ALPHA = 5, 2, (64, 64), 2.0, 0.5


def save_base(family: str, folder: Path) -> Path:
    """A tiny base at ComfyUI's widths."""
    tiny_pipelines.CLIP_WIDTHS |= {"sd15": (768,), "sd3": (768, 1280), "flux": (768,)}
    tiny_pipelines.T5_WIDTH = 4096
    tiny_pipelines.save_pipeline(family, folder)
    part = "unet" if family == "sd15" else "transformer"
    tiny_pipelines.denoiser(family, 1, comfy=True).save_pretrained(folder / part)
    return folder


def save_pairs(folder: Path, count: int = 4) -> Path:
    generator = torch.Generator().manual_seed(0)
    for side in ("chosen", "rejected"):
        (folder / side).mkdir(parents=True)
        for index in range(count):
            content = torch.randint(0, 256, (*PIXELS, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(content).save(folder / side / f"{index}.png")
            (folder / side / f"{index}.txt").write_text("abcd"[index])
    return folder


def student_of(run: Path, family: Family) -> Denoiser:
    """What the newest checkpoint of a run's distillation holds, to be sampled at s = 0."""
    finished = open_finished_run(run, [], "latest")
    stated = json.loads((run / "distilled" / "distillation.json").read_text())
    settings = DistillSettings(**{field.name: stated[field.name] for field in fields(DistillSettings)})
    config = student_config(settings, finished.config, family, run / "distilled", 1)
    members = LoRAMembers(config, family, (STUDENT,), family.device)
    members.load_state(open_trained(config, "latest").weights(), "")
    return members.denoiser(STUDENT)


def make(family_name: str, method: str, folder: Path) -> None:
    raw = {
        "version": 1,
        "family": family_name,
        "output_dir": str(folder / "run"),
        "pretrained_model": str(save_base(family_name, folder / "base")),
        "data": {"path": str(save_pairs(folder / "pairs"))},
        "training_method": method,
        "resolution": PIXELS[0],
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "max_train_steps": 3,
        "gradient_accumulation_steps": 2,
        "lr_warmup_steps": 0,
        "validation_pairs": 0,
        "learning_rate": 1e-2 if method == "lora" else 1e-3,
        "network_rank": 4,
        "network_alpha": 2.0,
    }
    (folder / "run.yaml").write_text(json.dumps(raw))
    assert chats_train(["train", str(folder / "run.yaml")]) == 0
    assert chats_train(["export", str(folder / "run.yaml"), "--dtype", "fp32"]) == 0

    config = load_config(folder / "run.yaml")
    family = open_family(config, "cpu")
    distillation = ["--steps", "2", "--batch-size", "2", "--learning-rate", "1e-2", "--rank", "4", "--layers", "all"]
    teacher = ["--guidance-scale", str(GUIDANCE_SCALE), "--alpha", str(ALPHA), "--form", "proxy"]
    run = folder / "run"
    assert chats_train(["distill", str(run), "--method", "lora", "--dtype", "fp32", *distillation, *teacher]) == 0
    base = family.load_denoiser().state_dict()
    export_full(folder / "base.safetensors", family.name, base, PairMetadata("preferred"), title="base")
    members = trained_members(config, family, open_trained(config, "latest"))
    pair = [members.denoiser(member) for member in ("preferred", "dispreferred")]
    prompt, null = family.encode_prompt(["a b"]), family.null_prompt()
    noise = initial_noise(family, 1, *PIXELS, SEED)
    settings = SamplingSettings(STEPS, "normal", GUIDANCE_SCALE, ALPHA, "proxy")
    results = {"trained": sample_pair(family, *pair, prompt, null, noise, settings)}
    late = replace(settings, start_percent=0.5)
    results["interval"] = sample_pair(family, *pair, prompt, null, noise, late)
    student = student_of(run, family)
    alone = SamplingSettings(STEPS, "normal", guidance_scale=0.0)
    results["distilled"] = sample_cfg(family, student, prompt, null, noise, alone)
    untrained = family.load_denoiser()
    results["base"] = sample_pair(family, untrained, untrained, prompt, null, noise, settings)
    prompts = {
        f"{which}.{key}": value for which, entry in (("prompt", prompt), ("null", null)) for key, value in entry.items()
    }
    save_file(results | prompts, folder / "expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        make(*name.split("-"), Path(sys.argv[1]) / name)
