"""With equal weights on both sides (each its own copy) and the null prompt as negative, CHATS is stock CFG: to 1e-5,
with all of ComfyUI's ways to shape the conditioning and the guidance, whether put on before or after the two are
joined."""

import functools

import comfy.hooks
import comfy.sd
import mini
import nodes as comfy_nodes
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from conftest import newest
from running import ResidualControl, guider_of, lora, predictions, result, run, schedule

CFG = 6.0


@pytest.fixture(scope="module")
def plain(twins):
    """What stock CFG makes of two plain prompts, once for each of its settings."""

    @functools.cache
    def plain(kind, cfg, **options):
        return run(
            guider_of(twins(kind)[0], mini.conditioning(kind, 3), mini.conditioning(kind, 4), cfg),
            mini.latent(kind),
            **options,
        )

    return plain


@pytest.fixture
def assert_stock(twins, nodes, plain):
    """Samples ``positive`` and ``negative`` with the twins and with the first of them alone; ``patch`` goes on both
    MODELs."""

    def assert_stock(positive, negative, kind="sd15", patch=lambda model: model, before=False, cfg=CFG, **options):
        first, second = twins(kind)
        if before:
            paired = nodes["CHATSApply"](patch(first), patch(second), 0.0, 1.0)[0]
        else:
            paired = patch(nodes["CHATSApply"](first, second, 0.0, 1.0)[0])
        latent = mini.latent(kind)
        actual = run(guider_of(paired, positive, negative, cfg), latent, **options)
        expected = run(guider_of(patch(first), positive, negative, cfg), latent, **options)
        assert mini.relative_error(actual, expected) < 1e-5
        return mini.relative_error(expected, plain(kind, cfg, **options))

    return assert_stock


def prompts(kind="sd15", **options):
    return mini.conditioning(kind, 3, **options), mini.conditioning(kind, 4)


@pytest.mark.parametrize("kind", ["sd15", "sd3", *newest("sd15_v")])
def test_alpha_zero_is_cfg(kind, assert_stock, nodes):
    positive, null = prompts(kind)
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.0, "proxy")[0]
    assert assert_stock(positive, negative, kind) == 0.0


@pytest.mark.parametrize("kind", ["sd3", *newest("sd15")])
def test_exact_form_is_cfg_at_a_larger_scale(kind, twins, nodes):
    """Eq. 16 with equal members is CFG at (1+α)s: with α = 0.5 and s = 4, at s = 6, which is cfg 7."""
    first, second = twins(kind)
    positive, null = prompts(kind)
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.5, "exact")[0]
    paired = nodes["CHATSApply"](first, second, 0.0, 1.0)[0]
    actual = run(guider_of(paired, positive, negative, 5.0), mini.latent(kind))
    expected = run(guider_of(first, positive, null, 7.0), mini.latent(kind))
    assert mini.relative_error(actual, expected) < 1e-5


def test_areas(assert_stock):
    positive = mini.conditioning("sd15", 3, area=(8, 4, 0, 0)) + mini.conditioning("sd15", 5)
    negative = mini.conditioning("sd15", 4) + mini.conditioning("sd15", 6, area=(4, 8, 0, 0), strength=0.5)
    assert assert_stock(positive, negative) > 0.01


def test_percentage_areas(assert_stock):
    positive = result(comfy_nodes.ConditioningSetAreaPercentage, mini.conditioning("sd15", 3), 0.5, 1.0, 0.0, 0.0, 1.0)[
        0
    ]
    assert assert_stock(positive + mini.conditioning("sd15", 5), mini.conditioning("sd15", 4)) > 0.01


@pytest.mark.parametrize("bounds", ["mask bounds", *newest("default")])
def test_masks(bounds, assert_stock):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :40] = 1.0
    masked = result(comfy_nodes.ConditioningSetMask, mini.conditioning("sd15", 3), mask, bounds, 0.9)[0]
    assert assert_stock(masked + mini.conditioning("sd15", 5), mini.conditioning("sd15", 4)) > 0.01


def test_timestep_ranges(assert_stock):
    positive = mini.conditioning("sd15", 3, start_percent=0.0, end_percent=0.5) + mini.conditioning(
        "sd15", 5, start_percent=0.5
    )
    assert assert_stock(positive, mini.conditioning("sd15", 4), steps=3) > 1e-4


def test_controlnet_on_the_positive(assert_stock):
    positive = result(comfy_nodes.ControlNetApply, *prompts()[:1], ResidualControl(1), torch.zeros(1, 8, 8, 3), 0.8)[0]
    assert positive[0][1]["control_apply_to_uncond"]
    assert assert_stock(positive, mini.conditioning("sd15", 4)) > 0.01


def test_controlnet_on_both(assert_stock):
    control = ResidualControl(1, until=0.6)
    positive, negative = result(
        comfy_nodes.ControlNetApplyAdvanced, *prompts(), control, torch.zeros(1, 8, 8, 3), 0.8, 0.0, 1.0
    )
    assert assert_stock(positive, negative, steps=3) > 0.01


