"""Run by test_export.py in the trainer's Python, with the repository and tests/train on its path: `python
make_members.py FOLDER KIND …`.

Makes of each kind, in a folder of its name, a random pair and a pair of LoRAs that ComfyUI detects, exports them, and
samples them with the headless sampler. What the test needs to do the same in ComfyUI lies in `expected.safetensors`:
prompts, and latents by name of the run. `shapes.json` has the weights of the published widths for SD1.5 and SDXL.
"""

import json
import sys
from pathlib import Path

import peft
import tiny_pipelines
import torch
from safetensors.torch import save_file

from chats.pair import PairMetadata
from chats_train.families import load_family
from chats_train.layouts.formats import file_format
from chats_train.layouts.places import to_native
from chats_train.runs.pair_files import export_full, export_lora
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_pair

SEED, STEPS, PIXELS, GUIDANCE_SCALE, ALPHA, RANK, LORA_ALPHA = 5, 2, (64, 96), 2.0, 0.5, 4, 2.0
RUNS = {
    "proxy": SamplingSettings(STEPS, "normal", GUIDANCE_SCALE, ALPHA, "proxy"),
    "exact": SamplingSettings(STEPS, "normal", GUIDANCE_SCALE, ALPHA, "exact"),
    "simple": SamplingSettings(STEPS, "simple", GUIDANCE_SCALE, ALPHA, "proxy"),
}
# Tokens and pooled width of each family's prompts.
PROMPTS = {"sd15": (77, 768, None), "sdxl": (77, 2048, 1280), "sd3": (154, 4096, 2048), "flux": (256, 4096, 768)}
# Of these the pairs are narrower.
PUBLISHED = ("sd15", "sdxl")


def random_prompt(family: str, seed: int) -> dict[str, torch.Tensor]:
    tokens, width, pooled = PROMPTS[family]
    generator = torch.Generator().manual_seed(seed)
    prompt = {"tokens": torch.randn(1, tokens, width, generator=generator)}
    return prompt if pooled is None else prompt | {"pooled": torch.randn(1, pooled, generator=generator)}


def add_lora(model: peft.PeftModel, member: str, seed: int) -> dict[str, torch.Tensor]:
    """A random adapter of a member's name on the shared base; its state, as it is exported."""
    model.set_adapter(member)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_" in key and f".{member}." in key:
            weight.data.normal_(generator=generator).mul_(weight.shape[1] ** -0.5)
    return peft.get_peft_model_state_dict(model, adapter_name=member)


def with_adapter(model: peft.PeftModel, member: str):
    """The base as one member sees it: two adapters, one base, as the trainer holds them."""

    def denoiser(*args, **options):
        model.set_adapter(member)
        return model(*args, **options)

    return denoiser


def make(kind: str, folder: Path) -> None:
    name, v_prediction = kind.split("_")[0], kind.endswith("_v")
    prediction = {"prediction_type": "v_prediction" if v_prediction else "epsilon", "zero_terminal_snr": v_prediction}
    family = load_family(name, str(tiny_pipelines.save_pipeline(name, folder / "base", **prediction)))
    common = {"pair_id": "p", "prediction_type": family.prediction_type}
    metadata = {member: PairMetadata(member, **common) for member in ("preferred", "dispreferred")}
    models = {member: tiny_pipelines.denoiser(name, seed, comfy=True) for seed, member in enumerate(metadata, 1)}
    prompt, null = random_prompt(name, 1), random_prompt(name, 2)
    noise = initial_noise(family, 1, *PIXELS, SEED)

    results = {"cfg": sample_cfg(family, models["preferred"], prompt, null, noise, RUNS["proxy"])}
    for run, settings in RUNS.items():
        if (name, run) == ("sdxl", "simple"):
            continue  # the schedule is that of the others, and takes long
        results[run] = sample_pair(family, *models.values(), prompt, null, noise, settings)
    for member, model in models.items():
        path = folder / f"{kind}_{member}.safetensors"
        export_full(path, name, model.state_dict(), metadata[member], title="mini", zero_terminal_snr=v_prediction)

    # Both LoRAs are on the preferred member, which serves as their base.
    shapes = {key: tuple(value.shape) for key, value in models["preferred"].state_dict().items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules=list(family.facts.lora_targets))
    base = peft.get_peft_model(models["preferred"], config, adapter_name="preferred").eval()
    base.add_adapter("dispreferred", config)
    for seed, member in enumerate(metadata, 11):
        path = folder / f"{kind}_{member}_lora.safetensors"
        export_lora(path, name, add_lora(base, member, seed), LORA_ALPHA, shapes, metadata[member], title="mini")
    adapted = (with_adapter(base, member) for member in metadata)
    results["lora"] = sample_pair(family, *adapted, prompt, null, noise, RUNS["proxy"])
    prompts = {
        f"{which}.{key}": value for which, entry in (("prompt", prompt), ("null", null)) for key, value in entry.items()
    }
    save_file(results | prompts, folder / "expected.safetensors")
    if name in PUBLISHED:
        (folder / "shapes.json").write_text(json.dumps(published_shapes(name)))


def published_shapes(name: str) -> dict[str, list[int]]:
    """Native weights of a base with the published widths and one block of each kind that repeats."""
    with torch.device("meta"):
        weights = tiny_pipelines.published(name).state_dict()
    return {key: list(value.shape) for key, value in to_native(weights, file_format(name).layout(weights)).items()}


if __name__ == "__main__":
    # The layers are so small that threads mostly wait for each other.
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        make(each, Path(sys.argv[1]) / each)
