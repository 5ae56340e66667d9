"""One method, two doors: given equal latents, prompts, first factors and settings, the training node does what the
headless trainer does."""

import dataclasses
import json
from pathlib import Path

import comfy.lora
import folder_paths
import mini_architectures
import pytest
import torch
from conftest import pack_module
from nodes import UNETLoader
from running import in_the_trainers_python
from safetensors.torch import load_file

MEMBERS = ("preferred", "dispreferred")
# Families whose layers ComfyUI has fused, so that LoRAs are of other shapes there.
FUSED = ("sd3", "flux")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, narrow_known) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    in_the_trainers_python("take_steps.py", folder, "sd15", *FUSED)
    return folder


class Door:
    """What the headless trainer was given for a family, as the node has it, and what it did."""

    def __init__(self, folder: Path):
        self.folder, self.given = folder, load_file(folder / "steps.safetensors")
        self.settings = json.loads((folder / "run.yaml").read_text())
        for kind, place in (("diffusion_models", folder), ("loras", folder / "run")):
            folder_paths.add_model_folder_path(kind, str(place), is_default=True)
        (self.model,) = UNETLoader().load_unet("base.safetensors", "default")
        self.names = sorted({key.split(".")[0] for key in self.given if key.endswith(".chosen")})

    def prompt(self, name: str) -> list:
        tokens, pooled = (self.given.get(f"{name}.{part}") for part in ("tokens", "pooled"))
        batch = tokens if tokens.ndim == 3 else tokens[None]
        return [[batch, {} if pooled is None else {"pooled_output": pooled.reshape(1, -1)}]]

    def pairs(self) -> list:
        image = pack_module("nodes.training.errors").EncodedImage
        # The trainer keeps latents as its denoiser takes them, the node as the VAE gives them.
        raw = {key: self.model.model.process_latent_out(value[None]) for key, value in self.given.items()}
        return [
            pack_module("nodes.training.steps").EncodedPair(
                name,
                image(raw[f"{name}.chosen"], {}),
                image(raw[f"{name}.rejected"], {}),
                self.prompt(f"{name}.prompt"),
            )
            for name in self.names
        ]

    def within(self, model, use):
        """What ``use`` returns for a Steps on ``model``."""
        engine, settings, returned = pack_module("nodes.training.steps"), self.settings, []

        def work(errors):
            rank, network = settings["network_rank"], errors.model.diffusion_model
            adapters = pack_module("nodes.training.adapters").Adapters(network, rank, "attention", 0)
            steps = engine.Steps(
                errors,
                adapters,
                self.pairs(),
                [],
                engine.Null(self.prompt("null"), 0.5),
                learning_rate=settings["learning_rate"],
                accumulate=settings["gradient_accumulation_steps"],
                beta=settings["beta"],
                seed=settings["seed"],
            )
            with adapters.installed():
                returned.append(use(steps))

        pair = self.pairs()[0]
        with torch.inference_mode():
            pack_module("nodes.training.within_comfyui").with_loaded(model, pair.prompt, pair.chosen.latent, work)
        return returned[0]


def test_the_loras_are_those_of_the_headless_trainer(pack, trained):
    door = Door(trained / "sd15")
    places = comfy.lora.model_lora_keys_unet(door.model.model, {})
    native = {name: places[name].removeprefix("diffusion_model.").removesuffix(".weight") for name in places}

    def factors(when: str) -> dict[str, torch.Tensor]:
        found = {}
        for key, value in door.given.items():
            if key.startswith(f"{when}."):
                member, name, side = key.removeprefix(f"{when}.").split(".")
                found[f"{member}.{native[name]}.{side}"] = value
        return found

    def use(steps):
        before = factors("before")
        assert before.keys() == steps.parameters.keys()
        for name, parameter in steps.parameters.items():
            parameter.data.copy_(before[name])
        for _ in range(door.settings["max_train_steps"]):
            steps.take()
        return {name: parameter.detach().clone() for name, parameter in steps.parameters.items()}

    ours, theirs, before = door.within(door.model, use), factors("after"), factors("before")
    flat = [torch.cat([each[name].flatten() for name in theirs]) for each in (ours, theirs, before)]
    moved = torch.linalg.vector_norm(flat[1] - flat[2])
    assert torch.linalg.vector_norm(flat[0] - flat[1]) / moved < 1e-4
    assert moved / torch.linalg.vector_norm(flat[2]) > 1e-3, "training moved nothing"


@pytest.mark.parametrize("family", FUSED)
def test_errors_and_loss_at_equal_weights_are_those_of_the_headless_trainer(pack, trained, nodes, family):
    door = Door(trained / family)
    names = [f"run_{member}.safetensors" for member in MEMBERS]
    members = nodes["CHATSLoRAPairLoader"](door.model, *names, 1.0, 1.0)
    engine, objective = pack_module("nodes.training.steps"), pack_module("chats.objective")

    def errors_of(*asked: str):
        """Of each pair, those of the sides, with what is in force on the model itself."""

        @torch.no_grad()
        def use(steps):
            questions = [steps._asked(engine.VALIDATION_EPOCH, pair)[0] for pair in steps.pairs]
            steps.adapters.active = None
            return {side: torch.cat([steps.errors.error(each[side].args[1]) for each in questions]) for side in asked}

        return use

    references = door.within(door.model, errors_of("chosen", "rejected"))
    chosen, rejected = (
        door.within(model, errors_of(side))[side] for model, side in zip(members, ("chosen", "rejected"), strict=True)
    )
    ours = objective.PairErrors(chosen, rejected, references["chosen"], references["rejected"])
    expected = torch.stack([door.given[f"{name}.errors"].flatten() for name in door.names], dim=1)
    assert torch.stack([chosen, rejected]).flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-5)
    assert (chosen / references["chosen"] - 1).abs().max() > 1e-4, "training moved nothing"
    for place, name in enumerate(door.names):
        one = objective.PairErrors(*(getattr(ours, each.name)[place : place + 1] for each in dataclasses.fields(ours)))
        loss = engine.OBJECTIVE.loss(one, door.settings["beta"])[0].item()
        assert loss == pytest.approx(door.given[f"{name}.loss"].item(), rel=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("sd15", "sd15"), ("sd15", "sdxl"), ("sd3", "sd3"), ("flux", "flux")])
def test_noise_levels_are_drawn_as_by_the_headless_trainer(pack, trained, family, kind):
    """SDXL's table is that of SD1.5; SD3's levels are shifted, and Flux's are not."""
    given = load_file(trained / family / "steps.safetensors")
    model = Door(trained / family).model if kind == family else mini_architectures.model(kind)
    sampling = model.get_model_object("model_sampling")
    errors = pack_module("nodes.training.errors")
    ours = torch.cat([errors.sigma_of(sampling, number) for number in given["uniform"].tolist()])
    assert ours.tolist() == pytest.approx(given["sigmas"].tolist(), rel=1e-5)
