"""What the trainer exports, in real ComfyUI: names against ComfyUI's own maps, and whole pairs against the headless
sampler.

The second half needs the trainer's Python (diffusers is not ComfyUI's): set CHATS_TRAIN_PYTHON to it.
"""

import sys
from pathlib import Path

import comfy.lora
import comfy.utils
import folder_paths
import mini
import mini_architectures
import pytest
import torch
from conftest import ends_only
from nodes import KSampler, UNETLoader
from running import assert_detected_whole, in_the_trainers_python
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
# Last, so that ComfyUI's `nodes` stays in front of the pack's.
sys.path.append(str(ROOT))

from chats_train.layouts.formats import file_format, lora_names  # noqa: E402
from chats_train.layouts.places import to_native  # noqa: E402

# SDXL as v-prediction alone: epsilon differs by two markers less.
KINDS = ["sd15", "sdxl_v", "sd3", "flux"]
CLASSES = {"sd15": "SD15", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux"}


def diffusers_map(kind: str, model) -> dict[str, object]:
    """ComfyUI's own map of a loaded model: diffusers' key → native key, or (native key, (dim, start, length),
    function)."""
    config = model.model.model_config.unet_config
    if kind == "sd3":
        return comfy.utils.mmdit_to_diffusers(config)
    # Two generations of diffusers' name for one layer.
    return {
        key: to for key, to in comfy.utils.unet_to_diffusers(config).items() if not key.startswith("class_embedding.")
    }


def in_diffusers_names(native: dict[str, torch.Tensor], mapping: dict[str, object]) -> dict[str, torch.Tensor]:
    """Native weights under diffusers' names, by ComfyUI's map alone."""
    found = {}
    for key, to in mapping.items():
        name, cut, function = (to, None, None) if isinstance(to, str) else (*to, None)[:3]
        if name in native:
            weight = native[name] if cut is None else native[name].narrow(*cut)
            # Its only function swaps two halves, so it undoes itself.
            found[key] = weight if function is None else function(weight)
    return found


# SDXL's depths are in its names, its widths are not.
NAMED = ["sd15", "sdxl_deep", "sd3"]


@ends_only
@pytest.mark.parametrize("kind", NAMED)
def test_native_names_are_comfyuis(kind):
    model = mini_architectures.model(kind)
    native = model.model.diffusion_model.state_dict()
    weights = in_diffusers_names(native, diffusers_map(kind, model))
    ours = to_native(weights, file_format(kind.split("_")[0]).layout(weights))
    assert ours.keys() == native.keys()
    assert [key for key in native if not torch.equal(ours[key], native[key])] == []


@ends_only
@pytest.mark.parametrize("kind", NAMED)
def test_lora_names_are_mapped_to_the_right_weights(kind):
    model = mini_architectures.model(kind)
    mapping = diffusers_map(kind, model)
    weights = in_diffusers_names(model.model.diffusion_model.state_dict(), mapping)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    names = lora_names(kind.split("_")[0], weights)
    assert len(names) == sum(key.endswith(".weight") for key in weights)
    for module, name in names.items():
        target, expected = key_map[name], mapping[f"{module}.weight"]
        if isinstance(expected, str):
            assert target == f"diffusion_model.{expected}"
        else:
            assert target[:2] == (f"diffusion_model.{expected[0]}", expected[1])


# Whole pairs.


@pytest.fixture(scope="module")
def all_exported(tmp_path_factory) -> Path:
    """The folder with the exported pairs of all kinds."""
    folder = tmp_path_factory.mktemp("exported")
    in_the_trainers_python("make_members.py", folder, *KINDS)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def exported(request, all_exported, narrow_known):
    """Kind, folder and expectations of an exported pair whose files ComfyUI's loaders find."""
    folder = all_exported / request.param
    for name in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(name, str(folder), is_default=True)
    return request.param, folder, load_file(folder / "expected.safetensors")


@pytest.fixture(scope="module")
def pair(exported, nodes):
    """Both members through the pack's loader."""
    kind = exported[0]
    return nodes["CHATSDiffusionModelPairLoader"](
        f"{kind}_preferred.safetensors", f"{kind}_dispreferred.safetensors", "default"
    )


def conditioning(expected: dict[str, torch.Tensor], which: str) -> list:
    options = {"pooled_output": expected[f"{which}.pooled"]} if f"{which}.pooled" in expected else {}
    return [[expected[f"{which}.tokens"], options]]


def sample(nodes, pair, expected, scheduler="normal", form="proxy", cfg=3.0) -> torch.Tensor:
    """The pair through CHATS KSampler with the settings of make_members.py, in the denoiser's scale."""
    latent = {"samples": torch.zeros_like(expected["cfg"])}
    prompts = (conditioning(expected, which) for which in ("prompt", "null"))
    (out,) = nodes["CHATSKSampler"](*pair, *prompts, latent, 5, 2, cfg, "euler", scheduler, 1.0, 0.5, form, 0.0, 1.0)
    return pair[0].model.process_latent_in(out["samples"])


def test_members_are_detected_whole(exported, pair):
    kind, folder, _ = exported
    for model, member in zip(pair, ("preferred", "dispreferred"), strict=True):
        assert type(model.model.model_config).__name__ == CLASSES[kind.split("_")[0]]
        file = load_file(folder / f"{kind}_{member}.safetensors")
        # ComfyUI calls Flux's norms `weight`.
        file = {key.replace("_norm.scale", "_norm.weight"): value for key, value in file.items()}
        loaded = model.model.diffusion_model.state_dict()
        assert file.keys() - {"v_pred", "ztsnr"} == loaded.keys()
        assert [key for key in loaded if not torch.equal(loaded[key], file[key])] == []
    assert (model.model.model_type.name == "V_PREDICTION") == kind.endswith("_v")
    assert bool(getattr(model.model.model_sampling, "zsnr", False)) == kind.endswith("_v")


@pytest.mark.parametrize("kind", ["sd15", "sdxl_v"])
def test_the_published_widths_are_detected_whole(kind, all_exported):
    assert_detected_whole(all_exported / kind / "shapes.json", CLASSES[kind.split("_")[0]])


@pytest.mark.parametrize("run", ["proxy", "exact", "simple"])
def test_a_pair_samples_as_it_does_headless(exported, pair, nodes, run):
    _, _, expected = exported
    if run not in expected:
        pytest.skip("a schedule is the same for all kinds, and SDXL's takes long")
    options = {"scheduler": "simple"} if run == "simple" else {"form": run}
    actual = sample(nodes, pair, expected, **options)
    assert mini.relative_error(actual, expected[run]) < 1e-3
    # Another run of the same pair is another picture, so the line above can fail.
    assert mini.relative_error(actual, expected["exact" if run == "proxy" else "proxy"]) > 1e-2


def test_a_lora_pair_samples_as_it_does_headless(exported, nodes, caplog):
    kind, folder, expected = exported
    (base,) = UNETLoader().load_unet(f"{kind}_preferred.safetensors", "default")
    names = [f"{kind}_{member}_lora.safetensors" for member in ("preferred", "dispreferred")]
    adapted_pair = nodes["CHATSLoRAPairLoader"](base, *names, 1.0, 1.0)
    for name, adapted in zip(names, adapted_pair, strict=True):
        assert sum(len(patches) for patches in adapted.patches.values()) == len(load_file(folder / name)) / 3
    assert "not loaded" not in caplog.text.lower()
    actual = sample(nodes, adapted_pair, expected)
    assert mini.relative_error(actual, expected["lora"]) < 1e-3
    assert mini.relative_error(actual, expected["proxy"]) > 1e-2


def test_one_member_samples_as_it_does_headless(exported, pair):
    (model, _), (_, _, expected) = pair, exported
    prompts = [conditioning(expected, which) for which in ("prompt", "null")]
    (out,) = KSampler().sample(
        model, 5, 2, 3.0, "euler", "normal", *prompts, {"samples": torch.zeros_like(expected["cfg"])}
    )
    assert mini.relative_error(model.model.process_latent_in(out["samples"]), expected["cfg"]) < 1e-3
