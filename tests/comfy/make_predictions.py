"""Run by test_predictions.py in the trainer's Python: `python make_predictions.py FOLDER FAMILY …`.

Writes for each family, in a folder of its name, a random base and a pair of LoRAs on every layer of it, what diffusers'
module predicts with each for prompts of different lengths in one batch and for a null prompt, and what the headless
sampler makes of the pair. `shapes.json` has the native weights of a base of the published widths, which would be too
large to be made.
"""

import json
import sys
from pathlib import Path

import peft
import tiny_pipelines
import torch
from make_members import LORA_ALPHA, add_lora, published_shapes, with_adapter
from safetensors.torch import save_file

from chats.pair import PairMetadata
from chats_train.families import load_family
from chats_train.families.base_checks import TEXT_WIDTHS
from chats_train.families.prompts import MASK, batch_of
from chats_train.runs.pair_files import export_full, export_lora
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_pair

PIXELS, TIME, SEED = (64, 96), 0.7, 5
# Of two prompts and the null prompt, where prompts have lengths of their own.
LENGTHS = (40, 7, 5)


def random_prompt(seed: int, length: int, width: int) -> dict[str, torch.Tensor]:
    """One prompt, without a batch dimension."""
    tokens = torch.randn(length, width, generator=torch.Generator().manual_seed(seed))
    return {"tokens": tokens, MASK: torch.ones(length, dtype=torch.bool)}


def make(name: str, folder: Path) -> None:
    family = load_family(name, str(tiny_pipelines.save_pipeline(name, folder / "base")))
    base = tiny_pipelines.denoiser(name, 1, comfy=True)
    shapes = {key: tuple(value.shape) for key, value in base.state_dict().items()}
    members = {member: PairMetadata(member, prediction_type="flow") for member in ("preferred", "dispreferred")}
    export_full(folder / f"{name}.safetensors", name, base.state_dict(), members["preferred"], title="mini")
    layers = [key for key, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    config = peft.LoraConfig(r=2, lora_alpha=LORA_ALPHA, target_modules=layers)
    model = peft.get_peft_model(base, config, adapter_name="preferred").eval()
    model.add_adapter("dispreferred", config)
    for seed, (member, metadata) in enumerate(members.items(), 11):
        path = folder / f"{name}_{member}.safetensors"
        count = export_lora(path, name, add_lora(model, member, seed), LORA_ALPHA, shapes, metadata, title="mini")
        assert count == len(layers)

    width = next(base.config[key] for key in TEXT_WIDTHS if key in base.config) * base.config.get("num_text_layers", 1)
    lengths = LENGTHS if family.facts.longest_prompt else [family.prompt_shapes()["tokens"][0]] * len(LENGTHS)
    made = [random_prompt(seed, length, width) for seed, length in enumerate(lengths)]
    *rows, null = made if family.facts.longest_prompt else [{"tokens": prompt["tokens"]} for prompt in made]
    pair = [with_adapter(model, member) for member in members]
    noisy = initial_noise(family, len(rows), *PIXELS, SEED)

    def plain(*args, **options):
        with model.disable_adapter():
            return model(*args, **options)

    results = {"noisy": noisy}
    with torch.no_grad():
        for of, denoiser in zip(("base", *members), (plain, *pair), strict=True):
            for asked, prompt in (("prompts", batch_of(rows)), ("null", batch_of([null]))):
                times = torch.full((len(rows),), TIME)
                results[f"{of}.{asked}"] = family.predict(denoiser, noisy, times, prompt)
    prompts = {f"prompt.{index}": row["tokens"][None] for index, row in enumerate((*rows, null))}
    prompt, empty = (batch_of([row]) for row in (rows[0], null))
    settings = SamplingSettings(2, guidance_scale=2.0, alpha=0.5)
    results["pair"] = sample_pair(family, *pair, prompt, empty, noisy[:1], settings)
    save_file({key: value.contiguous() for key, value in (results | prompts).items()}, folder / "expected.safetensors")
    (folder / "shapes.json").write_text(json.dumps(published_shapes(name)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        make(each, Path(sys.argv[1]) / each)
