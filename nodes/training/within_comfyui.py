"""Work on a MODEL where ComfyUI has loaded it: a sampler, by its interface, that does not sample.

The stock guider brings all that comes before a sampler's first step: loading, the MODEL's own patches and options, its
memory. Afterwards the network is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .errors import Conditioning, Errors
from .ordinary import make_ordinary, ordinary

# Rows of a sampling run that are thought to take as much memory as a step of training: ComfyUI makes room for them.
ROWS = 4
OVERRIDE = "optimized_attention_override"


class Work(comfy.samplers.Sampler):
    """What the guider calls in a sampler's place.

    Args:
        work: gets the errors of the loaded MODEL.
    """

    def __init__(self, work: Callable[[Errors], None]):
        self.work = work

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        model = model_wrap.inner_model

        def load() -> None:
            asked = (model_wrap.model_patcher, noise.shape, model_wrap.conds, model_wrap.model_options)
            comfy.sampler_helpers.prepare_sampling(*asked)
            make_ordinary(model, noise.device)

        make_ordinary(model, noise.device)
        self.work(Errors(model, extra_args["model_options"], noise.device, load))
        return torch.zeros_like(noise)


def with_loaded(model: ModelPatcher, prompt: Conditioning, latent: Tensor, work: Callable[[Errors], None]) -> None:
    """Calls ``work`` with the errors of a MODEL, loaded for latents of this size, with gradients.

    Args:
        prompt: any of those that will be asked: some need models of their own loaded.
        latent: [1, channels, …], the largest.
    """
    # Whoever trains needs weights that stay where they are, which newer ComfyUIs on CUDA only give to such a clone.
    model = model.clone(disable_dynamic=True) if getattr(model, "is_dynamic", bool)() else model.clone()
    options = model.model_options.setdefault("transformer_options", {})
    options[OVERRIDE] = _differentiable_attention
    with torch.inference_mode(False), torch.enable_grad(), _in_training():
        guider = custom_sampler.Guider_Basic(model)
        guider.set_conds(ordinary(prompt))
        rows = torch.zeros(ROWS, *latent.shape[1:])
        guider.sample(rows, rows, Work(work), torch.tensor([1.0, 0.0]), seed=0, disable_pbar=True)


def _differentiable_attention(attention: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own attention: the faster ones have no backward pass."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


@contextmanager
def _in_training() -> Iterator[None]:
    """With ComfyUI's code told that gradients are wanted, where it can be told."""
    management = comfy.model_management
    before = getattr(management, "in_training", None)
    if before is not None:
        management.in_training = True
    try:
        yield
    finally:
        if before is not None:
            management.in_training = before
