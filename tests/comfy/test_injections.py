"""What nodes inject into a network beside its weights, such as core's bypass LoRAs and other packs' motion modules."""

import comfy.sd
import mini
import pytest
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP
from conftest import newest_only
from fitting import CFG, lora_pairs, prompts, with_lora
from running import guider_of, lora, reference_of, run


def bypassed(model, seed):
    """With a LoRA of core's bypass loaders."""
    return comfy.sd.load_bypass_lora_for_models(model, None, lora(model, seed), 1.0, 0.0)[0]


def refused(nodes, preferred, dispreferred):
    with pytest.raises(ValueError, match="differ in more than LoRAs: `bypass_lora`") as error:
        nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)
    assert "\n" not in str(error.value)


@newest_only
def test_two_injected_loras_are_not_taken_for_one(nodes, twins):
    base = twins("sd15")[0]
    refused(nodes, bypassed(base, 51), bypassed(base, 52))
    refused(nodes, bypassed(with_lora(base, 41), 51), bypassed(with_lora(base, 42), 52))


@newest_only
def test_one_injected_lora_below_both(nodes, twins):
    """As the same two models on weights of their own."""
    first, second = (bypassed(model, 51) for model in twins("sd15"))
    preferred, shared, separate = lora_pairs((first, second))
    latent = mini.latent("sd15")

    def sampled(dispreferred):
        joined = nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]
        return run(guider_of(joined, *prompts(), CFG), latent)

    expected = sampled(separate)
    assert mini.relative_error(sampled(shared), expected) < 1e-4
    assert mini.relative_error(run(guider_of(preferred, *prompts(), CFG), latent), expected) > 1e-3


@newest_only
def test_an_injected_lora_after_the_join_is_on_both(nodes, pairs):
    """By the formula of the two members, each with it; in the second run too, with the first still in the network."""
    conds, latent = prompts(), mini.latent("sd15")
    expected = run(reference_of(*(bypassed(model, 51) for model in pairs("sd15")), *conds, CFG), latent)
    joined = bypassed(nodes["CHATSApply"](*pairs("sd15"), 0.0, 1.0)[0], 51)
    for model in (joined, joined, joined.clone()):
        assert mini.relative_error(run(guider_of(model, *conds, CFG), latent), expected) < 1e-5
    plain = nodes["CHATSApply"](*pairs("sd15"), 0.0, 1.0)[0]
    assert mini.relative_error(run(guider_of(plain, *conds, CFG), latent), expected) > 1e-3


class Doubling(torch.nn.Module):
    """Stands for a motion module: it is put between two others, which then have other names."""

    def forward(self, x, *args, **kwargs):
        return x * 2


def between(patcher):
    patcher.model.diffusion_model.output_blocks[1].insert(0, Doubling())


def out_again(patcher):
    block = patcher.model.diffusion_model.output_blocks[1]
    for place in [place for place, module in enumerate(block) if isinstance(module, Doubling)]:
        block.pop(place)


def doubled(model):
    patched = model.clone()
    patched.set_injections("doubling", [PatcherInjection(inject=between, eject=out_again)])
    patched.set_model_forward_timestep_embed_patch((Doubling, lambda layer, x, *args: layer(x)))
    return patched


@pytest.mark.parametrize("weights", ["two models", "two LoRAs"])
def test_a_module_that_is_put_between_others(weights, nodes, pairs, twins):
    conds, latent = prompts(), mini.latent("sd15")
    preferred, dispreferred = pairs("sd15")
    own = dispreferred
    if weights == "two LoRAs":
        preferred, dispreferred, own = lora_pairs(twins("sd15"))
    expected = run(reference_of(doubled(preferred), doubled(own), *conds, CFG), latent)
    joined = doubled(nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0])
    for _ in range(2):
        assert mini.relative_error(run(guider_of(joined, *conds, CFG), latent), expected) < 1e-4
    plain = nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]
    assert mini.relative_error(run(guider_of(plain, *conds, CFG), latent), expected) > 1e-3


@pytest.mark.parametrize("side", [0, 1])
def test_what_needs_a_run_of_its_model_is_refused_on_one_of_two(side, nodes, pairs):
    models = list(pairs("sd15"))
    models[side] = doubled(models[side])
    models[side].add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "doubling", lambda executor, *args: executor(*args))
    name = ("preferred", "dispreferred")[side]
    with pytest.raises(ValueError, match=f"`doubling` is on `{name}`.*put that node after CHATS Apply") as error:
        nodes["CHATSApply"](*models, 0.0, 1.0)
    assert "\n" not in str(error.value)
