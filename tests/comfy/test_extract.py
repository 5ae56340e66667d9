"""What `extract` writes, in real ComfyUI: every key is mapped, and the preferred with the LoRA on it is the
dispreferred."""

import comfy.model_management
import folder_paths
import pytest
import torch
from nodes import LoraLoaderModelOnly, UNETLoader
from running import in_the_trainers_python

FAMILIES = ["sd15", "sd3", "flux"]


@pytest.fixture(scope="module", autouse=True)
def extracted(tmp_path_factory, narrow_known):
    """Members and LoRAs of all families, where ComfyUI's loaders find them."""
    folder = tmp_path_factory.mktemp("extracted")
    in_the_trainers_python("make_extracted.py", folder, *FAMILIES)
    for kind in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, str(folder), is_default=True)


def loaded_weights(model) -> dict[str, torch.Tensor]:
    """A model's weights as sampling uses them, patches applied."""
    comfy.model_management.load_models_gpu([model])
    weights = {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}
    comfy.model_management.unload_all_models()
    return weights


@pytest.mark.parametrize("family", FAMILIES)
def test_the_preferred_with_the_lora_is_the_dispreferred(family, caplog):
    preferred, dispreferred = (
        UNETLoader().load_unet(f"{family}_{name}.safetensors", "default")[0] for name in ("preferred", "dispreferred")
    )
    before, expected = loaded_weights(preferred), loaded_weights(dispreferred)
    changed = [key for key in expected if not torch.equal(before[key], expected[key])]
    assert len(changed) > 30
    (patched,) = LoraLoaderModelOnly().load_lora_model_only(preferred, f"{family}_lora.safetensors", 1.0)
    assert "not loaded" not in caplog.text.lower()
    assert patched.patches.keys() == {f"diffusion_model.{key}" for key in changed}
    weights = loaded_weights(patched)
    for key in expected:
        torch.testing.assert_close(
            weights[key], expected[key], rtol=0, atol=1e-5 * expected[key].abs().max().item(), msg=key
        )
