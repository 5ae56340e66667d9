"""Rows of core's nodes and of weights in other precisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import comfy.cldm.cldm
import comfy.controlnet
import comfy.sd
import nodes as core_nodes
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras import nodes_context_windows
from running import result

from .films import FILMS
from .measure import Case
from .minis import Network, lora_on_all, noise, seeded
from .pictures import PICTURES


def with_first_frame(name: str) -> Case:
    network = FILMS[name]
    *_, frames, height, width = network.latent
    mask = torch.ones(1, 1, frames, height, width)
    mask[:, :, 0] = 0
    return Case(network, mask=mask)


def padded() -> Case:
    """The last quarter of each prompt is padding, which is masked."""
    mask = {"attention_mask": lambda seed, tokens: (torch.arange(tokens) < 0.75 * tokens)[None].long()}
    return Case(network_of("HunyuanVideo", outputs=mask))


def controlnet() -> comfy.controlnet.ControlNet:
    """ComfyUI's own, on the mini SD1.5."""
    config = {
        k: v for k, v in PICTURES["SD1.5"].config.items() if k not in ("out_channels", "transformer_depth_output")
    }
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.manual_cast
    )
    network.load_state_dict(seeded(network, 5))
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), manual_cast_dtype=torch.float32)


def regions(prompt: list, control: comfy.controlnet.ControlNet) -> list:
    """Two masked regions, one of them with a ControlNet, and the whole."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    left = result(core_nodes.ConditioningSetMask, prompt, mask, "default", 1.0)[0]
    right = result(core_nodes.ConditioningSetMask, [[noise(5, *prompt[0][0].shape), {}]], 1 - mask, "default", 0.8)[0]
    hint = noise(6, 1, 64, 64, 3).sigmoid()
    (left, _) = result(core_nodes.ControlNetApplyAdvanced, left, left, control, hint, 0.7, 0.0, 1.0)
    return [*left, *right, [noise(6, *prompt[0][0].shape), {}]]


def regional() -> Case:
    return Case(PICTURES["SD1.5"], conditions=partial(regions, control=controlnet()))


def windows() -> Case:
    def after(model: ModelPatcher) -> ModelPatcher:
        settings = (3, 1, "standard_static", 1, False, "pyramid", 2, False)
        return result(nodes_context_windows.ContextWindowsManualNode, model, *settings)[0]

    return Case(network_of("Wan 2.1", latent=(1, 16, 6, 8, 8)), after=after)


def network_of(name: str, **changes: object) -> Network:
    return replace({**PICTURES, **FILMS}[name], **changes)


def bypassed(model: ModelPatcher, seed: int) -> ModelPatcher:
    """With a LoRA by core's bypass loaders, which compute it beside the weights."""
    return comfy.sd.load_bypass_lora_for_models(model, None, lora_on_all(model, 60 + seed, rank=2), 1.0, 0.0)[0]


def fp8(network: Network, seed: int, scaled: bool = False) -> ModelPatcher:
    weights = network.weights(seed)
    if not scaled:
        return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float8_e4m3fn})
    for key in [key for key, value in weights.items() if value.ndim == 2 and "blocks" in key]:
        scale = weights[key].abs().max() / 448
        weights[key] = (weights[key] / scale).to(torch.float8_e4m3fn)
        weights[key.replace(".weight", ".scale_weight")] = scale
    weights["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return comfy.sd.load_diffusion_model_state_dict(weights)


def as_fp8(network: Network, seed: int) -> ModelPatcher:
    """The weights of :func:`fp8` in fp32, so that what is merged into them is not rounded."""
    weights = {key: value.to(torch.float8_e4m3fn).float() for key, value in network.weights(seed).items()}
    return comfy.sd.load_diffusion_model_state_dict(weights)


OTHERS: dict[str, Callable[[], Case]] = {
    "Wan 2.2 14B image to video, two experts": lambda: Case(FILMS["Wan 2.2 14B image to video"], experts=2),
    "Wan 2.2 5B, a first frame given": lambda: with_first_frame("Wan 2.2 5B"),
    "LTX-Video, a first frame given": lambda: with_first_frame("LTX-Video"),
    "HunyuanVideo, prompts that are padded": padded,
    "ControlNet within regional prompts (SD1.5)": regional,
    "context windows in time after Apply (Wan 2.1)": windows,
    "bypass LoRAs before Apply, one for each (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], before=bypassed),
    "a bypass LoRA after Apply (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], after=partial(bypassed, seed=3)),
    "fp8 (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], models=fp8),
    "fp8 (Flux.1), a LoRA on the dispreferred alone, not rounded in the formula": lambda: Case(
        PICTURES["Flux.1 dev"], models=fp8, formulas=as_fp8, strengths=(0.0, 1.2)
    ),
    "scaled fp8 (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], models=partial(fp8, scaled=True)),
}
