"""Previews of a run: pictures by the pair under way, which change nothing of it, whatever becomes of them."""

import logging

import comfy.model_management
import comfy.sd
import comfy.utils
import mini
import pytest
import torch
from conftest import newest_only, pack_module
from running import lora
from training_runs import assert_equal_runs

pytestmark = newest_only
pytest_plugins = ["training_runs"]


@pytest.fixture
def shown(monkeypatch):
    """What the node showed: (step, picture) of each that is wider than the curve."""
    seen = []

    def hook(value, total, preview, **_):
        if preview is not None and preview[1].width > 768:
            seen.append((value, preview[1].crop((768, 0, *preview[1].size))))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(pack_module("nodes.training.reports"), "SECONDS_BETWEEN_REPORTS", 1e9)
    return seen


def test_previews_change_nothing_and_are_what_our_sampler_draws(train, models, nodes, place, shown):
    train(name="whole")
    assert not shown
    files = sorted(file.name for file in place.rglob("*"))
    random = torch.get_rng_state()
    preferred, dispreferred, _ = train(preview_every=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert_equal_runs(place, "pair", "whole")
    assert [step for step, _ in shown] == [2, 4]
    assert shown[0][1].tobytes() != shown[1][1].tobytes()
    added = [".lock", "pair", "pair_dispreferred.safetensors", "pair_preferred.safetensors", "state.safetensors"]
    assert sorted(file.name for file in place.rglob("*")) == sorted(files + added)

    preview = pack_module("nodes.training.preview")
    prompts = [models[1].encode_from_tokens_scheduled(text) for text in (first_prompt(place), "")]
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        settings = (1, preview.SAMPLING_STEPS, preview.CFG, "euler", preview.SCHEDULER, 1.0, 0.5, "auto", 0, 1)
        (drawn,) = nodes["CHATSKSampler"](preferred, dispreferred, *prompts, latent, *settings)
        expected = models[2].decode(drawn["samples"])[0]
    picture = shown[1][1].resize((64, 64))
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(64, 64, 3) / 255
    # Through two changes of size, and the members of the outputs are in half precision.
    assert (levels - expected).abs().mean() < 0.02 < (levels - expected.flip(0)).abs().mean()


def first_prompt(place) -> str:
    """Of the first pair in training's order: with five pairs none is held out."""
    rated = pack_module("nodes.training.rated_pairs").rated_pairs(place / "output" / "chats" / "my taste", 64)
    return pack_module("chats.draws").held_out(rated, 1, 0)[0][0].prompt


def fails(error: Exception):
    def decode(samples):
        raise error

    return decode


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), KeyError("anything")], ids=["memory", "other"])
def test_a_preview_that_fails_costs_the_preview_only(train, models, place, shown, caplog, monkeypatch, error):
    train(name="whole")
    monkeypatch.setattr(models[2], "decode", fails(error))
    with caplog.at_level(logging.WARNING):
        train(preview_every=1)
    assert_equal_runs(place, "pair", "whole")
    said = [record.getMessage() for record in caplog.records if "no preview could be drawn at step 1" in record.message]
    assert len(said) == 1
    assert not shown


def test_cancel_while_a_preview_is_drawn_cancels_the_run(train, models, place, monkeypatch):
    train(name="whole")
    with monkeypatch.context() as cancelled:
        cancelled.setattr(models[2], "decode", fails(comfy.model_management.InterruptProcessingException()))
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(preview_every=2)
    train()
    assert_equal_runs(place, "pair", "whole")


def test_a_base_that_gave_way_to_the_vae_is_loaded_again(train, models, place, monkeypatch):
    patches = lora(models[0], 3, scale=2.0)
    base = comfy.sd.load_lora_for_models(models[0], None, patches, 1.0, 0.0)[0]
    train(name="whole", model=base)
    decode = models[2].decode

    def evicts(samples):
        comfy.model_management.unload_all_models()
        return decode(samples)

    monkeypatch.setattr(models[2], "decode", evicts)
    train(model=base, preview_every=1)
    assert_equal_runs(place, "pair", "whole")


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_what_conditioning_a_family_takes_is_given(kind, pack, monkeypatch):
    import mini_architectures
    import test_training_gradients as gradients

    names = ("adapters", "errors", "steps", "within_comfyui", "preview")
    training = {name: pack_module(f"nodes.training.{name}") for name in names}

    def use(steps):
        with torch.no_grad():
            drawn = training["preview"].sampled(steps.errors, steps.adapters, steps.pairs[0], steps.null.prompt, 3)
        return drawn

    monkeypatch.setattr(training["preview"], "SAMPLING_STEPS", 2)
    drawn = gradients.with_steps(training, kind, use)
    assert drawn.shape == mini_architectures.latent(kind, 1).shape
    assert torch.isfinite(drawn).all()
    assert mini.relative_error(drawn, drawn * 0) > 0
