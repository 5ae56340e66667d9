"""Hands on to the dispreferred model what other nodes put on a pair's MODEL after the two models were joined.

A LoRA or an attention patch that is added after *CHATS Apply* is meant for the model as a user sees it: both members.
What the preferred model carried before stays its own.
"""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, copy_nested_dicts, merge_nested_dicts

from .transplant import Transplant

# Down to which options are named: transformer_options.wrappers.<kind>.<key>.
NAMED_LEVELS = 4


class Baseline(NamedTuple):
    """The preferred model as it was when the two were joined."""

    patches_uuid: uuid.UUID
    patch_counts: dict[str, int]  # patches by weight key; nodes only ever append
    object_patches: dict[str, object]
    injections: frozenset[str]
    additional_models: frozenset[str]
    options: dict

    @classmethod
    def of(cls, model: ModelPatcher) -> Baseline:
        return cls(
            patches_uuid=model.patches_uuid,
            patch_counts={key: len(patches) for key, patches in model.patches.items()},
            object_patches=model.object_patches.copy(),
            injections=frozenset(model.injections),
            additional_models=frozenset(model.additional_models),
            options=_sampling_options(model),
        )

    def hand_on(self, model: ModelPatcher, dispreferred: ModelPatcher) -> tuple[ModelPatcher, dict]:
        """A clone of ``dispreferred`` with the patches that ``model`` got since, and model options for the clone: its
        own, with those that ``model`` got since."""
        clone = self.with_later_patches(model, dispreferred)
        with ejected(model), ejected(clone):
            transplant = Transplant(model, clone)
            for name, value in model.object_patches.items():
                if name not in self.object_patches or not _same_after_clones(value, self.object_patches[name]):
                    clone.add_object_patch(name, transplant(value, name))
            for name, injections in model.injections.items():
                if name not in self.injections:
                    clone.set_injections(name, transplant(injections, name))
            later = later_options(_sampling_options(model), self.options, same=_same_after_clones)
            options = merged_options(clone.model_options, _transplanted(later, transplant))
        for name, models in model.additional_models.items():
            if name not in self.additional_models:
                clone.set_additional_models(name, models)
        return clone, options

    def with_later_patches(self, model: ModelPatcher, dispreferred: ModelPatcher) -> ModelPatcher:
        """A clone of ``dispreferred`` with the weight patches that ``model`` got since."""
        clone = dispreferred.clone()
        if model.patches_uuid != self.patches_uuid:
            for key, patches in model.patches.items():
                clone.patches.setdefault(key, []).extend(patches[self.patch_counts.get(key, 0) :])
            # Made of the two sets' own, so it is the same in every run, and the weights are not patched anew each time.
            clone.patches_uuid = uuid.uuid5(dispreferred.patches_uuid, str(model.patches_uuid))
        return clone

    def order_wrappers(self, model_options: dict, key: str, shares_wrappers: bool) -> None:
        """Puts the wrappers in the model options of a run in the order that the pair's own, under ``key``, need.

        PREDICT_NOISE: the pair's last, so that it sees the guidance that others set. CALC_COND_BATCH: first what was
        added after the two were joined, once around both members; then the pair's, which parts them; then the
        preferred's own, which are around both as well if the dispreferred has the same (``shares_wrappers``).
        """
        wrappers = model_options["transformer_options"]["wrappers"]
        others = {name: added for name, added in wrappers[WrappersMP.PREDICT_NOISE].items() if name != key}
        wrappers[WrappersMP.PREDICT_NOISE] = {**others, key: wrappers[WrappersMP.PREDICT_NOISE][key]}
        before = self.options["transformer_options"]["wrappers"][WrappersMP.CALC_COND_BATCH]
        now = wrappers[WrappersMP.CALC_COND_BATCH]
        if shares_wrappers:
            others = {name: added for name, added in now.items() if name != key}
            wrappers[WrappersMP.CALC_COND_BATCH] = {**others, key: now[key]}
            return
        after = later_options(now, before, same=_same_after_clones)
        wrappers[WrappersMP.CALC_COND_BATCH] = {
            "after": [wrapper for added in after.values() for wrapper in added],
            key: now[key],
            "before": [wrapper for name, own in before.items() if name != key for wrapper in own],
        }


