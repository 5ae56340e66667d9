"""Patch, guider and KSampler against the formula, computed from two single-model calls, and against each other."""

import itertools

import comfy.sample
import comfy.sd
import mini
import nodes as comfy_nodes
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DualCFGGuider, SamplerCustom
from comfy_extras.nodes_perpneg import Guider_PerpNeg, perp_neg
from conftest import newest, newest_only
from running import ResidualControl, guider_of, lora, predictions, reference_of, result, run, schedule

CFG = 6.0
KINDS = ["sd15", "sd3", *newest("sd15_v")]


@pytest.fixture
def join(nodes):
    """CHATSApply with the whole interval."""
    return lambda preferred, dispreferred, start=0.0, end=1.0: nodes["CHATSApply"](preferred, dispreferred, start, end)[
        0
    ]


def prompts(kind, nodes, form="proxy"):
    positive, null = mini.conditioning(kind, 3), mini.conditioning(kind, 4)
    return positive, nodes["CHATSProxyPrompt"](positive, null, 0.5, form)[0]


def assert_formula(join, pair, positive, negative, latent, **options):
    """The pair as one patched model against the reference, under the same sampler."""
    actual = run(guider_of(join(*pair), positive, negative, CFG), latent, **options)
    expected = run(reference_of(*pair, positive, negative, CFG), latent, **options)
    assert mini.relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [4, *newest(1)])
def test_formula(kind, batch, pairs, join, nodes):
    assert_formula(join, pairs(kind), *prompts(kind, nodes), mini.latent(kind, batch))


@newest_only
def test_formula_in_sdxl(pairs, join, nodes):
    assert_formula(join, pairs("sdxl_v"), *prompts("sdxl_v", nodes), mini.latent("sdxl_v"))


@newest_only
@pytest.mark.parametrize("kind", KINDS)
def test_the_pair_is_not_the_preferred_alone(kind, pairs, join, nodes):
    """The formula would also hold for a patch that does nothing, were the two models alike; they are not."""
    positive, negative = prompts(kind, nodes)
    paired = run(guider_of(join(*pairs(kind)), positive, negative, CFG), mini.latent(kind))
    stock = run(guider_of(pairs(kind)[0], positive, negative, CFG), mini.latent(kind))
    assert mini.relative_error(paired, stock) > 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["proxy", *newest("exact")])
def test_patch_guider_and_ksampler_are_bitwise_equal(kind, form, pairs, join, nodes):
    preferred, dispreferred = pairs(kind)
    positive, null = mini.conditioning(kind, 3), mini.conditioning(kind, 4)
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.5, form)[0]
    latent = mini.latent(kind, 2)
    patched = result(
        comfy_nodes.KSampler, join(preferred, dispreferred), 7, 2, CFG, "euler", "normal", positive, negative, latent
    )[0]
    one_box = nodes["CHATSKSampler"](
        preferred, dispreferred, positive, null, latent, 7, 2, CFG, "euler", "normal", 1.0, 0.5, form, 0.0, 1.0
    )[0]
    guider = nodes["CHATSGuider"](preferred, dispreferred, positive, negative, CFG, 0.0, 1.0)[0]
    noise = comfy.sample.prepare_noise(latent["samples"], 7)
    guided = guider.sample(
        noise, latent["samples"], comfy.samplers.sampler_object("euler"), schedule(preferred), disable_pbar=True, seed=7
    )
    assert torch.equal(patched["samples"], one_box["samples"])
    assert torch.equal(patched["samples"], guided)


def test_exact_form_is_equation_16(pairs, join, nodes):
    kind = "sd15"
    preferred, dispreferred = pairs(kind)
    positive, null = mini.conditioning(kind, 3), mini.conditioning(kind, 4)
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.7, "exact")[0]
    actual = run(guider_of(join(preferred, dispreferred), positive, negative, CFG), mini.latent(kind), steps=1)

    sigmas = schedule(preferred, 1)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)) * (1 + sigmas[0] ** 2) ** 0.5
    chosen = predictions(preferred, {"positive": positive, "negative": null}, noise, sigmas[0])["positive"]
    rejected = predictions(dispreferred, {"positive": positive, "negative": null}, noise, sigmas[0])
    s = CFG - 1
    expected = (1 + s) * chosen + 0.7 * s * rejected["positive"] - 1.7 * s * rejected["negative"]
    # One Euler step to sigma 0 ends in the denoised prediction itself.
    assert mini.relative_error(actual, preferred.model.process_latent_out(expected)) < 1e-5


