"""Run by test_two_doors.py in the trainer's Python: `python take_steps.py FOLDER FAMILY …` takes steps of the headless
trainer on mini bases, and writes what it was given and what came of it.

In a folder for each family: `base.safetensors` as ComfyUI loads it, the pair, and `steps.safetensors` with latents and
prompts by pair, both members' factors before and after by the names of LoRA files, the noise levels drawn for some
numbers, and, where the layers of ComfyUI's network are others, the errors and the loss of each pair afterwards.
"""

import json
import sys
from pathlib import Path

import torch
import train_members
from safetensors.torch import save_file

from chats.draws import VALIDATION_EPOCH
from chats.pair import PairMetadata
from chats_train.data import PairDataset
from chats_train.encodings.cache import CachedEncodings, fill_cache
from chats_train.families import Family
from chats_train.layouts.formats import lora_names
from chats_train.runs.adapters import adapter_weights
from chats_train.runs.opening import open_family, open_pairs
from chats_train.runs.pair_export import export_pair
from chats_train.runs.pair_files import export_full
from chats_train.runs.processes import Processes
from chats_train.settings.config_file import load_config
from chats_train.training.trainer import Trainer, null_prompt

# The second step reaches into the second epoch. A loss has the errors' rounding, BETA times.
PAIRS, STEPS, ACCUMULATE, RANK, BETA, LEARNING_RATE, SEED = 3, 3, 2, 4, 10.0, 1e-3, 7
# The only family of these whose layers are ComfyUI's.
ALIKE = "sd15"


def settings(family: str, folder: Path) -> dict:
    return {
        "version": 1,
        "family": family,
        "output_dir": str(folder / "run"),
        "pretrained_model": str(train_members.save_base(family, folder / "base")),
        "data": {"path": str(train_members.save_pairs(folder / "pairs", PAIRS))},
        "resolution": train_members.PIXELS[0],
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "max_train_steps": STEPS,
        "gradient_accumulation_steps": ACCUMULATE,
        "lr_warmup_steps": 0,
        "validation_pairs": 0,
        "learning_rate": LEARNING_RATE,
        "beta": BETA,
        "seed": SEED,
        "network_rank": RANK,
        "network_alpha": float(RANK),
    }


def given(family: Family, dataset: PairDataset, encodings: CachedEncodings) -> dict[str, torch.Tensor]:
    """Latents and prompts by pair."""
    null = null_prompt(family, encodings, torch.device("cpu"))
    written = {f"null.{name}": value for name, value in null.items()}
    for sample in dataset.samples:
        pair = encodings.pair(sample)
        prompt = {f"{sample.id}.prompt.{name}": value for name, value in pair.prompt.items()}
        written |= prompt | {f"{sample.id}.chosen": pair.chosen, f"{sample.id}.rejected": pair.rejected}
    return written


def factors(trainer: Trainer, when: str) -> dict[str, torch.Tensor]:
    names = lora_names(trainer.family.name, trainer.family.load_denoiser().state_dict())
    found = {}
    for member in ("preferred", "dispreferred"):
        for key, value in adapter_weights(trainer.weights(), member).items():
            module, _, end = key.rpartition(".lora_")
            side = {"A.weight": "down", "B.weight": "up"}[end]
            found[f"{when}.{member}.{names[module]}.{side}"] = value.clone()
    return found


def noise_levels(family: Family, uniform: torch.Tensor) -> torch.Tensor:
    """What is trained on for numbers from 0 to 1, in ComfyUI's terms: of what is noised, noise over signal for a
    diffusion model, the share of noise for a flow."""
    ones = torch.ones(len(uniform), 1, 1, 1)
    timesteps = family.sample_timesteps(uniform, ones.shape[-2:])
    signal, noise = (family.add_noise(*parts, timesteps).flatten() for parts in ((ones, 0 * ones), (0 * ones, ones)))
    return noise if family.prediction_type == "flow" else noise / signal


def make(family_name: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "run.yaml").write_text(json.dumps(settings(family_name, folder)))
    config, processes = load_config(folder / "run.yaml"), Processes()
    family, dataset = open_family(config, processes.device), open_pairs(config)
    fill_cache(config.cache_dir, dataset.samples, family, [], process_index=0, num_processes=1, progress=False)
    encodings = CachedEncodings(config.cache_dir, family.fingerprint)
    trainer = Trainer(config, family, dataset, encodings, processes)
    written = given(family, dataset, encodings) | factors(trainer, "before")
    for _ in range(STEPS):
        trainer.train_step()
    written |= factors(trainer, "after")
    written["uniform"] = (torch.arange(32) + 0.5) / 32
    written["sigmas"] = noise_levels(family, written["uniform"])
    for sample in dataset.samples if family_name != ALIKE else []:
        loss, metrics = trainer.gradients.measure(trainer._batch([(VALIDATION_EPOCH, sample)]))
        written[f"{sample.id}.errors"] = torch.stack([metrics["error_chosen"], metrics["error_rejected"]])
        written[f"{sample.id}.loss"] = loss
    save_file({key: value.clone().contiguous() for key, value in written.items()}, folder / "steps.safetensors")
    export_pair(config, family, trainer.weights(), trainer.step, dataset.fingerprint, folder / "run", dtype="fp32")
    base = family.load_denoiser().state_dict()
    export_full(folder / "base.safetensors", family.name, base, PairMetadata("preferred"), title="base")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        make(name, Path(sys.argv[1]) / name)
