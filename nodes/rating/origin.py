"""Where a picture comes from, as the graph tells: the seeds and the model files above the node that saves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SEEDS = ("seed", "noise_seed")
# Inputs that hold the number of a node whose output is linked to a seed.
NUMBERS = (*SEEDS, "value", "index", "int", "number")
MODELS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
MOST = 64

Graph = dict[str, dict[str, Any]]


def nodes_above(graph: Graph, node_id: str | None) -> list[dict[str, Any]]:
    """The nodes that a node's inputs come from, it among them; the whole graph where the node is not in it."""
    if node_id not in graph:
        return list(graph.values())
    found: dict[str, None] = {}
    waiting = [node_id]
    while waiting:
        name = waiting.pop()
        if name in graph and name not in found:
            found[name] = None
            waiting += [str(value[0]) for value in node_inputs(graph[name]).values() if is_link(value)]
    return [graph[name] for name in found]


def seeds_and_models(graph: Graph | None, node_id: str | None) -> tuple[list[int], list[str]]:
    """Seeds and model files that the pictures of a node were made with, each once, in order."""
    graph = graph or {}
    nodes = nodes_above(graph, node_id)
    seeds = {seed for node in nodes for name in SEEDS for seed in _numbers(graph, node_inputs(node).get(name))}
    models = {
        value
        for node in nodes
        for value in node_inputs(node).values()
        if isinstance(value, str) and value.lower().endswith(MODELS) and "\n" not in value
    }
    return sorted(seeds)[:MOST], sorted(models)[:MOST]


def _numbers(graph: Graph, value: Any) -> Iterator[int]:
    """A number, or the numbers of the node that it is linked to."""
    if is_link(value):
        inputs = node_inputs(graph.get(str(value[0]), {}))
        value = next((inputs[name] for name in NUMBERS if isinstance(inputs.get(name), int)), None)
    if isinstance(value, int) and not isinstance(value, bool):
        yield value


def is_link(value: Any) -> bool:
    """Whether an input's value is the output of another node: its id, and which output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def node_inputs(node: dict[str, Any]) -> dict[str, Any]:
    """A node's inputs by name, whatever a graph has in their place."""
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}
