"""The headless sampler: CFG against diffusers' pipeline, the pair against the equations. Against ComfyUI:
tests/comfy/test_export.py."""

import diffusers
import pytest
import tiny_pipelines
import torch
from PIL import Image

from chats_train.families import load_family
from chats_train.sampling.pictures import picture_grid, to_images
from chats_train.sampling.sampler import SamplingSettings, initial_noise, sample_cfg, sample_pair
from chats_train.settings.facts import FAMILIES


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: load_family(name, str(tiny_pipelines.save_pipeline(name, root / name))) for name in FAMILIES}


def prompts(family):
    return family.encode_prompt(["a cat", "a dog"]), family.null_prompt()


def test_cfg_is_diffusers_euler(families):
    family = families["sd15"]
    unet, (prompt, null) = family.load_denoiser(), prompts(family)
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(4)
    # A fractional timestep is rounded here (and in ComfyUI) and not there; these are whole: 999, 666, 333, 0.
    assert torch.equal(scheduler.timesteps, scheduler.timesteps.round())
    noise = initial_noise(family, 2, 64, 64, seed=3)
    ours = sample_cfg(family, unet, prompt, null, noise, SamplingSettings(steps=4, guidance_scale=2.0))
    x = noise * (1 + scheduler.sigmas[0] ** 2).sqrt()
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.scale_model_input(x, t)
            cond, uncond = (
                unet(z, t, encoder_hidden_states=c["tokens"].expand(2, -1, -1)).sample for c in (prompt, null)
            )
            x = scheduler.step(uncond + 3.0 * (cond - uncond), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pair_of_equal_members_is_cfg(families, name):
    # Exact with equal members: (1+s) c + αs c − (1+α)s ∅ is CFG at s' = (1+α)s. The proxy at α = 0 is CFG at s.
    family = families[name]
    denoiser, (prompt, null) = family.load_denoiser(), prompts(family)
    noise = initial_noise(family, 2, 32, 48, seed=1)
    settings = SamplingSettings(steps=2, guidance_scale=2.0, alpha=0.5, form="exact")
    exact = sample_pair(family, denoiser, denoiser, prompt, null, noise, settings)
    plain = sample_cfg(family, denoiser, prompt, null, noise, SamplingSettings(steps=2, guidance_scale=3.0))
    torch.testing.assert_close(exact, plain, rtol=1e-3, atol=1e-3)
    proxy = sample_pair(
        family, denoiser, denoiser, prompt, null, noise, SamplingSettings(steps=2, guidance_scale=3.0, alpha=0.0)
    )
    torch.testing.assert_close(proxy, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "scheduler", "other"), [("sd15", "normal", "simple"), ("sd3", "simple", "normal")])
def test_a_family_is_sampled_with_its_own_scheduler(families, name, scheduler, other):
    """`simple` for flow models, as the pack's own workflow for SD3.5 has it."""
    family = families[name]
    denoiser, (prompt, null) = family.load_denoiser(), prompts(family)
    noise = initial_noise(family, 2, 32, 32, seed=2)
    found = [
        sample_cfg(family, denoiser, prompt, null, noise, SamplingSettings(steps=3, scheduler=each))
        for each in (None, scheduler, other)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("form", ["proxy", "exact"])
def test_each_pass_goes_to_its_model_with_its_prompt(families, form):
    # The members answer with the mean of the prompt they were given, ten times over for the preferred, so one step is
    # arithmetic.
    family = families["sd15"]
    calls = []

    def member(name, factor):
        def answer(noisy, timesteps, encoder_hidden_states, return_dict):
            calls.append(name)
            return (torch.full_like(noisy, factor * encoder_hidden_states.mean().item()),)

        return answer

    prompt, null = {"tokens": torch.full((1, 77, 24), 1.0)}, {"tokens": torch.full((1, 77, 24), 0.25)}
    noise = initial_noise(family, 1, 16, 16, seed=0)
    settings = SamplingSettings(steps=1, guidance_scale=2.0, alpha=0.5, form=form)
    x = sample_pair(family, member("+", 10.0), member("-", 1.0), prompt, null, noise, settings)
    # Eq. 16: 3 · 10 + 0.5 · 2 · 1 − 1.5 · 2 · 0.25 = 30.25; the members are linear in the prompt, so Eq. 17 gives the
    # same.
    sigma = family.schedule.sigmas[-1]
    torch.testing.assert_close(x, noise * (1 + sigma**2).sqrt() - sigma * 30.25, rtol=1e-4, atol=1e-3)
    assert calls == (["+", "-"] if form == "proxy" else ["+", "-", "-"])


def test_settings_that_are_not_known_are_errors(families):
    family = families["sd3"]
    noise = initial_noise(family, 1, 32, 32, seed=0)
    with pytest.raises(ValueError, match="`form` is `both`"):
        sample_pair(family, None, None, {}, {}, noise, SamplingSettings(form="both"))
    with pytest.raises(ValueError, match="sd3 needs multiples of 16"):
        initial_noise(family, 1, 40, 32, seed=0)


def test_noise_is_the_seeds_alone(families):
    family = families["flux"]
    torch.manual_seed(11)
    expected = torch.randn(2, 16, 4, 8, generator=torch.manual_seed(5))  # ComfyUI's comfy.sample.prepare_noise
    assert torch.equal(initial_noise(family, 2, 32, 64, seed=5), expected)


def test_pictures_and_grid():
    pixels = torch.tensor([-1.0, 0.0, 3.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 6)
    images = to_images(pixels)
    assert images[0].size == (6, 4)
    assert images[1].getpixel((5, 3)) == (0, 128, 255)
    grid = picture_grid([[images[0], Image.new("RGB", (6, 4), "red")]] * 3, titles=["a", "b"])
    assert grid.size == (12, 16 + 3 * 4)
    assert grid.getpixel((7, 27)) == (255, 0, 0)
    with pytest.raises(ValueError, match="equal length"):
        picture_grid([images, images[:1]])
    with pytest.raises(ValueError, match="1 titles for 2 columns"):
        picture_grid([images], titles=["a"])
