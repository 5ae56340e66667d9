"""Families whose real widths are too large for a test: what the trainer exports of them, in real ComfyUI, against what
diffusers' own modules predict, and the pair that the nodes sample."""

from pathlib import Path

import folder_paths
import mini
import mini_architectures
import pytest
import torch
from conftest import newest_only
from running import assert_detected_whole, in_the_trainers_python, predictions
from safetensors.torch import load_file

pytestmark = newest_only

# By family: ComfyUI's class of it, and the mini model of that in `mini_architectures`.
CLASSES = {"z_image": "ZImage", "qwen_image": "QwenImage", "chroma": "Chroma", "flux2_klein": "Flux2", "krea2": "Krea2"}
MINIS = {"z_image": "z_image_wide", "chroma": "chroma_deep"}
# Of make_predictions.py.
TIME = 0.7


@pytest.fixture(scope="module")
def all_made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    in_the_trainers_python("make_predictions.py", folder, *CLASSES)
    return folder


@pytest.fixture(scope="module", params=CLASSES)
def made(request, all_made):
    """The family, its folder and what is expected of it."""
    folder = all_made / request.param
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    return request.param, folder, load_file(folder / "expected.safetensors")


@pytest.fixture(scope="module")
def models(made, nodes):
    """The base as ComfyUI's own class, and the pair of LoRAs on it through the pack's loader."""
    name, folder, _ = made
    base = mini_architectures.model(MINIS.get(name, name))
    file = load_file(folder / f"{name}.safetensors")
    base.model.diffusion_model.load_state_dict(base.model.model_config.process_unet_state_dict(file), strict=True)
    names = [f"{name}_{member}.safetensors" for member in ("preferred", "dispreferred")]
    return base, *nodes["CHATSLoRAPairLoader"](base, *names, 1.0, 1.0)


def as_latents(model, pictures: torch.Tensor) -> torch.Tensor:
    """[batch, channels, height, width], and one frame where the model makes videos."""
    return pictures.unsqueeze(2) if model.model.latent_format.latent_dimensions == 3 else pictures


def predicted(model, x: torch.Tensor, prompt: torch.Tensor, null: torch.Tensor) -> list[torch.Tensor]:
    """What a model predicts for a prompt and for the null prompt, [batch, channels, height, width]."""
    x = as_latents(model, x)
    conds = {"positive": [[prompt, {}]], "negative": [[null, {}]]}
    found = predictions(model, conds, x, torch.tensor(TIME))
    velocities = [(x - found[which]) / TIME for which in ("positive", "negative")]
    return [velocity.reshape(*x.shape[:2], *x.shape[-2:]) for velocity in velocities]


def test_every_layer_is_mapped_and_predicts_as_in_diffusers(made, models):
    name, folder, expected = made
    for adapted, member in zip(models[1:], ("preferred", "dispreferred"), strict=True):
        layers = len(load_file(folder / f"{name}_{member}.safetensors")) // 3
        assert sum(len(patches) for patches in adapted.patches.values()) == layers > 10
    *prompts, null = (expected[f"prompt.{index}"] for index in range(3))
    for model, of in zip(models, ("base", "preferred", "dispreferred"), strict=True):
        for index, prompt in enumerate(prompts):
            rows = slice(index, index + 1)
            actual = predicted(model, expected["noisy"][rows], prompt, null)
            for answer, asked in zip(actual, ("prompts", "null"), strict=True):
                assert mini.relative_error(answer, expected[f"{of}.{asked}"][rows]) < 1e-5
    assert mini.relative_error(expected["preferred.null"], expected["dispreferred.null"]) > 1e-2


def test_a_pair_samples_as_it_does_headless(made, models, nodes):
    _, _, expected = made
    _, *pair = models
    prompts = [[[expected[f"prompt.{index}"], {}]] for index in (0, 2)]
    latent = {"samples": torch.zeros_like(as_latents(pair[0], expected["pair"]))}
    settings = (5, 2, 3.0, "euler", "simple", 1.0, 0.5, "auto", 0.0, 1.0)
    (out,) = nodes["CHATSKSampler"](*pair, *prompts, latent, *settings)
    actual = pair[0].model.process_latent_in(out["samples"]).reshape(expected["pair"].shape)
    assert mini.relative_error(actual, expected["pair"]) < 1e-3


def test_the_published_widths_are_detected_whole(made):
    name, folder, _ = made
    assert_detected_whole(folder / "shapes.json", CLASSES[name])
