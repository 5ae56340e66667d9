"""Which file the connected MODEL was loaded from, where the graph leaves no doubt.

A MODEL itself says it in the newest ComfyUIs only. The graph says it in all: from the node's `model` up, through nodes
that take one MODEL, to a node that takes none and names one model file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import nodes as comfy_nodes
from comfy.model_patcher import ModelPatcher

from ..rating.origin import Graph, is_link, node_inputs

# ComfyUI's, and that of its GGUF loader.
FOLDERS = ("checkpoints", "diffusion_models", "unet_gguf")


def base_file(model: ModelPatcher, graph: Graph | None, node_id: str | None) -> str | None:
    """The name of the file, without its folder; None where several could be meant, or none is named.

    Args:
        model: what is connected.
        graph: as it was queued.
        node_id: of the node that it is connected to.
    """
    name = _named_above(graph or {}, node_id)
    stated = _stated_by(model)
    if name is None or not name.isprintable() or stated not in (None, name):
        return None
    return name


def _named_above(graph: Graph, node_id: str | None) -> str | None:
    link: Any = node_inputs(graph.get(str(node_id), {})).get("model")
    # No way up is longer than the graph; one that is runs in a circle.
    for _ in graph:
        if not is_link(link):
            return None
        inputs = node_inputs(graph.get(str(link[0]), {}))
        models = [value for value in inputs.values() if _gives_model(graph, value)]
        files = {file for value in inputs.values() for file in _files(value)}
        if not models:
            return files.pop() if len(files) == 1 else None
        if len(models) > 1 or files:
            return None
        (link,) = models
    return None


def _gives_model(graph: Graph, link: Any) -> bool:
    if not is_link(link):
        return False
    origin = comfy_nodes.NODE_CLASS_MAPPINGS.get(graph.get(str(link[0]), {}).get("class_type"))
    kinds = getattr(origin, "RETURN_TYPES", ())
    # Whatever a node gives that says nothing of its outputs may be a MODEL.
    return link[1] >= len(kinds) or kinds[link[1]] in ("MODEL", "*")


def _files(value: Any) -> Iterator[str]:
    if isinstance(value, str) and "\0" not in value:
        paths = (folder_paths.get_full_path(folder, value) for folder in FOLDERS)
        yield from (Path(path).name for path in paths if path is not None)


def _stated_by(model: ModelPatcher) -> str | None:
    """What a newer ComfyUI keeps of the call that loaded a MODEL."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    return Path(arguments[0]).name if arguments and isinstance(arguments[0], str) else None
