"""Rows of other packs themselves, where `CHATS_PACKS` names a folder of them; none is a part of this project."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from running import result
from server import PromptServer

from .films import FILMS
from .measure import Case
from .minis import Network, noise, seeded
from .others import network_of
from .pictures import PICTURES

ANIMATEDIFF, KJ, GGUF = "ComfyUI-AnimateDiff-Evolved", "ComfyUI-KJNodes", "ComfyUI-GGUF"


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


def part(name: str, module: str) -> ModuleType:
    """A module of a pack, by its dotted name."""
    return importlib.import_module(f"{pack(name).__name__}.{module}")


def on_the_model(name: str, node: str, network: Network, *settings: object) -> Case:
    """A pack's node, from a model and settings to a model, after *CHATS Apply*."""
    chosen = packs_node(name, node)
    return Case(network, after=lambda model: result(chosen, model, *settings)[0])


def normalized_attention(before: bool) -> Case:
    chosen = packs_node(KJ, "WanVideoNAG")
    prompt = [[noise(5, 1, 16, 4096), {}]]

    def put(model: ModelPatcher, seed: int = 0) -> ModelPatcher:
        return result(chosen, model, prompt, 11.0, 0.25, 2.5)[0]

    network = network_of("Wan 2.1", latent=(1, 16, 3, 8, 8))
    # The node encodes a prompt when it runs, with the weights as they then are.
    return Case(network, together=True, without="text_embedding", **{"before" if before else "after": put})


def animated(before: bool) -> Case:
    """AnimateDiff's own classes, with motion modules for the blocks that the mini SD1.5 has."""
    chosen, motion = (
        packs_node(ANIMATEDIFF, "ADE_UseEvolvedSampling"),
        part(ANIMATEDIFF, "animatediff.motion_module_ad"),
    )
    injection = part(ANIMATEDIFF, "animatediff.model_injection")
    info = motion.AnimateDiffInfo("SD1.5", motion.AnimateDiffFormat.ANIMATEDIFF, motion.AnimateDiffVersion.V3, "mini")
    kinds = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks"
    with torch.device("meta"):
        modules = motion.AnimateDiffModel(
            {f"{kinds}.{n}.pos_encoder.pe": torch.zeros(1, 32, 320) for n in (0, 1)}, info
        )
    for name in ("down", "up"):
        made = motion.MotionModule(
            320, temporal_pe_max_len=32, block_type=name, attention_block_types=("Temporal_Self",) * 2
        )
        made.load_state_dict(seeded(made, 8))
        setattr(modules, f"{name}_blocks", torch.nn.ModuleList([made]))
    modules.layer_channels = (320,)

    def put(model: ModelPatcher, seed: int = 0) -> ModelPatcher:
        patcher = injection.create_MotionModelPatcher(modules, model.load_device, model.offload_device)
        group = injection.MotionModelGroup(patcher)
        return result(chosen, model, "use existing", group)[0]

    return Case(network_of("SD1.5", latent=(4, 4, 8, 8)), **{"before" if before else "after": put})


@cache
def gguf_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    folder_paths.folder_names_and_paths["diffusion_models"][1].add(".gguf")
    return folder


def gguf(network: Network, seed: int) -> ModelPatcher:
    """Written as Q8_0, and loaded by the pack's loader."""
    import gguf as format

    path = gguf_folder() / f"{seed}.gguf"
    if not path.is_file():
        writer = format.GGUFWriter(path, "flux")
        for key, value in network.weights(seed).items():
            quantized = value.ndim == 2 and value.shape[1] % 32 == 0 and "blocks" in key
            kind = format.GGMLQuantizationType.Q8_0 if quantized else format.GGMLQuantizationType.F32
            writer.add_tensor(key, format.quants.quantize(value.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return result(packs_node(GGUF, "UnetLoaderGGUF"), path.name)[0]


FLUX, WAN = PICTURES["Flux.1 dev"], FILMS["Wan 2.1"]
PACKS: dict[str, Callable[[], Case]] = {
    "ComfyUI-GGUF, Q8_0 (Flux.1)": lambda: Case(FLUX, models=gguf),
    "KJNodes, torch.compile after Apply (Flux.1)": lambda: on_the_model(
        KJ, "TorchCompileModelAdvanced", FLUX, "eager", False, "default", "false", True, 64, False
    ),
    "KJNodes, chunked feed-forward after Apply (Wan 2.1)": lambda: on_the_model(KJ, "WanChunkFeedForward", WAN, 2, 16),
    "KJNodes, NAG after Apply (Wan 2.1)": partial(normalized_attention, before=False),
    "KJNodes, NAG before Apply, on each (Wan 2.1)": partial(normalized_attention, before=True),
    "wanBlockswap after Apply (Wan 2.1)": lambda: on_the_model(
        "ComfyUI-wanBlockswap", "wanBlockSwap", WAN, 40, False, False, False
    ),
    "AnimateDiff-Evolved after Apply (SD1.5)": partial(animated, before=False),
    "AnimateDiff-Evolved before Apply, on each (SD1.5)": partial(animated, before=True),
}
