"""An optimizer's state as a checkpoint holds it: tensors by name, and the rest in JSON's terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def flatten_optimizer(state_dict: dict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by `<parameter>.<name>`, and what is no tensor, in JSON's terms.

    bitsandbytes nests a part of its state, whose names are then `<parameter>.<name>.<name>`.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in _leaves(state_dict["state"]):
        if isinstance(value, Tensor):
            tensors[key] = value
        else:
            values[key] = value
    rest = {name: value for name, value in state_dict.items() if name not in ("state", "param_groups")}
    return tensors, {"values": values, "rest": rest}


def unflatten_optimizer(tensors: dict[str, Tensor], values: dict[str, Any], param_groups: list[dict]) -> dict:
    """The inverse of :func:`flatten_optimizer`, for an optimizer whose own ``param_groups`` hold (rates are set at each
    step)."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["values"]}.items():
        index, *path, name = key.split(".")
        entries = state.setdefault(int(index), {})
        for part in path:
            entries = entries.setdefault(part, {})
        entries[name] = value
    return {"state": state, "param_groups": param_groups, **values["rest"]}


def _leaves(nested: dict) -> Iterator[tuple[str, Any]]:
    """What is in dicts of dicts, each by its path, joined with dots."""
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{path}", leaf) for path, leaf in _leaves(value))
        else:
            yield str(name), value
