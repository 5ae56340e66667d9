"""Pairs on one set of weights (LoRAs on one base) against the same pairs as two separate models: to 1e-4 relative in
fp32."""

import comfy.lora
import comfy.model_management
import comfy.sd
import mini
import mini_architectures
import nodes as comfy_nodes
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from conftest import ends_only, newest, newest_only, pack_module
from running import guider_of, lora, result, run

pytestmark = ends_only

CFG = 6.0


def patched(model, state, strength=1.0):
    """A model with a LoRA, by the function behind core's LoRA loader nodes; every key must map."""
    made = comfy.sd.load_lora_for_models(model, None, state, strength, 0.0)[0]
    assert len(made.patches) > len(model.patches) or made.patches_uuid != model.patches_uuid
    return made


def whole_lora(model, seed, rank=2, scale=0.3):
    """A LoRA on every Linear and convolution, and differences of every bias and norm, by native keys."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, weight in model.model.state_dict().items():
        if not key.startswith("diffusion_model."):
            continue
        name, _, part = key.rpartition(".")
        if weight.ndim >= 2 and part == "weight":
            fan_in = weight[0].numel()
            state[f"{name}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator) / fan_in**0.5
            state[f"{name}.lora_up.weight"] = (
                torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * scale
            )
            state[f"{name}.alpha"] = torch.tensor(float(rank))
        elif weight.ndim == 1 and part in ("weight", "bias"):
            state[f"{name}.{'diff' if part == 'weight' else 'diff_b'}"] = (
                torch.randn(weight.shape, generator=generator) * 0.1
            )
    return state


@pytest.fixture
def members(twins):
    """(preferred, dispreferred on the same weights, the same dispreferred on weights of its own)."""

    def members(kind, make=lora, strengths=(0.8, 1.2)):
        first, second = twins(kind)
        preferred = patched(first, make(first, 41), strengths[0])
        state = make(first, 42, rank=3)
        return preferred, patched(first, state, strengths[1]), patched(second, state, strengths[1])

    return members


@pytest.fixture
def join(nodes):
    return lambda preferred, dispreferred, start=0.0, end=1.0: nodes["CHATSApply"](preferred, dispreferred, start, end)[
        0
    ]


def prompts(kind, nodes, form="proxy"):
    positive = mini.conditioning(kind, 3)
    return positive, nodes["CHATSProxyPrompt"](positive, mini.conditioning(kind, 4), 0.5, form)[0]


@pytest.fixture
def assert_separate(members, join, nodes):
    """Samples with the shared pair and with the separate one; how far the shared pair is from the preferred alone."""

    def assert_separate(
        kind="sd15",
        batch=1,
        conds=None,
        make=lora,
        patch=lambda model: model,
        cfg=CFG,
        form="proxy",
        interval=(0.0, 1.0),
        **options,
    ):
        preferred, shared, separate = members(kind, make)
        positive, negative = conds or prompts(kind, nodes, form)
        latent = mini.latent(kind, batch, seed=9 if "mask" in options else None)
        actual = run(guider_of(patch(join(preferred, shared, *interval)), positive, negative, cfg), latent, **options)
        expected = run(
            guider_of(patch(join(preferred, separate, *interval)), positive, negative, cfg), latent, **options
        )
        assert mini.relative_error(actual, expected) < 1e-4
        alone = run(guider_of(patch(preferred), positive, negative, cfg), latent, **options)
        return mini.relative_error(expected, alone)

    return assert_separate


@pytest.mark.parametrize(("kind", "batch"), [("sd15", 4), ("sd3", 1), *newest(("sd15", 1), ("sd3", 4), ("sd15_v", 4))])
def test_as_two_models(kind, batch, assert_separate):
    assert assert_separate(kind, batch) > 0.05


@newest_only
@pytest.mark.parametrize("kind", ["sd15", "sd3", "sd3_5"])
def test_every_layer_its_biases_and_norms(kind, assert_separate):
    assert assert_separate(kind, 2, make=whole_lora) > 0.05


@pytest.mark.parametrize("kind", ["sd15", *newest("sd3")])
def test_exact_form(kind, assert_separate):
    assert_separate(kind, 2, form="exact")


def test_one_pass_serves_both_branches(members, join, nodes, monkeypatch):
    """As in stock CFG: one call of the network a step, with the rows of both."""
    preferred, shared, _ = members("sd15")
    batches = []
    network = preferred.model.diffusion_model
    monkeypatch.setattr(
        network,
        "forward",
        lambda x, *args, f=network.forward, **kwargs: batches.append(x.shape[0]) or f(x, *args, **kwargs),
    )
    run(guider_of(join(preferred, shared), *prompts("sd15", nodes), CFG), mini.latent("sd15", 2), steps=3)
    assert batches == [4, 4, 4]


@pytest.mark.parametrize("form", ["exact", *newest("proxy")])
def test_branches_that_comfyui_runs_apart(form, assert_separate, monkeypatch):
    """Where memory is short each entry gets a pass of its own."""
    sizes = []
    monkeypatch.setattr(
        "comfy.model_base.BaseModel.memory_required",
        lambda self, shape, *a, **k: sizes.append(shape[0]) or (0 if shape[0] <= 2 else 1e30),
    )
    assert_separate(batch=2, form=form)
    assert max(sizes) > 2  # it did ask for a larger batch, and was refused


def test_several_entries_with_areas(assert_separate, nodes):
    positive = mini.conditioning("sd15", 3, area=(8, 4, 0, 0), strength=0.8) + mini.conditioning("sd15", 6)
    negative = nodes["CHATSProxyPrompt"](positive, mini.conditioning("sd15", 4), 0.5, "proxy")[0]
    assert_separate(conds=(positive, negative))


@newest_only
def test_areas_that_are_completed(assert_separate):
    positive = mini.conditioning("sd15", 6) + mini.conditioning("sd15", 3, area=(8, 4, 0, 0))
    assert_separate(conds=(positive, mini.conditioning("sd15", 4)))


def test_prompts_of_different_lengths(assert_separate):
    assert_separate(conds=(mini.conditioning("sd15", 3, tokens=154), mini.conditioning("sd15", 4)))


def test_denoise_mask(assert_separate):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1.0
    assert_separate(batch=2, mask=mask)


def test_interval(assert_separate):
    assert_separate(interval=(0.2, 0.7), steps=4)


@newest_only
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "uni_pc", "euler_cfg_pp"])
def test_samplers(sampler, assert_separate):
    assert_separate(sampler=sampler, steps=3)


def test_a_lora_after_the_pair_reaches_both(assert_separate, twins):
    state = lora(twins("sd15")[0], 51)
    assert_separate(patch=lambda model: patched(model, state, 0.7))


def test_a_lora_before_the_pair_stays_on_both(twins, join, nodes):
    first, second = twins("sd15")
    style, states = lora(first, 51), [lora(first, 41), lora(first, 42)]
    base, base_too = patched(first, style), patched(second, style)
    preferred, shared, separate = patched(base, states[0]), patched(base, states[1]), patched(base_too, states[1])
    conds, latent = prompts("sd15", nodes), mini.latent("sd15")
    actual = run(guider_of(join(preferred, shared), *conds, CFG), latent)
    assert mini.relative_error(actual, run(guider_of(join(preferred, separate), *conds, CFG), latent)) < 1e-4
    differences = pack_module("nodes.sampling.differences").weight_differences(
        first.model, preferred.patches, shared.patches
    )
    assert {low.rank for low in differences.values()} == {4}  # of the two members; the style cancels


def test_a_merge_after_the_pair_scales_the_difference_too(members, join, nodes, twins):
    """ModelMergeSimple on the pair: W = ½ (base + LoRA) + ½ other, for each member."""
    preferred, shared, separate = members("sd15")
    other = mini_architectures.model("sd15", 5)
    patches = other.get_key_patches("diffusion_model.")

    def merged(model):
        clone = model.clone()
        clone.add_patches(patches, 0.5, 0.5)
        return clone

    conds, latent = prompts("sd15", nodes), mini.latent("sd15")
    actual = run(guider_of(merged(join(preferred, shared)), *conds, CFG), latent)
    expected = run(guider_of(merged(join(preferred, separate)), *conds, CFG), latent)
    assert mini.relative_error(actual, expected) < 1e-4


def test_patches_that_both_sides_have(twins, join, nodes):
    """An attention patch that the base had, or that is put on the pair, acts on the common pass."""
    freeu = (1.3, 1.4, 0.9, 0.2)
    first, second = twins("sd15")
    state = lora(first, 42)
    conds, latent = prompts("sd15", nodes), mini.latent("sd15")
    base, base_too = (result(FreeU_V2, model, *freeu)[0] for model in (first, second))
    before = run(guider_of(join(base, patched(base, state)), *conds, CFG), latent)
    after = run(guider_of(result(FreeU_V2, join(first, patched(first, state)), *freeu)[0], *conds, CFG), latent)
    separate = run(guider_of(join(base, patched(base_too, state)), *conds, CFG), latent)
    assert mini.relative_error(before, separate) < 1e-4
    assert mini.relative_error(after, separate) < 1e-4


def test_dual_cfg(members, join, nodes):
    preferred, shared, separate = members("sd15")
    positive, negative = prompts("sd15", nodes)
    results = []
    for dispreferred in (shared, separate):
        guider = result(
            DualCFGGuider,
            join(preferred, dispreferred),
            positive,
            mini.conditioning("sd15", 6),
            negative,
            4.0,
            3.0,
            "regular",
        )[0]
        results.append(run(guider, mini.latent("sd15")))
    assert mini.relative_error(*results) < 1e-4


def test_patch_guider_and_ksampler_are_bitwise_equal(members, join, nodes):
    preferred, shared, _ = members("sd15")
    positive, null = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    negative = nodes["CHATSProxyPrompt"](positive, null, 0.5, "proxy")[0]
    latent = mini.latent("sd15", 2)
    args = (7, 2, CFG, "euler", "normal")
    outside = result(comfy_nodes.KSampler, join(preferred, shared), *args, positive, negative, latent)[0]
    inside = nodes["CHATSKSampler"](preferred, shared, positive, null, latent, *args, 1.0, 0.5, "proxy", 0.0, 1.0)[0]
    assert torch.equal(outside["samples"], inside["samples"])


def test_at_cfg_1_it_is_the_preferred_alone(members, join, nodes):
    preferred, shared, _ = members("sd15")
    conds, latent = prompts("sd15", nodes), mini.latent("sd15")
    comfy.model_management.unload_all_models()
    paired = run(guider_of(join(preferred, shared), *conds, 1.0), latent)
    assert not loaded_differences()
    assert torch.equal(paired, run(guider_of(preferred, *conds, 1.0), latent))


def test_fused_layers(twins, join, nodes):
    """A LoRA under diffusers' names on SD3: q, k and v are parts of one fused layer."""
    first, second = twins("sd3")
    generator = torch.Generator().manual_seed(3)

    def diffusers_lora():
        state = {}
        for block in range(2):
            for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj"):
                module = f"transformer.transformer_blocks.{block}.attn.{name}"
                state[f"{module}.lora_A.weight"] = torch.randn(2, 128, generator=generator) / 128**0.5
                state[f"{module}.lora_B.weight"] = torch.randn(128, 2, generator=generator)
        return state

    states = diffusers_lora(), diffusers_lora()
    preferred, shared, separate = patched(first, states[0]), patched(first, states[1]), patched(second, states[1])
    assert any(patch[3] is not None for patches in shared.patches.values() for patch in patches)
    conds, latent = prompts("sd3", nodes), mini.latent("sd3", 2)
    actual = run(guider_of(join(preferred, shared), *conds, CFG), latent)
    assert mini.relative_error(actual, run(guider_of(join(preferred, separate), *conds, CFG), latent)) < 1e-4


