"""The gradient of a student in ComfyUI: against autograd on the distance to the guided prediction, which two stock
models give by hand."""

import comfy.lora
import comfy.samplers
import mini_architectures
import pytest
import torch
from conftest import newest_only, pack_module
from running import lora, predictions

pytestmark = newest_only

S, ALPHA, NULL_TOKENS = 2.0, 0.4, 7


def with_lora(model, seed: int, scale: float = 0.5):
    patched = model.clone()
    places = {key: key for key in model.model.state_dict()}
    found = comfy.lora.load_lora(lora(model, seed, scale=scale), {k.removesuffix(".weight"): k for k in places})
    assert patched.add_patches(found, 1.0)
    return patched


TEACHERS = {
    "two LoRAs": {},
    "exact": {"form": "exact"},
    "base as the negative": {"base": True},
    "alpha 0": {"alpha": 0.0},
    "interval": {"interval": (0.1, 0.6)},
    "two models": {"models": True},
}


def members(kind: str, base: bool = False, models: bool = False):
    model = mini_architectures.model(kind, 1)
    if models:
        return model, mini_architectures.model(kind, 2)
    return with_lora(model, 11), model.clone() if base else with_lora(model, 12)


@pytest.mark.parametrize(
    ("kind", "teacher"), [*(("sd15", each) for each in TEACHERS), ("sd3", "two LoRAs"), ("sdxl", "two LoRAs")]
)
def test_it_is_that_of_the_mean_squared_error_to_the_guided_prediction(pack, nodes, kind, teacher):
    asked = TEACHERS[teacher]
    alpha, form, interval = asked.get("alpha", ALPHA), asked.get("form", "proxy"), asked.get("interval", (0.0, 1.0))
    taught, parts_module, steps_module = (
        pack_module(f"nodes.training.{name}") for name in ("taught", "pair_parts", "steps")
    )
    sizes = dict(width=96, height=80, crop_w=8) if kind == "sdxl" else {}
    image = pack_module("nodes.training.errors").EncodedImage
    pairs = [
        steps_module.EncodedPair(
            f"pair {index}",
            image(mini_architectures.latent(kind, 100 + index), sizes),
            image(mini_architectures.latent(kind, 200 + index), sizes),
            mini_architectures.conditioning(kind, 300 + index, NULL_TOKENS),
        )
        for index in range(2)
    ]
    null = mini_architectures.conditioning(kind, 999, NULL_TOKENS)
    with torch.inference_mode():
        preferred, dispreferred = members(kind, asked.get("base", False), asked.get("models", False))
        (joined,) = nodes["CHATSApply"](preferred, dispreferred, *interval)
        parts = parts_module.parts_of(joined)
    assert parts.negative == ("base" if "base" in asked else "dispreferred")
    asked_pair = pack_module("nodes.training.teacher").Teacher(joined, null, 1 + S, alpha, form)
    returned = []

    def work(errors):
        adapters_module = pack_module("nodes.training.adapters")
        adapters = adapters_module.Adapters(errors.model.diffusion_model, 6, "all linear", 0, ("student",))
        steps = taught.TaughtSteps(
            errors, adapters, pairs, [], asked_pair, steps=10, learning_rate=1e-3, accumulate=2, seed=3
        )
        checkpointing = pack_module("nodes.training.checkpointing")
        blocks = checkpointing.blocks_of(errors.model.diffusion_model)
        with adapters.installed(), checkpointing.checkpointed(blocks, torch.zeros(1, requires_grad=True)):
            parts_module.begin_with(parts.more, adapters)
            begun = [steps.backward(0, pair, 0.5) for pair in pairs]
            generator = torch.Generator().manual_seed(5)
            for parameter in steps.parameters.values():  # away from the preferred member
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            steps.optimizer.zero_grad()
            rows = [steps.backward(0, pair, 0.5) for pair in pairs]
            ours = torch.cat([each.grad.flatten() for each in steps.parameters.values()])
            steps.optimizer.zero_grad()
        with adapters.installed(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            questions = [steps._asked(0, pair)[0]["chosen"].args[1] for pair in pairs]
            losses, patcher, adapters.active = [], errors.model.current_patcher, None
            given = zip(pairs, questions, strict=True)
            targets = [by_hand(preferred, dispreferred, *each, null, alpha, form, interval) for each in given]
            errors.model.current_patcher = patcher
            errors.load()
            adapters.active = "student"
            for target, question in zip(targets, questions, strict=True):
                # Merged weights and added ones round differently.
                assert (question.clean - target).norm() / target.norm() < 1e-5
                asked_now = (errors.model, [question.conditions], question.noisy, question.sigma, errors.options)
                denoised = comfy.samplers.calc_cond_batch(*asked_now)[0]
                # What ε and a flow's velocity are multiplied by in the denoised latents.
                losses.append((denoised / question.sigma - question.clean / question.sigma).square().mean())
            (sum(losses) / 2).backward()
            joint = torch.cat([each.grad.flatten() for each in steps.parameters.values()])
        returned.append((begun, rows, losses, ours, joint))

    with torch.inference_mode():
        within = pack_module("nodes.training.within_comfyui")
        within.with_loaded(parts.base, pairs[0].prompt, pairs[0].chosen.latent, work)
    ((begun, rows, losses, ours, joint),) = returned
    assert torch.linalg.vector_norm(joint) > 0
    assert torch.linalg.vector_norm(ours - joint) / torch.linalg.vector_norm(joint) < 1e-6
    assert [row[0].item() for row in rows] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    # It begins as the preferred member: so far from the teacher is that.
    for loss, metrics in begun:
        assert loss.item() == pytest.approx(metrics["preferred_error"].item(), rel=1e-4)
    guided = [metrics["preferred_error"].item() > 1e-4 for _, metrics in rows]
    assert guided == ([True, False] if teacher == "interval" else [True, True])
    assert_nothing_is_left(joined)


def by_hand(preferred, dispreferred, pair, question, null, alpha, form, interval):
    """ε̃ of Eq. 16 and 17, in denoised terms, of two stock models; ε⁺ where nothing guides."""
    sized = [[tokens, {**entry, **pair.chosen.sizes}] for tokens, entry in pair.prompt]
    empty = [[tokens, {**entry, **pair.chosen.sizes}] for tokens, entry in null]

    def denoised(model, prompt):
        with torch.no_grad():
            conds = {"positive": prompt, "negative": prompt}
            return predictions(model, conds, question.noisy, question.sigma[0])["positive"]

    own = denoised(preferred, sized)
    sampling = preferred.get_model_object("model_sampling")
    first, last = (float(sampling.percent_to_sigma(share)) for share in interval)
    if not last <= question.sigma.item() <= first:
        return own
    if form == "exact":
        away = (1 + alpha) * denoised(dispreferred, empty) - alpha * denoised(dispreferred, sized)
    else:
        (tokens, entry), (none, none_entry) = sized[0], empty[0]
        mixed = dict(entry)
        if "pooled_output" in entry:
            mixed["pooled_output"] = (1 + alpha) * none_entry["pooled_output"] - alpha * entry["pooled_output"]
        away = denoised(dispreferred, [[(1 + alpha) * none - alpha * tokens, mixed]])
    return (1 + S) * own - S * away


def assert_nothing_is_left(joined) -> None:
    network = joined.model.diffusion_model
    assert not any(module._forward_hooks or "forward" in vars(module) for module in network.modules())
    assert all(each.grad is None and not each.requires_grad for each in network.parameters())
