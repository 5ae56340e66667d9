"""What a run loads, calls and leaves behind."""

import comfy.model_management
import comfy.sd
import mini
import pytest
import torch
from conftest import ends_only, newest, pack_module
from running import guider_of, lora, reference_of, result, run, schedule

pytestmark = ends_only

CFG = 6.0


@pytest.fixture
def join(nodes):
    return lambda preferred, dispreferred, start=0.0, end=1.0: nodes["CHATSApply"](preferred, dispreferred, start, end)[
        0
    ]


@pytest.fixture
def prompts(nodes):
    positive, null = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    return positive, nodes["CHATSProxyPrompt"](positive, null, 0.5, "proxy")[0]


@pytest.fixture
def loads(monkeypatch):
    """Every call of ComfyUI's load_models_gpu, as the list of the real models it was asked for; the call goes on."""
    calls = []
    original = comfy.model_management.load_models_gpu

    def observed(models, *args, **kwargs):
        calls.append([patcher.model for patcher in models])
        return original(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", observed)
    return calls


@pytest.fixture
def passes(pairs):
    """How often each member's network ran, counted by torch's own hooks."""
    counts = [0, 0]
    handles = []
    for index, model in enumerate(pairs("sd15")):

        def count(*_, index=index):
            counts[index] += 1

        handles.append(model.model.diffusion_model.register_forward_hook(count))
    yield counts
    for handle in handles:
        handle.remove()


def test_both_models_come_in_one_load_call(pairs, join, prompts, loads, passes):
    preferred, dispreferred = pairs("sd15")
    run(guider_of(join(preferred, dispreferred), *prompts, CFG), mini.latent("sd15"), steps=3)
    assert len(loads) == 1
    assert set(loads[0]) == {preferred.model, dispreferred.model}
    assert passes == [3, 3]


def test_cfg_1_is_the_preferred_alone(pairs, join, prompts, loads, passes):
    preferred, dispreferred = pairs("sd15")
    paired = run(guider_of(join(preferred, dispreferred), *prompts, 1.0), mini.latent("sd15"))
    assert passes[1] == 0
    assert all(dispreferred.model not in models for models in loads)
    plain = run(guider_of(preferred, *prompts, 1.0), mini.latent("sd15"))
    assert torch.equal(paired, plain)


def test_guidance_that_comes_late_loads_the_model_late(pairs, join, prompts, loads, passes):
    """A node that raises cfg in the middle of a run that began at 1, as core's CFGOverride does in newer versions."""
    from comfy.patcher_extension import WrappersMP

    preferred, dispreferred = pairs("sd15")

    def override(executor, x, timestep, *args, **kwargs):
        guider = executor.class_obj
        guider.cfg, saved = (CFG if timestep[0] < 5 else guider.cfg), guider.cfg
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = saved

    def overridden(guider):
        guider.model_patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "override", override)
        return guider

    actual = run(overridden(guider_of(join(preferred, dispreferred), *prompts, 1.0)), mini.latent("sd15"), steps=3)
    levels = (schedule(preferred, 3)[:-1] < 5).sum().item()
    assert passes == [3, levels]
    assert [dispreferred.model in models for models in loads] == [False, True]
    reference = reference_of(preferred.clone(), dispreferred, *prompts, 1.0)
    assert mini.relative_error(actual, run(overridden(reference), mini.latent("sd15"), steps=3)) < 1e-5


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.6), *newest((0.0, 0.3), (0.5, 1.0))])
def test_outside_the_interval_cfg_is_1(start, end, pairs, join, prompts, passes):
    preferred, dispreferred = pairs("sd15")
    sampling = preferred.get_model_object("model_sampling")
    sigma_start, sigma_end = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    steps = 5
    actual = run(guider_of(join(preferred, dispreferred, start, end), *prompts, CFG), mini.latent("sd15"), steps=steps)
    inside = [sigma_end <= sigma <= sigma_start for sigma in schedule(preferred, steps)[:-1].tolist()]
    assert 0 < sum(inside) < steps
    assert passes == [steps, sum(inside)]

    class Interval(type(reference_of(preferred, dispreferred, *prompts, CFG))):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            self.cfg = CFG if sigma_end <= timestep[0] <= sigma_start else 1.0
            return super().predict_noise(x, timestep, model_options, seed)

    reference = Interval(preferred, dispreferred)
    reference.set_conds(*prompts)
    assert mini.relative_error(actual, run(reference, mini.latent("sd15"), steps=steps)) < 1e-5


