"""Noise schedules, held against diffusers' schedulers and numbers made by hand."""

import math

import diffusers
import pytest
import torch

from chats_train.families.schedule import DiffusionSchedule, FlowSchedule
from chats_train.sampling.sampler import guided_levels, noise_levels

LATENTS = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
SCHEDULES = {
    "epsilon": DiffusionSchedule("epsilon"),
    "v": DiffusionSchedule("v_prediction"),
    "v_zero_snr": DiffusionSchedule("v_prediction", zero_terminal_snr=True),
    "flow": FlowSchedule(shift=3.0, training_shift=3.0),
}


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_diffusion_noise_and_velocity_are_diffusers(zero_terminal_snr):
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_terminal_snr
    )
    ours = DiffusionSchedule("v_prediction", zero_terminal_snr)
    timesteps = torch.tensor([0, 400, 999])
    # At the last step of a zero-SNR schedule ᾱ is 4.9e-8 here and 0 there, so √ᾱ differs by 2e-4.
    close = {"atol": 1e-3 if zero_terminal_snr else 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(
        ours.add_noise(LATENTS, NOISE, timesteps), theirs.add_noise(LATENTS, NOISE, timesteps), **close
    )
    torch.testing.assert_close(
        ours.target(LATENTS, NOISE, timesteps), theirs.get_velocity(LATENTS, NOISE, timesteps), **close
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_perfect_prediction_denoises_to_the_latent(name):
    # What training calls the target, sampling must call z₀: x = z₀ + σ ε (or (1−σ) z₀ + σ ε) and timestep(σ) = t.
    schedule = SCHEDULES[name]
    for uniform in (0.0, 0.3, 0.9):
        timesteps = schedule.sample_timesteps(torch.full((3,), uniform))
        sigma = schedule.sigmas[timesteps[0]] if name != "flow" else timesteps[0]
        x = LATENTS + sigma * NOISE if name != "flow" else (1 - sigma) * LATENTS + sigma * NOISE
        assert torch.equal(schedule.timestep(sigma), timesteps[0])
        torch.testing.assert_close(
            schedule.scale_input(x, sigma), schedule.add_noise(LATENTS, NOISE, timesteps), atol=1e-4, rtol=1e-4
        )
        prediction = schedule.target(LATENTS, NOISE, timesteps)
        torch.testing.assert_close(schedule.denoised(prediction, x, sigma), LATENTS, atol=1e-4, rtol=1e-4)


def test_diffusion_timesteps_are_uniform():
    assert DiffusionSchedule("epsilon").sample_timesteps(torch.tensor([0.0, 0.0005, 0.5, 0.99999999])).tolist() == [
        0,
        0,
        500,
        999,
    ]


def test_flow_timesteps_are_logit_normal_and_shifted():
    # Φ(−1) = 0.158655, so that uniform number falls on sigmoid(−1) = 0.268941; shifted by 3: 3·0.268941 / (1 +
    # 2·0.268941) = 0.524633.
    uniform = torch.tensor([0.0, 0.158655, 0.5, 1.0])
    plain = FlowSchedule(shift=3.0, training_shift=1.0).sample_timesteps(uniform)
    shifted = FlowSchedule(shift=3.0, training_shift=3.0).sample_timesteps(uniform)
    torch.testing.assert_close(plain[1:3], torch.tensor([0.268941, 0.5]), atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[1:3], torch.tensor([0.524633, 0.75]), atol=1e-5, rtol=0)
    assert 0 < plain[0] < 0.02
    assert 0.98 < plain[3] < 1


def test_flow_by_hand():
    # t = 0.25: z_t = 0.75 · 4 + 0.25 · 8 = 5; the velocity is 8 − 4.
    schedule = FlowSchedule(shift=1.0, training_shift=1.0)
    latents, noise, t = torch.full((1, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), 8.0), torch.tensor([0.25])
    assert schedule.add_noise(latents, noise, t).item() == 5
    assert schedule.target(latents, noise, t).item() == 4


def test_noise_levels_end_in_zero_and_fall():
    for schedule in SCHEDULES.values():
        for scheduler in ("normal", "simple"):
            levels = noise_levels(schedule, 7, scheduler)
            assert len(levels) == 8
            torch.testing.assert_close(levels[0], schedule.sigmas[-1])
            assert levels[-1] == 0
            assert (levels.diff() < 0).all()
    with pytest.raises(ValueError, match="`scheduler` is `karras`"):
        noise_levels(schedule, 7, "karras")


def test_the_tables_ends_are_the_published_ones():
    # Stable Diffusion's σ runs from 0.0292 to 14.6146 (k-diffusion's README and config).
    sigmas = DiffusionSchedule("epsilon").sigmas
    assert math.isclose(sigmas[0], 0.0292, abs_tol=5e-5)
    assert math.isclose(sigmas[-1], 14.6146, abs_tol=5e-5)


def test_shares_of_the_schedule_are_comfyuis():
    """Of diffusion: σ at position (1 − percent) · 999. Of a flow: s·t / (1 + (s−1)·t) at t = 1 − percent."""
    table = SCHEDULES["epsilon"].sigmas
    # (1 − 0.25) · 999 = 749.25, a quarter of the way in log σ.
    expected = math.exp(0.75 * math.log(table[749]) + 0.25 * math.log(table[750]))
    assert SCHEDULES["epsilon"].percent_to_sigma(0.25) == pytest.approx(expected, rel=1e-5)
    assert SCHEDULES["flow"].percent_to_sigma(0.25) == pytest.approx(3 * 0.75 / (1 + 2 * 0.75))
    for schedule in SCHEDULES.values():
        open_ended, middle = guided_levels(schedule, 0.0, 1.0), guided_levels(schedule, 0.25, 0.75)
        ends = torch.tensor([schedule.percent_to_sigma(share) for share in (0.25, 0.75)], dtype=torch.float64)
        assert open_ended(torch.tensor([1e9, 0.0])).all()
        levels = torch.stack([ends[0] * 1.001, ends[0], ends[1], ends[1] * 0.999])
        assert middle(levels).tolist() == [False, True, True, False]