def hooks(model, seed, keyframes=()):
    group = comfy.hooks.create_hook_lora(lora(model, seed, within="middle_block"), 1.0, 1.0)
    schedule = comfy.hooks.HookKeyframeGroup()
    for strength, start in keyframes:
        schedule.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    if keyframes:
        group.set_keyframes_on_hooks(schedule)
    return group


@pytest.mark.parametrize("keyframes", [(), ((1.0, 0.0), (0.3, 0.4), (0.0, 0.7))], ids=["constant", "keyframes"])
@pytest.mark.parametrize("sides", ["both", *newest("positive", "negative")])
def test_weight_hooks(sides, keyframes, assert_stock, twins):
    group = hooks(twins("sd15")[0], 31, keyframes)
    positive, negative = prompts()
    if sides != "negative":
        positive = comfy.hooks.set_hooks_for_conditioning(positive, group)
    if sides != "positive":
        negative = comfy.hooks.set_hooks_for_conditioning(negative, group)
    assert assert_stock(positive, negative, steps=4) > 0.01


MODEL_NODES = {
    "PAG": lambda model: result(PerturbedAttentionGuidance, model, 3.0)[0],
    "SAG": lambda model: result(SelfAttentionGuidance, model, 0.8, 2.0)[0],
    "RescaleCFG": lambda model: result(RescaleCFG, model, 0.7)[0],
    "LoRA": lambda model: comfy.sd.load_lora_for_models(model, None, lora(model, 33), 1.0, 0.0)[0],
    "ModelSamplingDiscrete": lambda model: result(ModelSamplingDiscrete, model, "v_prediction", False)[0],
    "context windows": lambda model: result(
        ContextWindowsManualNode,
        model,
        context_length=4,
        context_overlap=2,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=2,
        **(
            {"freenoise": False}
            if "freenoise" in [i.id for i in ContextWindowsManualNode.define_schema().inputs]
            else {}
        ),
    )[0],
}


# SAG before the join is two SAGs that do not know of each other: the one that guides never sees the negative pass.
BEFORE = newest(*((node, True) for node in MODEL_NODES if node != "SAG"))


@pytest.mark.parametrize(("node", "before"), [*((node, False) for node in MODEL_NODES), *BEFORE])
def test_model_nodes(node, before, assert_stock):
    assert assert_stock(*prompts(), patch=MODEL_NODES[node], before=before) > 1e-3


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_attention_patches_reach_both_models_once(before, twins, nodes):
    """A patch put on both, or after the join, is called once per attention layer and pass, on each model."""
    calls = []

    def patch(model):
        patched = model.clone()
        patched.set_model_attn2_patch(
            lambda q, k, v, options: calls.append(tuple(options["cond_or_uncond"])) or (q, k, v)
        )
        return patched

    first, second = twins("sd15")
    join = nodes["CHATSApply"]
    paired = join(patch(first), patch(second), 0.0, 1.0)[0] if before else patch(join(first, second, 0.0, 1.0)[0])
    run(guider_of(paired, *prompts(), CFG), mini.latent("sd15"), steps=2)
    layers = len(calls) // 4
    assert sorted(calls) == [(0,)] * 2 * layers + [(1,)] * 2 * layers
    assert layers > 3


def test_wrappers_added_later_run_once_around_both_models(twins, nodes):
    """As in stock CFG, where one call holds both lists (caching nodes count on it)."""
    from comfy.patcher_extension import WrappersMP

    seen = []
    paired = nodes["CHATSApply"](*twins("sd15"), 0.0, 1.0)[0].clone()

    def wrapper(executor, model, conds, *args, **kwargs):
        seen.append([bool(entries) for entries in conds])
        return executor(model, conds, *args, **kwargs)

    paired.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "later", wrapper)
    run(guider_of(paired, *prompts(), CFG), mini.latent("sd15"), steps=3)
    assert seen == [[True, True]] * 3


def test_each_model_keeps_its_own_patches(pairs, nodes):
    """What was put on one before the join acts on that one alone."""
    preferred, dispreferred = pairs("sd15")
    positive, negative = prompts()
    counts = {"preferred": 0, "dispreferred": 0}

    def counted(model, name):
        patched = model.clone()

        def wrap(apply_model, args):
            counts[name] += 1
            return apply_model(args["input"], args["timestep"], **args["c"]) * (0.9 if name == "dispreferred" else 1.0)

        patched.set_model_unet_function_wrapper(wrap)
        return patched

    paired = nodes["CHATSApply"](counted(preferred, "preferred"), counted(dispreferred, "dispreferred"), 0.0, 1.0)[
        0
    ].clone()
    actual = run(guider_of(paired, positive, negative, CFG), mini.latent("sd15"), steps=1)
    assert counts == {"preferred": 1, "dispreferred": 1}

    sigmas = schedule(preferred, 1)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)) * (1 + sigmas[0] ** 2) ** 0.5
    conds = {"positive": positive, "negative": negative}
    chosen = predictions(preferred, conds, x, sigmas[0])["positive"]
    rejected = 0.9 * predictions(dispreferred, conds, x, sigmas[0])["negative"]
    expected = preferred.model.process_latent_out(rejected + CFG * (chosen - rejected))
    assert mini.relative_error(actual, expected) < 1e-5
