"""Well-known packs themselves, where `CHATS_PACKS` names a folder that holds them, each with its requirements
installed: none of them is part of this project. Each pack's own node gives a pair what it gives one model, as in
`test_fits.py`.
"""

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import serving
import test_training_gradients as gradients
import torch
from conftest import pack_module
from fitting import CFG, assert_shared_weights_fit, assert_two_models_fit, ksampler, lora_pairs, prompts
from server import PromptServer

PACKS = os.environ.get("CHATS_PACKS")
pytestmark = pytest.mark.skipif(
    PACKS is None, reason="CHATS_PACKS is not set: real packs were NOT tried; set it to a folder of packs"
)


def pack(name: str) -> dict:
    """A pack's nodes by id, loaded from its folder as ComfyUI loads custom nodes; skips loudly where the pack is not
    there."""
    folder, module_name = Path(PACKS) / name, f"custom_nodes_{name}"
    if not (folder / "__init__.py").is_file():
        pytest.skip(f"{name} is not in CHATS_PACKS: it was NOT tried")
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            module_name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        if not hasattr(PromptServer, "instance"):
            PromptServer(asyncio.new_event_loop())  # packs add routes to it
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name].NODE_CLASS_MAPPINGS


@pytest.fixture
def join(nodes):
    return lambda preferred, dispreferred: nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=serving.vae_weights(4))


def picture(size: int) -> torch.Tensor:
    """[1, size, size, 3] of 0 to 1."""
    ramp = torch.linspace(0, 1, size)
    return torch.stack([ramp.expand(size, size), ramp.expand(size, size).T, 1 - ramp.expand(size, size)], dim=-1)[None]


def tiled_diffusion(method: str, tile_batch_size: int):
    node = pack("ComfyUI-TiledDiffusion")["TiledDiffusion"]

    def sample(model, positive, negative):
        (tiled,) = node().apply(model, method, 64, 64, 32, tile_batch_size)
        return ksampler(tiled, positive, negative)

    return sample


@pytest.mark.parametrize("tile_batch_size", [1, 4])
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_tiled_diffusion(method, tile_batch_size, join, twins):
    sample = tiled_diffusion(method, tile_batch_size)
    assert_two_models_fit(sample, join, twins("sd15"), unlike=ksampler)
    assert_shared_weights_fit(sample, join, twins("sd15"))


def ipadapter_weights() -> dict:
    """An IPAdapter of SD1.5's layout and the mini model's widths."""
    generator = torch.Generator().manual_seed(8)
    names = [f"{number * 2 + 1}.to_{part}_ip.weight" for number in range(16) for part in "kv"]
    layers = {name: torch.randn(64, 768, generator=generator) / 28 for name in names}
    projection = {
        "proj.weight": torch.randn(4 * 768, 1024, generator=generator) / 32,
        "proj.bias": torch.zeros(4 * 768),
        "norm.weight": torch.ones(768),
        "norm.bias": torch.zeros(768),
    }
    return {"image_proj": projection, "ip_adapter": layers}