@pytest.mark.parametrize("kind", ["sd15", *newest("sd3")])
def test_denoise_mask(kind, pairs, join, nodes):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1.0
    assert_formula(join, pairs(kind), *prompts(kind, nodes), mini.latent(kind, 2, seed=9), mask=mask)


@pytest.mark.parametrize("form", ["exact", *newest("proxy")])
def test_several_positive_entries_with_areas(form, pairs, join, nodes):
    left = mini.conditioning("sd15", 3, area=(8, 4, 0, 0), strength=0.8)
    right = mini.conditioning("sd15", 5, area=(4, 4, 4, 4))
    whole = mini.conditioning("sd15", 6)
    null = mini.conditioning("sd15", 4)
    positive = whole + left + right
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.5, form)[0]
    assert_formula(join, pairs("sd15"), positive, negative, mini.latent("sd15"))


def test_areas_that_the_negative_lacks_are_completed_by_the_dispreferred_model(pairs, join):
    positive = mini.conditioning("sd15", 6) + mini.conditioning("sd15", 3, area=(8, 4, 0, 0))
    assert_formula(join, pairs("sd15"), positive, mini.conditioning("sd15", 4), mini.latent("sd15"))


def test_timestep_ranges(pairs, join, nodes):
    early = mini.conditioning("sd15", 3, start_percent=0.0, end_percent=0.4)
    late = mini.conditioning("sd15", 5, start_percent=0.4, end_percent=1.0)
    negative = nodes["CHATSProxyPrompt"](early + late, mini.conditioning("sd15", 4), 0.5, "proxy")[0]
    assert_formula(join, pairs("sd15"), early + late, negative, mini.latent("sd15"), steps=3)


def test_control_object(pairs, join, nodes):
    control, hint = ResidualControl(1, until=0.5), torch.zeros(1, 8, 8, 3)
    positive = result(comfy_nodes.ControlNetApply, mini.conditioning("sd15", 3), control, hint, 0.7)[0]
    negative = nodes["CHATSProxyPrompt"](positive, mini.conditioning("sd15", 4), 0.5, "proxy")[0]
    assert negative[0][1]["control"] is positive[0][1]["control"]
    assert_formula(join, pairs("sd15"), positive, negative, mini.latent("sd15"), steps=3)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", *newest("euler_ancestral", "uni_pc", "heun", "ddim", "lcm")])
def test_samplers(sampler, pairs, join, nodes):
    assert_formula(join, pairs("sd15"), *prompts("sd15", nodes), mini.latent("sd15"), sampler=sampler)


@pytest.mark.parametrize("cfg", [1.0, *newest(CFG)])
def test_cfg_pp_samplers_see_the_dispreferred_prediction(cfg, pairs, join, nodes):
    """These ask for the negative even at cfg 1, after the models were loaded: the dispreferred is then loaded late."""
    preferred, dispreferred = pairs("sd15")
    positive, negative = prompts("sd15", nodes)
    actual = run(
        guider_of(join(preferred, dispreferred), positive, negative, cfg),
        mini.latent("sd15"),
        sampler="euler_cfg_pp",
        steps=2,
    )

    # Euler CFG++: x ← denoised + (x − uncond)/σ · σ', from the two predictions at each level.
    sigmas = schedule(preferred, 2)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)) * (1 + sigmas[0] ** 2) ** 0.5
    for sigma, sigma_next in itertools.pairwise(sigmas):
        conds = {"positive": positive, "negative": negative}
        chosen = predictions(preferred, conds, x, sigma)["positive"]
        rejected = predictions(dispreferred, conds, x, sigma)["negative"]
        x = rejected + cfg * (chosen - rejected) + (x - rejected) / sigma * sigma_next
    assert mini.relative_error(actual, preferred.model.process_latent_out(x)) < 1e-5


def test_ksampler_advanced_with_start_and_end_steps(pairs, join, nodes):
    preferred, dispreferred = pairs("sd15")
    positive, negative = prompts("sd15", nodes)
    latent = mini.latent("sd15", seed=9)
    model = join(preferred, dispreferred)
    args = ("enable", 7, 6, CFG, "euler", "normal", positive, negative, latent, 2, 5, "enable")
    actual = result(comfy_nodes.KSamplerAdvanced, model, *args)[0]["samples"]
    noise = comfy.sample.prepare_noise(latent["samples"], 7)
    reference = reference_of(preferred, dispreferred, positive, negative, CFG)
    sampler = comfy.samplers.sampler_object("euler")
    expected = reference.sample(
        noise, latent["samples"], sampler, schedule(preferred, 6)[2:6], disable_pbar=True, seed=7
    )
    assert mini.relative_error(actual, expected) < 1e-5


