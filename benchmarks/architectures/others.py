"""Rows of core's nodes, of other packs, and of weights in other precisions."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import comfy.cldm.cldm
import comfy.controlnet
import comfy.sd
import nodes as core_nodes
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras import nodes_context_windows
from running import result
from server import PromptServer

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

    return Case(network_of("Wan 2.1", (1, 16, 6, 8, 8)), after=after)


def network_of(name: str, latent: tuple) -> Network:
    return Network(**{**vars({**PICTURES, **FILMS}[name]), "latent": latent})


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


@cache
def pack(name: str) -> ModuleType:
    """Another pack, loaded from its folder in `CHATS_PACKS` as ComfyUI loads it.

    Raises:
        FileNotFoundError: when it is not there.
    """
    folder, module_name = Path(os.environ.get("CHATS_PACKS", "CHATS_PACKS")) / name, f"custom_nodes_{name}"
    if not (folder / "__init__.py").is_file():
        raise FileNotFoundError(f"{name} is not in CHATS_PACKS")
    spec = importlib.util.spec_from_file_location(
        module_name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    if not hasattr(PromptServer, "instance"):
        PromptServer(asyncio.new_event_loop())  # packs add routes to it
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def packs_node(name: str, node: str) -> type:
    return pack(name).NODE_CLASS_MAPPINGS[node]


def kj_compiled() -> Case:
    node = packs_node("ComfyUI-KJNodes", "TorchCompileModelAdvanced")

    def after(model: ModelPatcher) -> ModelPatcher:
        return result(node, model, "eager", False, "default", "false", True, 64, False)[0]

    return Case(PICTURES["Flux.1 dev"], after=after)


def kj_chunked() -> Case:
    node = packs_node("ComfyUI-KJNodes", "WanChunkFeedForward")
    return Case(FILMS["Wan 2.1"], after=lambda model: result(node, model, 2, 16)[0])


def swapped() -> Case:
    node = packs_node("ComfyUI-wanBlockswap", "wanBlockSwap")
    return Case(FILMS["Wan 2.1"], after=lambda model: result(node, model, 40, False, False, False)[0])


OTHERS: dict[str, Callable[[], Case]] = {
    "Wan 2.2 14B image to video, two experts": lambda: Case(FILMS["Wan 2.2 14B image to video"], experts=2),
    "Wan 2.2 5B, a first frame given": lambda: with_first_frame("Wan 2.2 5B"),
    "LTX-Video, a first frame given": lambda: with_first_frame("LTX-Video"),
    "ControlNet within regional prompts (SD1.5)": regional,
    "context windows in time after Apply (Wan 2.1)": windows,
    "bypass LoRAs before Apply, one for each (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], before=bypassed),
    "a bypass LoRA after Apply (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], after=partial(bypassed, seed=3)),
    "fp8 (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], models=fp8),
    "scaled fp8 (Flux.1)": lambda: Case(PICTURES["Flux.1 dev"], models=partial(fp8, scaled=True)),
    "KJNodes: torch.compile after Apply (Flux.1)": kj_compiled,
    "KJNodes: chunked feed-forward after Apply (Wan 2.1)": kj_chunked,
    "wanBlockswap after Apply (Wan 2.1)": swapped,
}
