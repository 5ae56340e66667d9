"""From preference pairs on disk to a picture: a pair trained by `chats_train`, loaded and sampled in real ComfyUI."""

from pathlib import Path

import folder_paths
import mini
import pytest
import torch
from nodes import UNETLoader
from running import in_the_trainers_python
from safetensors.torch import load_file

TRAINED = ["sd15-full", "sd3-lora"]


@pytest.fixture(scope="module")
def all_trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    in_the_trainers_python("train_members.py", folder, *TRAINED)
    return folder


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, all_trained):
    """Method, the pair's folder, and what the headless sampler gives."""
    folder, method = all_trained / request.param, request.param.split("-")[1]
    for path in (folder, folder / "run"):
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


def test_a_trained_pair_samples_as_it_does_headless(trained, nodes, caplog):
    method, folder, expected = trained
    pair = members(method, folder, nodes)
    assert "not loaded" not in caplog.text.lower()
    prompts = []
    for which in ("prompt", "null"):
        options = {"pooled_output": expected[f"{which}.pooled"]} if f"{which}.pooled" in expected else {}
        prompts.append([[expected[f"{which}.tokens"], options]])
    latent = {"samples": torch.zeros_like(expected["trained"])}
    out = nodes["CHATSKSampler"](*pair, *prompts, latent, 5, 2, 3.0, "euler", "normal", 1.0, 0.5, "proxy", 0.0, 1.0)[0]
    actual = pair[0].model.process_latent_in(out["samples"])
    assert mini.relative_error(actual, expected["trained"]) < 1e-3
    assert mini.relative_error(expected["base"], expected["trained"]) > 1e-2, "training moved nothing"
