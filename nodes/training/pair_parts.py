"""A pair's MODEL taken apart: the base that its LoRA is to go on, and what the preferred member has more than it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher

from ...chats.distillation import Negative
from ...chats.lowrank import LowRank
from ...chats.lowrank.truncation import in_rank_of
from ...chats.pair import PairMetadata
from ..advice import ATTACHMENT, DISTILLED
from ..sampling.differences import weight_differences
from ..sampling.pairing import pair_of
from ..sampling.run import KEY, Interval
from ..sampling.single_use import saying_nothing
from .adapters import PREFIX, STUDENT, Adapters
from .digests import model_digest
from .saved_run import RunError

WEIGHT = ".weight"


@dataclass(frozen=True)
class Parts:
    """
    Attributes:
        base: what the LoRA goes on: what two members on one base have in common, of two models the preferred one.
        more: by layer, the preferred member's weights beyond the base's.
        negative: whether the dispreferred member is the base itself.
        dispreferred: what it is, see :mod:`.digests`.
    """

    base: ModelPatcher
    more: Mapping[str, LowRank]
    negative: Negative
    interval: Interval
    metadata: PairMetadata | None
    dispreferred: str


def parts_of(model: ModelPatcher) -> Parts:
    """
    Raises:
        RunError: for a MODEL that is no pair, or that got weights of its own since it was joined.
    """
    pair = pair_of(model)
    if pair is None:
        raise RunError("`model` is no pair; connect the MODEL of CHATS Apply")
    if model.patches_uuid != pair.baseline.patches_uuid:
        raise RunError(
            "`model` has a LoRA that was put on it after CHATS Apply, so there is no telling whether it belongs to the "
            "base; put it on the base, before the pair's own LoRAs, or use it beside the distilled LoRA"
        )
    shares = model.is_clone(pair.dispreferred)
    base, more = _alone(model), {}
    if shares:
        base.patches = _common(model.patches, pair.dispreferred.patches)
        # Made of the two, so that the weights are not patched anew in each run.
        base.patches_uuid = uuid.uuid5(model.patches_uuid, str(pair.dispreferred.patches_uuid))
        differences = weight_differences(model.model, base.patches, model.patches)
        more = {
            key.removeprefix(PREFIX).removesuffix(WEIGHT): each
            for key, each in differences.items()
            if isinstance(each, LowRank) and key.startswith(PREFIX) and key.endswith(WEIGHT)
        }
    is_base = shares and _counts(pair.dispreferred.patches) == _counts(base.patches)
    return Parts(
        base,
        more,
        "base" if is_base else "dispreferred",
        pair.interval,
        model.attachments.get(ATTACHMENT),
        model_digest(pair.dispreferred),
    )


@torch.no_grad()
def begin_with(more: Mapping[str, LowRank], adapters: Adapters) -> None:
    """Makes the student what the preferred member is, or as near to it as its layers and rank allow."""
    for name, lora in adapters.loras[STUDENT].items():
        if name in more:
            begun = in_rank_of(more[name], lora.down.cpu())
            lora.down.copy_(begun.down)
            lora.up.copy_(begun.up)


def _alone(model: ModelPatcher) -> ModelPatcher:
    """A clone that samples as one model."""
    alone = saying_nothing(model.clone())
    others = {kind: {key: each for key, each in keyed.items() if key != KEY} for kind, keyed in alone.wrappers.items()}
    # None is left empty: a model that never was a pair has none of a kind that nobody added.
    alone.wrappers = {kind: keyed for kind, keyed in others.items() if keyed}
    for name in (ATTACHMENT, DISTILLED):
        alone.remove_attachments(name)
    return alone


def _counts(patches: Mapping[str, list]) -> dict[str, int]:
    return {key: len(each) for key, each in patches.items() if each}


def _common(one: Mapping[str, list], other: Mapping[str, list]) -> dict[str, list]:
    """The patches that two clones of a model got before they were two, by weight."""
    common = {}
    for key in one.keys() & other.keys():
        same = 0
        while same < min(len(one[key]), len(other[key])) and one[key][same] is other[key][same]:
            same += 1
        if same:
            common[key] = one[key][:same]
    return common