def test_partly_loaded_weights(assert_separate, monkeypatch):
    """Low VRAM: ComfyUI leaves weights where they are and patches them as they are used."""
    load = ModelPatcher.load
    partly = []

    def load_little(self, device_to=None, lowvram_model_memory=0, *args, **kwargs):
        if hasattr(self.model, "diffusion_model"):
            partly.append(self)
            return load(self, device_to, 64 * 1024, False, False)
        return load(self, device_to, lowvram_model_memory, *args, **kwargs)

    comfy.model_management.unload_all_models()
    monkeypatch.setattr(ModelPatcher, "load", load_little)
    assert_separate(make=whole_lora)
    assert partly
    assert any(patcher.model.model_lowvram for patcher in partly)
    comfy.model_management.unload_all_models()


def half(kind, dtype, seed):
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in mini.weights(kind, seed).items()
    }
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})


@newest_only
@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_bf16_costs_no_more_than_merging_does(kind, join, nodes):
    """Two bf16 models with the LoRAs merged into bf16 weights differ from fp32 by what rounding costs; the shared pair
    is as near."""
    conds, latent = prompts(kind, nodes), mini.latent(kind, 2)
    base, other = mini.model(kind, 1), mini.model(kind, 1)
    state = [lora(base, seed) for seed in (41, 42)]
    exact = run(guider_of(join(patched(base, state[0]), patched(other, state[1])), *conds, CFG), latent)
    first, second = half(kind, torch.bfloat16, 1), half(kind, torch.bfloat16, 1)
    merged = run(guider_of(join(patched(first, state[0]), patched(second, state[1])), *conds, CFG), latent)
    shared = run(guider_of(join(patched(first, state[0]), patched(first, state[1])), *conds, CFG), latent)
    assert first.model_dtype() == torch.bfloat16
    errors = [mini.relative_error(value, exact) for value in (shared, merged)]
    print(f"{kind} bf16 against fp32: shared {errors[0]:.4f}, merged {errors[1]:.4f}")
    assert errors[0] < 1.5 * errors[1]


