"""The text of the null prompt, where the graph states it: an encoding does not tell its text."""

from __future__ import annotations

from typing import Any

# Core's node that encodes a text and does nothing else.
ENCODER = "CLIPTextEncode"


def null_text(hidden: Any) -> str | None:
    """The text written in the encoder that a node's `null` is linked to; None where it is linked to anything else, or
    the text comes by a link.

    Args:
        hidden: the node's, with `prompt` and `unique_id`; None outside of a server.
    """
    graph, node_id = (hidden.prompt, hidden.unique_id) if hidden else (None, None)
    link = _inputs(graph, node_id).get("null")
    if not isinstance(link, list) or not link or (graph or {}).get(str(link[0]), {}).get("class_type") != ENCODER:
        return None
    text = _inputs(graph, link[0]).get("text")
    return text if isinstance(text, str) else None


def _inputs(graph: dict[str, Any] | None, node_id: object) -> dict[str, Any]:
    return (graph or {}).get(str(node_id), {}).get("inputs", {})
