"""From preference pairs on disk to a picture: a pair trained by `chats_train`, loaded and sampled in real ComfyUI."""

from pathlib import Path

import folder_paths
import mini
import pytest
import torch
from nodes import KSampler, LoraLoaderModelOnly, UNETLoader
from running import in_the_trainers_python
from safetensors.torch import load_file

TRAINED = ["sd15-full", "sd3-lora", "flux-lora"]


@pytest.fixture(scope="module")
def all_trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    in_the_trainers_python("train_members.py", folder, *TRAINED)
    return folder


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, all_trained, narrow_known):
    """Method, the pair's folder, and what the headless sampler gives."""
    folder, method = all_trained / request.param, request.param.split("-")[1]
    for path in (folder, folder / "run", folder / "run" / "distilled"):
        for kind in ("diffusion_models", "loras"):
            folder_paths.add_model_folder_path(kind, str(path), is_default=True)
    return method, folder / "run", load_file(folder / "expected.safetensors")


def members(method, folder, nodes) -> list:
    """The pair as a user loads it."""
    names = ["run_preferred.safetensors", "run_dispreferred.safetensors"]
    if method == "full":
        return nodes["CHATSDiffusionModelPairLoader"](*names, "default")
    (base,) = UNETLoader().load_unet("base.safetensors", "default")
    return nodes["CHATSLoRAPairLoader"](base, *names, 1.0, 1.0)


def prompt_and_null(expected) -> list[list]:
    entries = []
    for which in ("prompt", "null"):
        options = {"pooled_output": expected[f"{which}.pooled"]} if f"{which}.pooled" in expected else {}
        entries.append([[expected[f"{which}.tokens"], options]])
    return entries


def sampled(pair, expected, nodes, start_percent=0.0) -> torch.Tensor:
    """The pair's latents, in the denoiser's scale."""
    latent, prompts = {"samples": torch.zeros_like(expected["trained"])}, prompt_and_null(expected)
    settings = (5, 2, 3.0, "euler", "normal", 1.0, 0.5, "proxy", start_percent, 1.0)
    out = nodes["CHATSKSampler"](*pair, *prompts, latent, *settings)[0]
    return pair[0].model.process_latent_in(out["samples"])


def test_a_trained_pair_samples_as_it_does_headless(trained, nodes, caplog):
    method, folder, expected = trained
    pair = members(method, folder, nodes)
    assert "not loaded" not in caplog.text.lower()
    actual = sampled(pair, expected, nodes)
    assert mini.relative_error(actual, expected["trained"]) < 1e-3
    assert mini.relative_error(expected["base"], expected["trained"]) > 1e-2, "training moved nothing"
    late = sampled(pair, expected, nodes, start_percent=0.5)
    assert mini.relative_error(late, expected["interval"]) < 1e-3
    assert mini.relative_error(late, expected["trained"]) > 1e-2


def test_a_distilled_lora_is_one_ordinary_lora(trained, nodes, caplog):
    """In the stock loader and sampler, at cfg 1, it is what the headless student is, in one pass a step, and no nearer
    to its teacher and no farther."""
    method, folder, expected = trained
    (base,) = UNETLoader().load_unet("base.safetensors", "default")
    (model,) = LoraLoaderModelOnly().load_lora_model_only(base, "run_distilled.safetensors", 1.0)
    assert "not loaded" not in caplog.text.lower()
    passes = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    latent = {"samples": torch.zeros_like(expected["distilled"])}
    (out,) = KSampler().sample(model, 5, 2, 1.0, "euler", "normal", *prompt_and_null(expected), latent)
    hook.remove()
    assert passes == [1, 1]
    actual = model.model.process_latent_in(out["samples"])
    assert mini.relative_error(actual, expected["distilled"]) < 1e-3
    teacher = sampled(members(method, folder, nodes), expected, nodes)
    headless = mini.relative_error(expected["distilled"], expected["trained"])
    assert mini.relative_error(actual, teacher) == pytest.approx(headless, rel=1e-2)
    assert headless > 1e-2, "after two steps it cannot be its teacher"


def test_a_distilled_lora_is_no_member(trained, nodes, caplog):
    """The loader says so, and whatever samples the pair."""
    method, folder, expected = trained
    if method == "full":
        pytest.skip("its members are no LoRAs")
    (base,) = UNETLoader().load_unet("base.safetensors", "default")
    pair = nodes["CHATSLoRAPairLoader"](base, "run_distilled.safetensors", "run_dispreferred.safetensors", 1.0, 1.0)
    line = "the preferred file was distilled from a pair: cfg 1, no pair needed, load it alone"
    assert line in caplog.text
    caplog.clear()
    sampled(pair, expected, nodes)
    assert line in caplog.text
    caplog.clear()
    sampled(members(method, folder, nodes), expected, nodes)
    assert "distilled" not in caplog.text