def loaded_differences():
    """The differences that ComfyUI counts among its loaded models."""
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    return [patcher for patcher in loaded if type(patcher.model).__name__ == "Difference"]


def stopping_callback(kind):
    def callback(step, *_):
        if step == 0:
            raise RuntimeError("stopped") if kind == "error" else comfy.model_management.InterruptProcessingException()

    return callback


@pytest.mark.parametrize("end", ["success", "error", *newest("interrupt")])
def test_nothing_stays_behind(end, members, join, nodes, twins):
    first = twins("sd15")[0]
    replaced = [module for module in first.model.modules() if "forward" in vars(module)]
    preferred, shared, _ = members("sd15", whole_lora)
    conds, latent = prompts("sd15", nodes), mini.latent("sd15")
    before = [run(guider_of(model, *conds, CFG), latent) for model in (first, preferred)]
    if end == "success":
        run(guider_of(join(preferred, shared), *conds, CFG), latent)
    else:
        with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
            run(guider_of(join(preferred, shared), *conds, CFG), latent, callback=stopping_callback(end))
    hooks = [
        hook
        for module in first.model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert not hooks
    assert [module for module in first.model.modules() if "forward" in vars(module)] == replaced
    after = [run(guider_of(model, *conds, CFG), latent) for model in (first, preferred)]
    assert all(map(torch.equal, before, after))


def test_the_difference_is_loaded_and_counted(members, join, nodes):
    preferred, shared, _ = members("sd15")
    comfy.model_management.unload_all_models()
    run(guider_of(join(preferred, shared), *prompts("sd15", nodes), CFG), mini.latent("sd15"))
    (difference,) = loaded_differences()
    parameters = list(difference.model.parameters())
    assert difference.model_size() == sum(parameter.nbytes for parameter in parameters)
    assert {parameter.dtype for parameter in parameters} == {preferred.model_dtype()}
    assert len(difference.model.layers) == len(preferred.patches)


class TestRefused:
    """What cannot share a pass is refused when the two are joined, in a sentence with the way out."""

    def refused(self, join, preferred, dispreferred, words):
        with pytest.raises(ValueError, match=words) as error:
            join(preferred, dispreferred)
        assert "load the base twice" in str(error.value)
        assert "\n" not in str(error.value)

    def test_dora(self, twins, join):
        first = twins("sd15")[0]
        state = lora(first, 41)
        for key in [key for key in state if key.endswith(".lora_up.weight")]:
            state[key.replace(".lora_up.weight", ".dora_scale")] = torch.ones(1, state[key].shape[0])
        self.refused(join, first, patched(first, state), "DoRA")

    def test_lokr(self, twins, join):
        first = twins("sd15")[0]
        name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
        state = {f"{name}.lokr_w1": torch.randn(2, 2), f"{name}.lokr_w2": torch.randn(32, 32)}
        self.refused(join, first, patched(first, state), "adapter of the kind `lokr`")

    def test_a_full_difference(self, twins, join):
        first = twins("sd15")[0]
        name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
        self.refused(join, first, patched(first, {f"{name}.diff": torch.randn(64, 64)}), "a full difference")

    def test_a_merge(self, twins, join):
        first = twins("sd15")[0]
        merged = first.clone()
        merged.add_patches(mini_architectures.model("sd15", 5).get_key_patches("diffusion_model."), 0.5, 0.5)
        self.refused(join, first, merged, "merged at different strengths")

    def test_another_attention_patch(self, twins, join):
        first = twins("sd15")[0]
        self.refused(
            join, first, result(FreeU_V2, patched(first, lora(first, 41)), 1.3, 1.4, 0.9, 0.2)[0], "output_block_patch"
        )

    def test_another_noise_schedule(self, twins, join):
        first = twins("sd15")[0]
        zero_snr = result(ModelSamplingDiscrete, patched(first, lora(first, 41)), "eps", True)[0]
        self.refused(join, first, zero_snr, "model_sampling")

    def test_the_same_noise_schedule_set_on_each_is_the_same(self, twins, join, nodes):
        first = twins("sd15")[0]
        sides = [
            result(ModelSamplingDiscrete, model, "eps", True)[0] for model in (first, patched(first, lora(first, 41)))
        ]
        run(guider_of(join(*sides), *prompts("sd15", nodes), CFG), mini.latent("sd15"))


def test_a_node_that_regroups_the_batch(assert_separate, monkeypatch):
    """A model function wrapper that runs the branches one by one, under the options of both: from its first pass on,
    the branches run apart."""
    calls = []

    def one_by_one(apply_model, args):
        parts = args["input"].split(1), args["timestep"].split(1), args["c"]["c_crossattn"].split(1)
        calls.append(len(args["input"]))
        return torch.cat([apply_model(x, t, **{**args["c"], "c_crossattn": c}) for x, t, c in zip(*parts, strict=True)])

    def patch(model):
        patched = model.clone()
        patched.set_model_unet_function_wrapper(one_by_one)
        return patched

    assert assert_separate(patch=patch, steps=3) > 0.05
    assert calls[:7] == [2, *[1] * 6]


@newest_only
def test_a_layer_that_is_run_outside_of_the_pass_is_named(members, join, nodes):
    """A node that computes a part of the network itself, where nothing says for which branch."""
    preferred, shared, _ = members("sd15")
    model = join(preferred, shared)
    layer = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q

    def beside(apply_model, args):
        layer(torch.zeros(1, 4, layer.in_features))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(beside)
    with pytest.raises(RuntimeError, match=r"attn1\.to_q` was run outside of the model's own pass.*remove that node"):
        run(guider_of(model, *prompts("sd15", nodes), CFG), mini.latent("sd15"), steps=1)


@newest_only
def test_a_node_that_puts_back_a_layers_forward(members, join, nodes):
    """As bypass adapters do when ComfyUI takes them off and on in the middle of a run."""
    preferred, shared, _ = members("sd15")
    pair, conds, latent = join(preferred, shared), prompts("sd15", nodes), mini.latent("sd15")
    layers = [preferred.model.get_submodule(key.removesuffix(".weight")) for key in preferred.patches]

    def put_back(*_):
        for layer in layers:
            assert vars(layer).pop("forward")

    expected = run(guider_of(pair, *conds, CFG), latent)
    assert torch.equal(run(guider_of(pair, *conds, CFG), latent, callback=put_back), expected)


def test_layers_that_are_never_called_are_named(members, join, nodes, caplog, monkeypatch):
    preferred, shared, _ = members("sd15")
    network = preferred.model.diffusion_model
    block = network.middle_block[1]
    monkeypatch.setattr(block, "forward", lambda x, *args, **kwargs: x)
    run(guider_of(join(preferred, shared), *prompts("sd15", nodes), CFG), mini.latent("sd15"))
    assert "middle_block" in caplog.text
    assert "had no effect" in caplog.text
