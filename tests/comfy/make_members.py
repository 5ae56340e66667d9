"""Run by test_export.py in the trainer's Python: `python make_members.py KIND FOLDER`.

Makes a random pair and a pair of LoRAs that ComfyUI detects, exports them, and samples them with the headless sampler. What the
test needs to do the same in ComfyUI lies in `expected.safetensors`: prompts, and latents by name of the run.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "train")]

import peft
import tiny_pipelines
import torch
from safetensors.torch import save_file

from chats.pair import PairMetadata
from chats_train.export.members import export_full, export_lora
from chats_train.families import load_family
from chats_train.sampling import SamplingSettings, initial_noise, sample_cfg, sample_pair

SEED, STEPS, PIXELS, GUIDANCE_SCALE, ALPHA, RANK, LORA_ALPHA = 5, 3, (64, 96), 2.0, 0.5, 4, 2.0
RUNS = {
    "proxy": SamplingSettings(STEPS, "normal", GUIDANCE_SCALE, ALPHA, "proxy"),
    "exact": SamplingSettings(STEPS, "normal", GUIDANCE_SCALE, ALPHA, "exact"),
    "simple": SamplingSettings(STEPS, "simple", GUIDANCE_SCALE, ALPHA, "proxy"),
}
# Tokens and pooled width of each family's prompts.
PROMPTS = {"sd15": (77, 768, None), "sdxl": (77, 2048, 1280), "sd3": (154, 4096, 2048), "flux": (256, 4096, 768)}


def random_prompt(family: str, seed: int) -> dict[str, torch.Tensor]:
    tokens, width, pooled = PROMPTS[family]
    generator = torch.Generator().manual_seed(seed)
    prompt = {"tokens": torch.randn(1, tokens, width, generator=generator)}
    return prompt if pooled is None else prompt | {"pooled": torch.randn(1, pooled, generator=generator)}


def random_lora(base: torch.nn.Module, targets: tuple[str, ...], seed: int) -> torch.nn.Module:
    config = peft.LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules=list(targets))
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            weight.data.normal_(generator=generator).mul_(weight.shape[1] ** -0.5)
    return model.eval()


def main(kind: str, folder: Path) -> None:
    name, v_prediction = kind.split("_")[0], kind.endswith("_v")
    prediction = {"prediction_type": "v_prediction" if v_prediction else "epsilon", "zero_terminal_snr": v_prediction}
    family = load_family(name, str(tiny_pipelines.save_pipeline(name, folder / "base", **prediction)))
    members = {member: tiny_pipelines.denoiser(name, seed, comfy=True) for seed, member in enumerate(("preferred", "dispreferred"), 1)}
    base_shapes = {key: tuple(value.shape) for key, value in members["preferred"].state_dict().items()}
    prompt, null = random_prompt(name, 1), random_prompt(name, 2)
    noise = initial_noise(family, 1, *PIXELS, SEED)
    results = {"cfg": sample_cfg(family, members["preferred"], prompt, null, noise, RUNS["proxy"])}
    for run, settings in RUNS.items():
        results[run] = sample_pair(family, *members.values(), prompt, null, noise, settings)
    for seed, (member, denoiser) in enumerate(members.items()):
        metadata = PairMetadata(member, pair_id="p", prediction_type=family.prediction_type)
        path = folder / f"{kind}_{member}.safetensors"
        export_full(path, name, denoiser.state_dict(), metadata, title="mini", zero_terminal_snr=v_prediction)
        # Both LoRAs are on the preferred member, which serves as their base.
        adapted = random_lora(tiny_pipelines.denoiser(name, 1, comfy=True), family.lora_targets, seed)
        lora = peft.get_peft_model_state_dict(adapted)
        export_lora(folder / f"{kind}_{member}_lora.safetensors", name, lora, LORA_ALPHA, base_shapes, metadata, title="mini")
        members[member] = adapted
    results["lora"] = sample_pair(family, *members.values(), prompt, null, noise, RUNS["proxy"])
    prompts = {f"{which}.{key}": value for which, entry in (("prompt", prompt), ("null", null)) for key, value in entry.items()}
    save_file(results | prompts, folder / "expected.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