def test_sampler_custom(pairs, join, nodes):
    preferred, dispreferred = pairs("sd15")
    positive, negative = prompts("sd15", nodes)
    sigmas, sampler = schedule(preferred), comfy.samplers.sampler_object("euler")
    args = (True, 7, CFG, positive, negative, sampler, sigmas, mini.latent("sd15"))
    actual = result(SamplerCustom, join(preferred, dispreferred), *args)[0]["samples"]
    expected = run(reference_of(preferred, dispreferred, positive, negative, CFG), mini.latent("sd15"), seed=7)
    assert mini.relative_error(actual, expected) < 1e-5


@newest_only
@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_a_lora_on_each_side(kind, pairs, join, nodes):
    preferred, dispreferred = pairs(kind)
    adapted = [
        comfy.sd.load_lora_for_models(model, None, lora(model, seed), 1.0, 0.0)[0]
        for model, seed in ((preferred, 21), (dispreferred, 22))
    ]
    assert len(adapted[0].patches) > 3
    assert_formula(join, adapted, *prompts(kind, nodes), mini.latent(kind))


@pytest.mark.parametrize("kind", ["sd15", *newest("sd3")])
def test_a_lora_after_the_patch_acts_on_both(kind, pairs, join, nodes):
    preferred, dispreferred = pairs(kind)
    positive, negative = prompts(kind, nodes)
    adapter = lora(preferred, 21)
    paired = comfy.sd.load_lora_for_models(join(preferred, dispreferred), None, adapter, 1.0, 0.0)[0]
    actual = run(guider_of(paired, positive, negative, CFG), mini.latent(kind))
    adapted = [comfy.sd.load_lora_for_models(model, None, adapter, 1.0, 0.0)[0] for model in (preferred, dispreferred)]
    expected = run(reference_of(*adapted, positive, negative, CFG), mini.latent(kind))
    assert mini.relative_error(actual, expected) < 1e-5
    again = run(guider_of(paired, positive, negative, CFG), mini.latent(kind))
    assert torch.equal(actual, again)


def test_dual_cfg_guider(pairs, join, nodes):
    preferred, dispreferred = pairs("sd15")
    positive, negative = prompts("sd15", nodes)
    middle = mini.conditioning("sd15", 8)
    guider = result(DualCFGGuider, join(preferred, dispreferred), positive, middle, negative, 4.0, 6.0, "regular")[0]
    actual = run(guider, mini.latent("sd15"))

    class Reference(type(reference_of(preferred, dispreferred, positive, negative, CFG))):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            chosen = predictions(preferred, {"positive": positive, "negative": middle}, x, timestep[0].clone())
            rejected = predictions(dispreferred, self.given, x, timestep[0].clone())["negative"]
            return rejected + 6.0 * (chosen["negative"] - rejected) + 4.0 * (chosen["positive"] - chosen["negative"])

    reference = Reference(preferred, dispreferred)
    reference.set_conds(positive, negative)
    assert mini.relative_error(actual, run(reference, mini.latent("sd15"))) < 1e-5


def test_perp_neg_guider(pairs, join, nodes):
    preferred, dispreferred = pairs("sd15")
    positive, negative = prompts("sd15", nodes)
    empty = mini.conditioning("sd15", 8)
    guider = Guider_PerpNeg(join(preferred, dispreferred))
    guider.set_conds(positive, negative, empty)
    guider.set_cfg(CFG, 0.8)
    actual = run(guider, mini.latent("sd15"))

    class Reference(type(reference_of(preferred, dispreferred, positive, negative, CFG))):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            chosen = predictions(preferred, {"positive": positive, "negative": empty}, x, timestep[0].clone())
            rejected = predictions(dispreferred, self.given, x, timestep[0].clone())["negative"]
            return perp_neg(x, chosen["positive"], rejected, chosen["negative"], 0.8, CFG)

    reference = Reference(preferred, dispreferred)
    reference.set_conds(positive, negative)
    assert mini.relative_error(actual, run(reference, mini.latent("sd15"))) < 1e-5


def test_basic_guider_uses_the_preferred_model_and_says_so(pairs, join, caplog):
    from comfy_extras.nodes_custom_sampler import BasicGuider

    preferred, dispreferred = pairs("sd15")
    positive = mini.conditioning("sd15", 3)
    paired = run(result(BasicGuider, join(preferred, dispreferred), positive)[0], mini.latent("sd15"))
    plain = run(result(BasicGuider, preferred, positive)[0], mini.latent("sd15"))
    assert torch.equal(paired, plain)
    assert "has no negative" in caplog.text