@contextmanager
def ejected(model: ModelPatcher) -> Iterator[None]:
    """The network without what is injected into it, where modules have the names that weights have: other modules may
    be put between, and a layer's forward is another."""
    loaded = (each.model for each in comfy.model_management.current_loaded_models)
    clones = (patcher for patcher in loaded if patcher is not None and patcher.is_clone(model))
    with next((patcher for patcher in clones if patcher.is_injected), model).use_ejected():
        yield


def _transplanted(options: dict, transplant: Transplant, path: tuple[str, ...] = ()) -> dict:
    """Options with the dispreferred's modules in them, in nested dicts."""
    made = {}
    for name, value in options.items():
        where = (*path, str(name))
        nested = isinstance(value, dict) and len(where) < NAMED_LEVELS
        made[name] = _transplanted(value, transplant, where) if nested else transplant(value, ".".join(where))
    return made


def option_difference(one: ModelPatcher, other: ModelPatcher) -> str | None:
    """The dotted name of the first thing, weight patches aside, in which two clones of a model differ; None where there
    is nothing."""
    for name in sorted({*one.object_patches, *other.object_patches}):
        if not _same_object(one.object_patches.get(name), other.object_patches.get(name)):
            return name
    for name in sorted({*one.injections, *other.injections}):
        # Clones keep the very injections; others of the same name are another node's, or another file's.
        if list(map(id, one.injections.get(name, []))) != list(map(id, other.injections.get(name, []))):
            return name
    options = [_sampling_options(model) for model in (one, other)]
    for now, before in (options, options[::-1]):
        path, found = [], later_options(now, before, same=_same_after_clones)
        while isinstance(found, dict) and found:
            name, found = next(iter(found.items()))
            path.append(str(name))
        if path:
            return ".".join(path)
    return None


def _same_object(one: object, other: object) -> bool:
    """Whether two object patches do the same; model sampling nodes make a new object, of a new class, each time."""
    if one is other:
        return True
    if not (isinstance(one, torch.nn.Module) and isinstance(other, torch.nn.Module)):
        return False
    if [base.__qualname__ for base in type(one).__mro__] != [base.__qualname__ for base in type(other).__mro__]:
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def later_options(
    now: dict, before: dict, leave_out: tuple[str, ...] = (), same: Callable[[object, object], bool] = operator.is_
) -> dict:
    """What ``now`` has that ``before`` has not, in nested dicts: new keys, replaced values, items added to lists.

    Wrappers of CALC_COND_BATCH are left out: they run once, around both models.
    """
    later = {}
    for name, value in now.items():
        if name in leave_out:
            continue
        if name not in before:
            later[name] = value
        elif isinstance(value, dict) and isinstance(before[name], dict):
            skip = (WrappersMP.CALC_COND_BATCH,) if name == "wrappers" else ()
            if inner := later_options(value, before[name], skip, same):
                later[name] = inner
        elif isinstance(value, list) and isinstance(before[name], list):
            old = before[name]
            if added := [item for index, item in enumerate(value) if index >= len(old) or not same(item, old[index])]:
                later[name] = added
        elif not same(value, before[name]):
            later[name] = value
    return later


def merged_options(options: dict, later: dict) -> dict:
    """``options`` with ``later`` on top, in nested dicts; neither is changed. (In 0.3.64 ComfyUI's own merge keeps the
    older value.)"""
    merged = dict(options)
    for name, value in later.items():
        own = options.get(name)
        if isinstance(own, dict) and isinstance(value, dict):
            merged[name] = merged_options(own, value)
        elif isinstance(own, list) and isinstance(value, list):
            merged[name] = [*own, *value]
        else:
            merged[name] = value
    return merged


def _sampling_options(model: ModelPatcher) -> dict:
    """The model's options with its wrappers and callbacks merged in, as ComfyUI has them while sampling."""
    options = copy_nested_dicts(model.model_options)
    transformer_options = options.setdefault("transformer_options", {})
    for name in ("wrappers", "callbacks"):
        transformer_options[name] = merge_nested_dicts(transformer_options.get(name, {}), getattr(model, name))
    return options


def _same_after_clones(value: object, before: object) -> bool:
    """Whether an option is still what it was, as far as can be told: ComfyUI up to 0.8 copies callable objects deeply
    each time it clones a model, so two objects of one class count as the same."""
    if value is before:
        return True
    if type(value) is not type(before) or isinstance(value, (FunctionType, BuiltinFunctionType)):
        return False
    if isinstance(value, MethodType) and isinstance(before, MethodType):
        return value.__func__ is before.__func__
    if isinstance(value, (bool, int, float, str, tuple)):
        return value == before
    return True
