"""How one diffusion model is named in two worlds: diffusers' keys and the native ones of its authors, which ComfyUI
detects.

A *layout* is a function from diffusers' keys to places in the native file. A place is a native tensor or a part of one
(the native layouts fuse q, k and v); tensors are moved both ways along the same places, so export and import cannot
disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.errors import UserError


class LayoutError(UserError):
    """Weights that do not fit the layout of their family; the message is one sentence for the user."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the native layout.

    ``part`` of ``parts`` counts along dimension 0 of a fused tensor. ``swapped`` marks a modulation whose two halves
    are (scale, shift) in diffusers and (shift, scale) natively. ``flattened`` marks a table whose rows are one vector
    natively.
    """

    key: str
    part: int = 0
    parts: int = 1
    swapped: bool = False
    flattened: bool = False


Layout = Callable[[Iterable[str]], dict[str, Place]]


def placed(keys: Iterable[str], place_of: Callable[[str], Place | None]) -> dict[str, Place]:
    """The places of the keys that have one."""
    places = {key: place_of(key) for key in keys}
    return {key: place for key, place in places.items() if place is not None}


def require_all(keys: Iterable[str], places: Mapping[str, Place], family: str) -> None:
    """Raises LayoutError for a key that has no place, so that nothing trained is ever left out of a file."""
    lost = [key for key in keys if key not in places]
    if lost:
        raise LayoutError(
            f"{len(lost)} weights have no place in the native layout of {family}, the first is `{lost[0]}`; correct "
            "`family`"
        )


def to_native(tensors: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Tensors under diffusers' keys as tensors under native ones.

    Raises:
        LayoutError: when parts of a fused tensor are missing.
    """
    fused: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        place = places[key]
        tensor = tensor.flatten() if place.flattened else tensor
        fused.setdefault(place.key, {})[place.part] = _swap(tensor) if place.swapped else tensor
    counts = {place.key: place.parts for place in places.values()}
    native = {}
    for key, parts in fused.items():
        if len(parts) != counts[key]:
            raise LayoutError(f"`{key}` is fused from {counts[key]} weights, of which {len(parts)} are there")
        native[key] = torch.cat([parts[i] for i in sorted(parts)]) if len(parts) > 1 else parts[0]
    return native


def from_native(
    native: Mapping[str, Tensor], places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The inverse of :func:`to_native`.

    Args:
        native: tensors under native keys; keys that no place names are left alone.
        places: the place of each diffusers key.
        shapes: the shape of each diffusers key, which says where a fused tensor is cut.

    Raises:
        LayoutError: for a missing tensor or a shape that does not fit.
    """
    starts = _starts(places, shapes)
    tensors = {}
    for key, place in places.items():
        if place.key not in native:
            raise LayoutError(f"the file has no `{place.key}`; it is not whole, or of another family")
        tensor, shape = native[place.key], tuple(shapes[key])
        if place.parts > 1:
            tensor = tensor[starts[key] : starts[key] + shape[0]]
        if place.flattened and tensor.shape == (math.prod(shape),):
            tensor = tensor.reshape(shape)
        if tuple(tensor.shape) != shape:
            raise LayoutError(
                f"`{place.key}` has shape {list(native[place.key].shape)}, which does not give `{key}` its "
                f"{list(shape)}"
            )
        tensors[key] = _swap(tensor) if place.swapped else tensor
    return tensors


def _starts(places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The row at which each part of a fused tensor begins."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for key, place in sorted(places.items(), key=lambda item: item[1].part):
        starts[key] = ends.get(place.key, 0)
        ends[place.key] = starts[key] + shapes[key][0]
    return starts


def _swap(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first])


def rename(tail: str, table: Mapping[str, str]) -> str | None:
    """``tail`` with the longest matching prefix of ``table`` replaced (whole dotted names only), or None without a
    match."""
    names = tail.split(".")
    for end in range(len(names), 0, -1):
        head = ".".join(names[:end])
        if head in table:
            return ".".join([table[head], *names[end:]])
    return None