def test_an_interval_that_no_step_falls_into_loads_nothing(pairs, join, prompts, loads, passes):
    preferred, dispreferred = pairs("sd15")
    sigmas = schedule(preferred, 8)[5:]
    paired = run(guider_of(join(preferred, dispreferred, 0.0, 0.1), *prompts, CFG), mini.latent("sd15"), sigmas=sigmas)
    assert passes[1] == 0
    assert all(dispreferred.model not in models for models in loads)
    assert torch.equal(paired, run(guider_of(preferred, *prompts, 1.0), mini.latent("sd15"), sigmas=sigmas))


def test_callbacks_arrive_once_a_step(pairs, join, prompts):
    steps = []
    model = join(*pairs("sd15"))
    run(
        guider_of(model, *prompts, CFG),
        mini.latent("sd15"),
        steps=4,
        callback=lambda step, x0, x, total: steps.append((step, total)),
    )
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("where", ["dispreferred", *newest("callback", "preferred", "load")])
def test_an_error_in_the_middle_leaves_everything_usable(where, pairs, join, prompts, monkeypatch):
    preferred, dispreferred = (model.clone() for model in pairs("sd15"))
    # A LoRA on each side and one on the whole: the states that would be left half-made.
    adapted = [
        comfy.sd.load_lora_for_models(m, None, lora(m, seed), 1.0, 0.0)[0]
        for m, seed in ((preferred, 1), (dispreferred, 2))
    ]
    paired = comfy.sd.load_lora_for_models(join(*adapted), None, lora(preferred, 3), 1.0, 0.0)[0]
    latent = mini.latent("sd15")
    before = [
        run(guider_of(model, *prompts, CFG), latent, steps=1) for model in (preferred, dispreferred, *adapted, paired)
    ]

    def stop(*_, **__):
        raise Stopped

    guider = guider_of(paired, *prompts, CFG)
    handle = None
    if where in ("dispreferred", "preferred"):
        network = (dispreferred if where == "dispreferred" else preferred).model.diffusion_model
        handle = network.register_forward_hook(stop)
    with monkeypatch.context() as patch:
        if where == "load":
            patch.setattr(comfy.model_management, "load_models_gpu", stop)
        with pytest.raises(Stopped):
            run(guider, latent, callback=stop if where == "callback" else None)
    if handle is not None:
        handle.remove()

    assert preferred.model.current_patcher is None
    assert dispreferred.model.current_patcher is None
    after = [
        run(guider_of(model, *prompts, CFG), latent, steps=1) for model in (preferred, dispreferred, *adapted, paired)
    ]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_run_leaves_no_trace_in_other_graphs(pairs, join, prompts):
    preferred, dispreferred = pairs("sd15")
    latent = mini.latent("sd15")
    before = [run(guider_of(model, *prompts, CFG), latent) for model in (preferred, dispreferred)]
    options = str(preferred.model_options), str(dispreferred.model_options)
    paired = join(preferred, dispreferred)
    first = run(guider_of(paired, *prompts, CFG), latent)
    assert "chats" not in paired.model_options
    assert (str(preferred.model_options), str(dispreferred.model_options)) == options
    after = [run(guider_of(model, *prompts, CFG), latent) for model in (preferred, dispreferred)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(first, run(guider_of(paired.clone(), *prompts, CFG), latent))


def test_no_global_of_comfyui_is_replaced(pack, pairs, join, prompts):
    import comfy.sampler_helpers
    import comfy.samplers

    modules = (comfy.samplers, comfy.sampler_helpers, comfy.model_management, comfy.model_patcher)
    before = [dict(vars(module)) for module in modules] + [dict(vars(comfy.samplers.CFGGuider))]
    run(guider_of(join(*pairs("sd15")), *prompts, CFG), mini.latent("sd15"))
    after = [dict(vars(module)) for module in modules] + [dict(vars(comfy.samplers.CFGGuider))]
    for one, other in zip(before, after, strict=True):
        functions = {name: value for name, value in one.items() if callable(value)}
        assert all(other[name] is value for name, value in functions.items())
    assert comfy.samplers.sampling_function.__module__ == "comfy.samplers"


def test_the_weights_are_not_patched_anew_in_each_run(pairs, join, prompts):
    """A LoRA after the join gives the dispreferred a set of patches whose identity is the same from run to run."""
    preferred, dispreferred = pairs("sd15")
    paired = comfy.sd.load_lora_for_models(join(preferred, dispreferred), None, lora(preferred, 3), 1.0, 0.0)[0]
    identities = []
    for _ in range(2):
        run(guider_of(paired, *prompts, CFG), mini.latent("sd15"))
        identities.append(dispreferred.model.current_weight_patches_uuid)
    assert identities[0] == identities[1] != dispreferred.patches_uuid


def test_a_caching_node_after_the_join_skips_both_models_in_the_same_steps(pairs, join, prompts):
    """EasyCache decides on the positive pass and lets the negative follow, since it sees one call around both
    models."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    models = pairs("sd15")
    steps = []  # by member, the steps in which the network's last layer was reached
    handles = []
    for model in models:
        reached = []
        steps.append(reached)
        handles.append(
            model.model.diffusion_model.out.register_forward_hook(
                lambda *_, reached=reached: reached.append(len(callbacks))
            )
        )
    callbacks = []
    cached = result(EasyCacheNode, join(*models), 5.0, 0.15, 0.95, False)[0]
    run(guider_of(cached, *prompts, CFG), mini.latent("sd15"), steps=8, callback=lambda *_: callbacks.append(1))
    for handle in handles:
        handle.remove()
    assert steps[0] == steps[1]
    assert 0 < len(steps[0]) < 8


@pytest.fixture
def on_the_node(monkeypatch):
    """What is shown on the node that samples."""
    from types import SimpleNamespace

    advice = pack_module("nodes.advice")
    texts = []
    monkeypatch.setattr(advice, "_shown", {})
    monkeypatch.setattr(advice, "get_executing_context", lambda: SimpleNamespace(node_id="7", prompt_id="1"))
    monkeypatch.setattr(advice, "show", lambda text, node_id: texts.append(text))
    return texts


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("both", "`easycache` on the dispreferred model is not run there"),
        ("dispreferred", "`easycache` on the dispreferred model is not run there"),
        ("preferred", "`easycache` acts on the passes of the preferred model alone"),
    ],
    ids=["both", "dispreferred", "preferred"],
)
def test_a_caching_node_before_the_join_is_named_on_the_sampler(on, said, pairs, join, prompts, on_the_node, caplog):
    from comfy_extras.nodes_easycache import EasyCacheNode

    models = [
        result(EasyCacheNode, model, 0.2, 0.15, 0.95, False)[0] if on in ("both", member) else model
        for member, model in zip(("preferred", "dispreferred"), pairs("sd15"), strict=True)
    ]
    model = join(*models)
    for _ in range(2):
        run(guider_of(model, *prompts, CFG), mini.latent("sd15"), steps=1)
    assert on_the_node == [f"⚠ {said}; put that node after CHATS Apply"], "once an execution"
    assert caplog.text.count("easycache` ") == 1


def test_guidance_on_the_dispreferred_alone_is_named(pairs, join, prompts, on_the_node):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    preferred, dispreferred = pairs("sd15")
    model = join(preferred, result(PerturbedAttentionGuidance, dispreferred, 3.0)[0])
    run(guider_of(model, *prompts, CFG), mini.latent("sd15"), steps=1)
    assert on_the_node == [
        "⚠ `PerturbedAttentionGuidance` on the dispreferred model is not run there; put that node after CHATS Apply"
    ]


@pytest.mark.parametrize("on", [("preferred",), ("dispreferred",), ("preferred", "dispreferred")], ids="+".join)
def test_self_attention_guidance_before_the_join_is_refused(on, pairs, join):
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    models = [
        result(SelfAttentionGuidance, model, 0.5, 2.0)[0] if member in on else model
        for member, model in zip(("preferred", "dispreferred"), pairs("sd15"), strict=True)
    ]
    with pytest.raises(ValueError, match=f"is on `{on[0]}`.*put that node after CHATS Apply"):
        join(*models)


def test_ksampler_runs_through_its_node(pairs, join, prompts):
    """Through common_ksampler, with ComfyUI's preview and progress machinery around it."""
    import nodes as comfy_nodes

    args = (7, 2, CFG, "euler", "normal", *prompts, mini.latent("sd15", 2))
    samples = result(comfy_nodes.KSampler, join(*pairs("sd15")), *args)[0]["samples"]
    assert samples.shape == (2, 4, 8, 8)
    assert torch.isfinite(samples).all()