@pytest.mark.parametrize("scaling", ["V only", "K+mean(V) w/ C penalty"])
def test_ipadapter(scaling, join, twins):
    node = pack("ComfyUI_IPAdapter_plus")["IPAdapterEmbeds"]
    embeds = [torch.randn(1, 1, 1024, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]

    def sample(model, positive, negative):
        patched = node().apply_ipadapter(
            model, ipadapter_weights(), embeds[0], 1.0, "linear", 0.0, 1.0, embeds[1], embeds_scaling=scaling
        )
        return ksampler(patched[0], positive, negative)

    assert_two_models_fit(sample, join, twins("sd15"), unlike=ksampler)
    assert_shared_weights_fit(sample, join, twins("sd15"))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_ultimate_sd_upscale(batch_size, join, twins, vae):
    node = pack("ComfyUI_UltimateSDUpscale")["UltimateSDUpscaleNoUpscale"]

    @torch.inference_mode()  # as ComfyUI runs nodes
    def sample(model, positive, negative):
        settings = dict(
            seed=7, steps=2, cfg=CFG, sampler_name="euler", scheduler="normal", denoise=0.6, mode_type="Linear"
        )
        settings |= dict(
            tile_width=64, tile_height=64, mask_blur=4, tile_padding=16, force_uniform_tiles=True, tiled_decode=False
        )
        settings |= dict(
            seam_fix_mode="Half Tile", seam_fix_denoise=0.5, seam_fix_mask_blur=4, seam_fix_width=16, seam_fix_padding=8
        )
        return node().upscale(picture(128), model, positive, negative, vae, batch_size=batch_size, **settings)[0]

    assert_pictures_fit(sample, join, twins("sd15"))


def test_impact_packs_detailer(join, twins, vae):
    nodes = pack("ComfyUI-Impact-Pack")
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 40:100] = 1.0
    (segs,) = nodes["MaskToSEGS"].doit(mask, False, 2.0, False, 10)

    @torch.inference_mode()  # as ComfyUI runs nodes
    def sample(model, positive, negative):
        settings = dict(
            guide_size=128,
            guide_size_for=True,
            max_size=128,
            seed=7,
            steps=2,
            cfg=CFG,
            sampler_name="euler",
            scheduler="normal",
        )
        # Without feathered noise masks: the pack of 2024 asks for a node of an older ComfyUI for them.
        settings |= dict(denoise=0.6, feather=5, noise_mask=True, force_inpaint=True, wildcard="", noise_mask_feather=0)
        return nodes["DetailerForEach"]().doit(
            picture(128), segs, model, None, vae, positive=positive, negative=negative, **settings
        )[0]

    assert_pictures_fit(sample, join, twins("sd15"))


def assert_pictures_fit(sample, join, twins):
    """Packs that round to 8 bits on the way: one step of 255, where the two models themselves differ by more."""

    def difference(one, other):
        return (sample(one, *prompts()) - sample(other, *prompts())).abs().max().item() * 255

    assert difference(join(*twins), twins[0]) <= 1.01
    preferred, shared, separate = lora_pairs(twins)
    assert difference(join(preferred, shared), join(preferred, separate)) <= 1.01
    assert difference(join(preferred, shared), preferred) > 8


def gguf_file(folder: Path, quantization: str) -> Path:
    """A mini Flux, its blocks' matrices quantised."""
    import gguf
    import mini_architectures

    path = folder / f"{quantization}.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for key, value in mini_architectures.model("flux").model.diffusion_model.state_dict().items():
        quantised = value.ndim == 2 and value.shape[1] % 32 == 0 and "blocks" in key
        kind = gguf.GGMLQuantizationType[quantization if quantised else "F32"]
        writer.add_tensor(key, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_a_gguf_base_is_trained_with_the_right_gradient(quantization, tmp_path, monkeypatch):
    loader = pack("ComfyUI-GGUF")["UnetLoaderGGUF"]
    path = gguf_file(tmp_path, quantization)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".gguf"}))
    with torch.inference_mode():
        model, again = (loader().load_unet(path.name)[0] for _ in range(2))
    digests = pack_module("nodes.training.digests")
    before = digests.model_digest(model)
    assert before == digests.model_digest(again)
    names = ("adapters", "checkpointing", "errors", "in_float32", "self_check", "steps", "within_comfyui")
    training = {name: pack_module(f"nodes.training.{name}") for name in names}
    network = model.model.diffusion_model
    classes = [type(weight) for weight in network.parameters()]
    assert any(weight.dtype == torch.uint8 for weight in network.parameters())
    gradients.assert_gradient_is_right(training, "flux", model)
    assert [type(weight) for weight in network.parameters()] == classes
    assert digests.model_digest(model) == before
