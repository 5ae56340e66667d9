"""Two LoRAs on one base in networks that do not keep the rows of a batch first, or that compute outside of a pass: as
the same two models on weights of their own, to 1e-4.

Minis of ComfyUI's own classes; every Linear of each has a LoRA.
"""

import functools

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import mini
import pytest
import torch
from comfy.samplers import sampler_object
from conftest import newest_only
from networks import ANIMA, COSMOS_1, HIDREAM, LTX_WITH_SOUND, QWEN_IMAGE
from running import guider_of, run, schedule

pytestmark = newest_only
CFG = 6.0
QWEN_AT_ZERO = dict(QWEN_IMAGE, default_ref_method="index_timestep_zero")


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes; Anima computes other things in other places without."""
    with torch.inference_mode():
        yield


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    """Of the six that Anima's adapter of the text has, 17 million weights each."""
    from comfy.ldm.anima import model  # which older ones do not have

    monkeypatch.setattr(model, "LLMAdapter", functools.partial(model.LLMAdapter, num_layers=1))


def build(family: str, config: dict):
    """A loaded ModelPatcher, of one seed."""
    settings = getattr(comfy.supported_models, family)(dict(config))
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({}, "")
    model.diffusion_model.load_state_dict(mini.random_weights(model.diffusion_model, 1))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def lora_on_all(model, seed: int, rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in model.model.named_modules():
        if name.startswith("diffusion_model.") and hasattr(module, "in_features") and hasattr(module, "out_features"):
            down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            state[f"{name}.lora_down.weight"] = down
            state[f"{name}.lora_up.weight"] = torch.randn(module.out_features, rank, generator=generator) * 0.3
            state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


def patched(model, state):
    return comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]


def entry(seed, width, tokens=16, **options):
    return [[noise(seed, 1, tokens, width), options]]


def anima(seed):
    ids = torch.randint(0, 32000, (16,), generator=torch.Generator().manual_seed(seed))
    return entry(seed, 1024, t5xxl_ids=ids, t5xxl_weights=torch.ones(16))


def hidream(seed):
    llama = noise(seed + 5, 1, 2, 16, 64)
    return entry(seed, 64, pooled_output=noise(seed + 100, 1, 128), conditioning_llama3=llama)


def qwen(seed):
    return entry(seed, 3584, reference_latents=[noise(9, 1, 16, 8, 8)])


# By name: the class in ComfyUI, its configuration, a latent's shape without the batch, and conditioning by seed.
NETWORKS = {
    "rows last (Cosmos 1)": ("CosmosT2V", COSMOS_1, (16, 4, 4, 4), lambda seed: entry(seed, 1024)),
    "rows twice (Qwen-Image-Edit)": ("QwenImage", QWEN_AT_ZERO, (16, 1, 8, 8), qwen),
    "rows by expert (HiDream)": ("HiDream", HIDREAM, (16, 8, 8), hidream),
    "outside of the pass (Anima)": ("Anima", ANIMA, (16, 1, 8, 8), anima),
}


def assert_as_two_models(nodes, network, latent, conds):
    first, second = build(*network), build(*network)
    states = lora_on_all(first, 41), lora_on_all(first, 42)
    preferred, shared, separate = patched(first, states[0]), patched(first, states[1]), patched(second, states[1])
    join = nodes["CHATSApply"]
    expected = run(guider_of(join(preferred, separate, 0.0, 1.0)[0], *conds, CFG), latent, steps=1)
    actual = run(guider_of(join(preferred, shared, 0.0, 1.0)[0], *conds, CFG), latent, steps=1)
    alone = run(guider_of(preferred, *conds, CFG), latent, steps=1)
    assert mini.relative_error(actual, expected) < 1e-4
    assert mini.relative_error(alone, expected) > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_as_two_models(name, nodes):
    family, config, shape, conditioning = NETWORKS[name]
    latent = {"samples": torch.zeros(2, *shape)}
    assert_as_two_models(nodes, (family, config), latent, (conditioning(3), conditioning(4)))


def test_guidance_that_comes_late(nodes):
    """The dispreferred side is loaded in the middle of the run, after the conditioning was encoded."""
    from comfy.patcher_extension import WrappersMP

    first, second = build("Anima", ANIMA), build("Anima", ANIMA)
    state = lora_on_all(first, 42)

    def override(executor, x, timestep, *args, **kwargs):
        executor.class_obj.cfg = CFG
        return executor(x, timestep, *args, **kwargs)

    def late(dispreferred):
        model = nodes["CHATSApply"](first, dispreferred, 0.0, 1.0)[0]
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "override", override)
        return run(guider_of(model, anima(3), anima(4), 1.0), {"samples": torch.zeros(1, 16, 1, 8, 8)}, steps=1)

    assert mini.relative_error(late(patched(first, state)), late(patched(second, state))) < 1e-4


def test_video_with_its_sound(nodes):
    """Several latents in one, each of a shape of its own; the text goes through layers outside of the pass."""
    from comfy.nested_tensor import NestedTensor

    network = ("LTXAV", LTX_WITH_SOUND)
    first, second = build(*network), build(*network)
    states = lora_on_all(first, 41), lora_on_all(first, 42)
    preferred, shared, separate = patched(first, states[0]), patched(first, states[1]), patched(second, states[1])
    conds = entry(3, 256), entry(4, 256)
    shapes = (1, 128, 2, 2, 2), (1, 8, 4, 16)
    empty, start = (
        NestedTensor([make(*shape) for shape in shapes]) for make in (torch.zeros, functools.partial(noise, 7))
    )

    def sampled(model):
        guider = guider_of(model, *conds, CFG)
        made = guider.sample(start, empty, sampler_object("euler"), schedule(model, 1), disable_pbar=True, seed=7)
        return torch.cat([part.flatten() for part in made.unbind()])

    join = nodes["CHATSApply"]
    expected = sampled(join(preferred, separate, 0.0, 1.0)[0])
    assert mini.relative_error(sampled(join(preferred, shared, 0.0, 1.0)[0]), expected) < 1e-4
    assert mini.relative_error(sampled(preferred), expected) > 1e-3
