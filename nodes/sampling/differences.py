"""How two patched versions of one loaded model differ, as low-rank differences that can be added to a part of a batch.

ComfyUI patches a weight by a list: each entry scales what is there by ``strength_model`` and adds ``strength`` times
its own. Whatever both lists have in common cancels; what is left must be plain LoRAs, or vectors (biases, norms).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...chats import lowrank

Patches = Mapping[str, list[tuple]]


class InexpressibleError(ValueError):
    """Two versions of one model that cannot share a pass; the message is one sentence for the user."""

    def __init__(self, what: str):
        super().__init__(
            f"`preferred` and `dispreferred` share one set of weights, and {what}, which cannot be added to one branch "
            "of a batch; load the base twice, from two files, or merge each side into a file of its own"
        )


class Term(NamedTuple):
    """What one patch adds to the final weight: ``coefficient`` times its value."""

    coefficient: float
    value: object
    offset: tuple[int, int, int] | None  # dimension, start, length of the part of the weight that it changes
    function: Callable[[Tensor], Tensor] | None  # applied to the change before it is added


def weight_differences(
    model: BaseModel, preferred: Patches, dispreferred: Patches
) -> dict[str, lowrank.LowRank | Tensor]:
    """What the dispreferred's weights have beyond the preferred's, by weight key: a vector in full, a matrix or kernel
    as factors.

    Raises:
        InexpressibleError: when a difference is no LoRA, with the weight and the reason.
    """
    differences = {}
    for key in sorted({*preferred, *dispreferred}):
        if terms := _difference(key, preferred.get(key, []), dispreferred.get(key, [])):
            shape = comfy.utils.get_attr(model, key).shape
            differences[key] = _vector(key, terms, shape) if len(shape) < 2 else _low_rank(key, terms, shape)
    return differences


def _difference(key: str, preferred: list[tuple], dispreferred: list[tuple]) -> list[Term]:
    """The terms of W⁻ − W⁺; those that both have, at the same strength, cancel."""
    (kept, ours), (kept_too, theirs) = _terms(key, preferred), _terms(key, dispreferred)
    if kept != kept_too:
        raise InexpressibleError(f"`{key}` is merged at different strengths ({kept:g} and {kept_too:g})")
    left = []
    for identity in {**ours, **theirs}:
        term = theirs.get(identity) or ours[identity]
        coefficient = theirs[identity].coefficient if identity in theirs else 0.0
        coefficient -= ours[identity].coefficient if identity in ours else 0.0
        if coefficient != 0.0:
            left.append(Term(coefficient, term.value, term.offset, term.function))
    return left


def _terms(key: str, patches: list[tuple]) -> tuple[float, dict[tuple, Term]]:
    """What a list of patches makes of a weight: the share of the unpatched weight that is kept, and the terms that are
    added to it.

    The key of a term is its patch's value, as an object, and its place: clones of a model share these objects.
    """
    kept = 1.0
    terms: dict[tuple, Term] = {}
    for strength, value, strength_model, offset, function in reversed(patches):
        identity = (id(value), offset)
        earlier = terms[identity].coefficient if identity in terms else 0.0
        terms[identity] = Term(earlier + kept * strength, value, offset, function)
        if offset is not None and strength_model != 1.0:
            raise InexpressibleError(f"a part of `{key}` is merged at strength {strength_model:g}")
        kept *= strength_model
    return kept, terms


def _vector(key: str, terms: list[Term], shape: torch.Size) -> Tensor:
    """The difference of two biases or norm weights, fp32."""
    total = torch.zeros(shape)
    for term in terms:
        kind, value = _plain(term.value)
        if kind != "diff" or term.offset is not None or term.function is not None or value[0].shape != shape:
            raise InexpressibleError(f"the vector `{key}` differs by {_name(term.value)}")
        total += term.coefficient * value[0].float().cpu()
    return total


def _low_rank(key: str, terms: list[Term], shape: torch.Size) -> lowrank.LowRank:
    return lowrank.combine([(term.coefficient, _factors(key, term, shape)) for term in terms])


def _factors(key: str, term: Term, shape: torch.Size) -> lowrank.LowRank:
    """One plain LoRA on a weight of this shape, or on a part of its outputs."""
    if not isinstance(term.value, LoRAAdapter):
        raise InexpressibleError(f"`{key}` differs by {_name(term.value)}")
    up, down, alpha, mid, dora_scale, reshape = term.value.weights
    if dora_scale is not None or reshape is not None:
        raise InexpressibleError(
            f"`{key}` differs by a {'DoRA' if dora_scale is not None else 'LoRA that changes its shape'}"
        )
    low = lowrank.from_lora(up.cpu(), down.cpu(), alpha, None if mid is None else mid.cpu())
    outputs = shape[0] if term.offset is None else term.offset[2]
    if (
        (term.offset is not None and term.offset[0] != 0)
        or low.up.shape[0] != outputs
        or low.down.numel() != low.rank * shape[1:].numel()
    ):
        raise InexpressibleError(f"a LoRA does not fit `{key}` {list(shape)}")
    low = lowrank.LowRank(low.down.reshape(low.rank, *shape[1:]), low.up)
    if term.function is not None:
        low = lowrank.LowRank(low.down, low.up[_permutation(key, term.function, outputs)])
    return low if term.offset is None else low.placed(term.offset[1], shape[0])


def _permutation(key: str, function: Callable[[Tensor], Tensor], outputs: int) -> Tensor:
    """The order into which a patch's function brings the outputs (it swaps the halves of Flux's last modulation)."""
    order = function(torch.arange(outputs, dtype=torch.float32)[:, None])
    if order.shape != (outputs, 1) or not torch.equal(
        order.flatten().sort().values, torch.arange(outputs, dtype=torch.float32)
    ):
        raise InexpressibleError(f"`{key}` differs by a LoRA that is reshaped on its way")
    return order.flatten().long()


def _plain(value: object) -> tuple[str, tuple]:
    """Kind and content of a patch that is no adapter, ``("diff", (tensor,))``; a plain ``(tensor,)``, the older form,
    is read as the same."""
    if isinstance(value, tuple) and len(value) == 1:
        return "diff", value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value[0], value[1]
    return "", ()


def _name(value: object) -> str:
    """What a patch is, in words."""
    if (name := getattr(value, "name", None)) is not None:
        return f"an adapter of the kind `{name}`"
    kind, _ = _plain(value)
    return {"diff": "a full difference", "set": "a replaced weight"}.get(kind, "a merge of whole models")
