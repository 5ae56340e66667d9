"""One method, two doors: given equal latents, prompts, members and settings, the distilling node does what
`chats_train distill` does."""

import json

import comfy.lora
import pytest
import torch
from conftest import newest_only, pack_module
from running import in_the_trainers_python
from safetensors.torch import load_file
from test_two_doors import Door

pytestmark = newest_only


@pytest.fixture(scope="module")
def door(tmp_path_factory, narrow_known) -> Door:
    folder = tmp_path_factory.mktemp("distilled")
    in_the_trainers_python("distill_steps.py", folder)
    return Door(folder)


def settings_of(door: Door) -> dict:
    """Of the distillation, as the headless trainer keeps them."""
    return json.loads((door.folder / "run" / "distilled" / "distillation.json").read_text())


def test_the_lora_is_that_of_the_headless_trainer(pack, nodes, door):
    members = nodes["CHATSLoRAPairLoader"](
        door.model, "run_preferred.safetensors", "run_dispreferred.safetensors", 1, 1
    )
    (joined,) = nodes["CHATSApply"](*members, 0.0, 1.0)
    taught, parts_module, teacher, adapters_module, within = (
        pack_module(f"nodes.training.{name}")
        for name in ("taught", "pair_parts", "teacher", "adapters", "within_comfyui")
    )
    parts, pairs, settings = parts_module.parts_of(joined), door.pairs(), settings_of(door)
    asked = teacher.Teacher(joined, door.prompt("null"), 1 + settings["guidance_scale"], settings["alpha"], "proxy")
    factors = {}

    def work(errors):
        rank, network = door.settings["network_rank"], errors.model.diffusion_model
        adapters = adapters_module.Adapters(network, rank, "attention", 0, ("student",))
        steps = taught.TaughtSteps(
            errors,
            adapters,
            pairs,
            [],
            asked,
            steps=settings["steps"],
            learning_rate=settings["learning_rate"],
            accumulate=settings["batch_size"],
            seed=door.settings["seed"],
        )
        with adapters.installed():
            parts_module.begin_with(parts.more, adapters)
            factors["before"] = of_layers(adapters_module.lora_file(steps.parameters, "student", torch.float32))
            for _ in range(settings["steps"]):
                steps.take()
            factors["after"] = of_layers(adapters_module.lora_file(steps.parameters, "student", torch.float32))

    def of_layers(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Both factors by the weight that they are for."""
        found = comfy.lora.load_lora(file, comfy.lora.model_lora_keys_unet(door.model.model, {}))
        return {f"{key}.{side}": patch.weights[side].clone() for key, patch in found.items() for side in (0, 1)}

    with torch.inference_mode():
        within.with_loaded(parts.base, pairs[0].prompt, pairs[0].chosen.latent, work)
    theirs = of_layers(load_file(door.folder / "run" / "distilled" / "run_distilled.safetensors"))
    assert factors["after"].keys() == theirs.keys()
    flat = [torch.cat([each[name].flatten() for name in theirs]) for each in (*factors.values(), theirs)]
    moved = torch.linalg.vector_norm(flat[2] - flat[0])
    assert torch.linalg.vector_norm(flat[1] - flat[2]) / moved < 1e-4
    assert moved / torch.linalg.vector_norm(flat[0]) > 1e-3, "distilling moved nothing"
