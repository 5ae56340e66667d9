"""Running real samplers on mini models, and the reference that the pack is held against.

The reference knows nothing of the pack: a guider that asks two stock single-model runs for their predictions and
combines them by the formula of Eq. 17 in denoised terms, negative + cfg · (positive − negative).
"""

import functools
import json
import os
import subprocess
from pathlib import Path

import comfy.model_detection
import comfy.samplers
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.samplers import KSAMPLER, CFGGuider, sampler_object

HERE = Path(__file__).resolve().parent


def predictions(model, conds: dict[str, list], x: torch.Tensor, sigma: torch.Tensor) -> dict[str, torch.Tensor]:
    """Denoised predictions of ONE stock model at one noise level, for the "positive" and the "negative" of
    ``conds``."""
    captured = {}
    observed = model.clone()

    def capture(args):
        captured.update(positive=args["cond_denoised"], negative=args["uncond_denoised"])
        return args["denoised"]

    observed.set_model_sampler_post_cfg_function(capture, disable_cfg1_optimization=True)

    def evaluate(guided, noise, sigmas, extra_args=None, callback=None, disable=None):
        guided(x, sigmas[:1].expand(x.shape[0]), **(extra_args or {}))
        return noise

    guider = CFGGuider(observed)
    guider.set_conds(conds["positive"], conds["negative"])
    guider.sample(
        x, torch.zeros_like(x), KSAMPLER(evaluate), torch.stack([sigma, sigma * 0]), disable_pbar=True, seed=0
    )
    return captured


class FormulaGuider(CFGGuider):
    """The formula from two single-model calls a step; a sampler, mask or schedule around it is ComfyUI's own."""

    def __init__(self, preferred, dispreferred):
        super().__init__(preferred)
        self.preferred, self.dispreferred = preferred, dispreferred

    def set_conds(self, positive, negative):
        super().set_conds(positive, negative)
        self.given = {"positive": positive, "negative": negative}

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        sigma = timestep[0].clone()
        positive = predictions(self.preferred, self.given, x, sigma)["positive"]
        negative = predictions(self.dispreferred, self.given, x, sigma)["negative"]
        return negative + self.cfg * (positive - negative)


@functools.cache
def trainer_process() -> subprocess.Popen:
    """The trainer's Python with its packages loaded: it runs scripts until this process ends."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parents[1]), str(here.parent / "train")])
    return subprocess.Popen(
        [os.environ["CHATS_TRAIN_PYTHON"], str(here / "trainer_process.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def in_the_trainers_python(script: str, folder: Path, *arguments: str) -> None:
    """Runs a script of this folder with the trainer's packages, which are not ComfyUI's, for files in ``folder``; skips
    loudly where none are named."""
    if "CHATS_TRAIN_PYTHON" not in os.environ:
        pytest.skip(
            "CHATS_TRAIN_PYTHON is not set: the trainer's pairs were NOT tried; set it to a Python with the extra "
            "`train`"
        )
    log, process = folder / "script.log", trainer_process()
    request = [str(log), str(Path(__file__).resolve().with_name(script)), str(folder), *arguments]
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    status = process.stdout.readline().strip()
    assert status == "0", log.read_text() if log.exists() else f"{process.args} ended: {process.poll()}"


def assert_detected_whole(shapes: Path, of: str) -> None:
    """ComfyUI knows native weights of these shapes as its class ``of``, which takes every one of them."""
    weights = {key: torch.empty(shape, device="meta") for key, shape in json.loads(shapes.read_text()).items()}
    config = comfy.model_detection.model_config_from_unet(weights, "")
    assert type(config).__name__ == of
    loaded = config.get_model({}, "", device="meta").diffusion_model.state_dict()
    expected = config.process_unet_state_dict(weights)
    assert {key: value.shape for key, value in loaded.items()} == {key: value.shape for key, value in expected.items()}


def guider_of(model, positive, negative, cfg: float) -> CFGGuider:
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def reference_of(preferred, dispreferred, positive, negative, cfg: float) -> FormulaGuider:
    guider = FormulaGuider(preferred, dispreferred)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def schedule(model, steps: int = 2, scheduler: str = "normal") -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def run(
    guider: CFGGuider,
    latent: dict,
    sampler: str = "euler",
    steps: int = 2,
    seed: int = 7,
    sigmas=None,
    mask=None,
    callback=None,
):
    """The final latent; the noise depends on the seed alone."""
    samples = latent["samples"]
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    sigmas = schedule(guider.model_patcher, steps) if sigmas is None else sigmas
    return guider.sample(
        noise,
        samples,
        sampler_object(sampler),
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )


def result(node, *args, **kwargs) -> tuple:
    """A node's outputs, whether it is written in ComfyUI's first or third node API."""
    if hasattr(node, "execute"):
        made = node.execute(*args, **kwargs)
        return getattr(made, "result", made)  # some of core's third API return a plain tuple
    return getattr(node(), node.FUNCTION)(*args, **kwargs)


def lora(model, seed: int, rank: int = 2, scale: float = 0.5, within: str = "") -> dict[str, torch.Tensor]:
    """A LoRA on every attention projection of a model (of a part of it), by native keys."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, weight in model.model.state_dict().items():
        name = key.removesuffix(".weight")
        if (
            name != key
            and weight.ndim == 2
            and within in key
            and any(part in key for part in ("attn", "to_q", "qkv", "proj"))
        ):
            state[f"{name}.lora_down.weight"] = (
                torch.randn(rank, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            )
            state[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * scale
            state[f"{name}.alpha"] = torch.tensor(float(rank))
    return state


class ResidualControl(ControlBase):
    """A control object: a fixed residual on the middle block of so many channels, scaled by the row's prompt, up to a
    share of the schedule."""

    def __init__(self, seed: int, until: float = 1.0, channels: int = 64):
        super().__init__()
        self.seed, self.until, self.channels = seed, until, channels

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.sigma_end = percent_to_timestep_function(self.until)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options=None):
        if t[0] < self.sigma_end:
            return None
        residual = torch.randn(1, self.channels, 1, 1, generator=torch.Generator().manual_seed(self.seed))
        residual = residual.to(x_noisy.device)
        scale = (
            4 * self.strength * cond["c_crossattn"].std(dim=(1, 2))
        )  # a row at a time: who shares the batch is no matter
        return {"middle": [residual * scale.reshape(-1, 1, 1, 1)], "output": [], "input": []}

    def copy(self):
        other = type(self)(self.seed, self.until, self.channels)
        self.copy_to(other)
        return other
