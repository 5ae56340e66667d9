"""Work on a MODEL where ComfyUI has loaded it: a sampler, by its interface, that does not sample.

The stock guider brings all that comes before a sampler's first step: loading, the MODEL's own patches and options, its
memory. Afterwards the network is as it was.
"""

from __future__ import annotations

import math
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
from .ordinary import Weights, ordinary

# Rows of a sampling run that are thought to take as much memory as a step of training: ComfyUI makes room for them.
ROWS = 4
OVERRIDE = "optimized_attention_override"
# Backward passes of torch's attention as the graph names them; the first repeats itself only where it is told strictly,
# and others raise then.
FLASH_BACKWARD, ATTENTION_BACKWARD = "ScaledDotProductFlashAttentionBackward", "ScaledDotProduct"
# How many steps of the graph are looked through for it: what follows are changes of shape.
STEPS_AFTER_ATTENTION = 6


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
        weights = Weights(model, noise.device)

        def load() -> None:
            asked = (model_wrap.model_patcher, noise.shape, model_wrap.conds, model_wrap.model_options)
            weights.restore()
            comfy.sampler_helpers.prepare_sampling(*asked)
            weights.prepare()

        weights.prepare()
        try:
            self.work(Errors(model, extra_args["model_options"], noise.device, load))
        finally:
            weights.restore()
        return torch.zeros_like(noise)


def with_loaded(
    model: ModelPatcher, prompt: Conditioning, latent: Tensor, work: Callable[[Errors], None], trained_bytes: int = 0
) -> None:
    """Calls ``work`` with the errors of a MODEL, loaded for latents of this size, with gradients.

    Args:
        prompt: any of those that will be asked: some need models of their own loaded.
        latent: [1, channels, …], the largest.
        trained_bytes: what the work itself keeps on the graphics card; ComfyUI leaves that free too.

    Raises:
        ValueError: for a MODEL that ComfyUI cannot load in a way that it can be trained on.
    """
    with torch.inference_mode(False), torch.enable_grad(), _in_training(), _repeatable():
        model = _with_weights_that_stay(model)
        options = model.model_options.setdefault("transformer_options", {})
        options[OVERRIDE] = _differentiable_attention
        guider = custom_sampler.Guider_Basic(model)
        guider.set_conds(ordinary(prompt))
        count = ROWS + math.ceil(trained_bytes / max(1.0, model.memory_required([1, *latent.shape[1:]])))
        rows = torch.zeros(1, *latent.shape[1:]).expand(count, *latent.shape[1:])
        guider.sample(rows, rows, Work(work), torch.tensor([1.0, 0.0]), seed=0, disable_pbar=True)


def _with_weights_that_stay(model: ModelPatcher) -> ModelPatcher:
    """A clone that may be changed. Under dynamic VRAM weights come and go while a graph still needs them; the clone
    that is without it is loaded anew from the file."""
    if not getattr(model, "is_dynamic", bool)():
        return model.clone()
    if model.cached_patcher_init is None:
        raise ValueError(
            "`model` comes from a loader that cannot load it a second time, which training needs under dynamic VRAM; "
            "connect ComfyUI's own loader, or start ComfyUI with --disable-dynamic-vram"
        )
    return model.clone(disable_dynamic=True)


def _differentiable_attention(attention: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own attention: the faster ones have no backward pass. Its backward pass on CUDA adds in an order that is
    another each time, unless it is told not to."""
    attended = comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
    node = attended.grad_fn
    for _ in range(STEPS_AFTER_ATTENTION):
        if node is None:
            break
        if node.name().startswith(ATTENTION_BACKWARD):
            _repeat(node)
            break
        node = node.next_functions[0][0]
    return attended


def _repeat(node: Any) -> None:
    """Tells torch to repeat itself around this step of a backward pass alone: everywhere, each product of matrices
    would warn, or be refused. An error may leave it on."""
    if torch.are_deterministic_algorithms_enabled():
        return
    warn_only = not node.name().startswith(FLASH_BACKWARD)
    node.register_prehook(lambda gradients: torch.use_deterministic_algorithms(True, warn_only=warn_only))
    node.register_hook(lambda inputs, outputs: torch.use_deterministic_algorithms(False))


@contextmanager
def _in_training() -> Iterator[None]:
    """With ComfyUI's code told that gradients are wanted, where it can be told, and copying weights from RAM on no
    streams of its own: those do not know of the graph, and would write over weights that it still needs."""
    told = {"in_training": True, "NUM_STREAMS": 0}
    before = {name: getattr(comfy.model_management, name) for name in told if hasattr(comfy.model_management, name)}
    try:
        for name in before:
            setattr(comfy.model_management, name, told[name])
        yield
    finally:
        for name, value in before.items():
            setattr(comfy.model_management, name, value)


@contextmanager
def _repeatable() -> Iterator[None]:
    """With convolutions that give the same numbers each time, so that a run that went on ends as one that never
    stopped."""
    before, everywhere = torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
        torch.use_deterministic_algorithms(everywhere, warn_only=warns)
