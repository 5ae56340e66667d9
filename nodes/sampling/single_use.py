"""A pair where one model's weights are asked for, as by nodes that merge and save: only the preferred's come, and it is
said."""

from __future__ import annotations

import logging

from comfy.model_patcher import ModelPatcher

from ..advice import show_lines


class _SaysWhatIsLost:
    """Mixed into the class of a pair's ModelPatcher; clones are of the same class.

    ComfyUI has no callback for these. Sampling itself asks for all patches at once (weight hooks), and never patches
    weights by force.
    """

    def get_key_patches(self, filter_prefix: str | None = None) -> dict:
        if filter_prefix is not None:
            _say("merged")
        return super().get_key_patches(filter_prefix)  # type: ignore[misc]

    def model_state_dict(self, filter_prefix: str | None = None) -> dict:
        if filter_prefix is not None:  # a LoRA made of them
            _say("saved")
        return super().model_state_dict(filter_prefix)  # type: ignore[misc]

    def state_dict_for_saving(self, *args: object, **kwargs: object) -> dict:
        _say("saved")
        return super().state_dict_for_saving(*args, **kwargs)  # type: ignore[misc]

    def partially_load(
        self, device_to: object, extra_memory: float = 0, force_patch_weights: bool = False, **kwargs: object
    ) -> object:
        if force_patch_weights:  # saving, before ComfyUI had state_dict_for_saving
            _say("saved")
        return super().partially_load(device_to, extra_memory, force_patch_weights, **kwargs)  # type: ignore[misc]


def saying_what_is_lost(pair: ModelPatcher) -> ModelPatcher:
    """The pair's MODEL, which says so where a node takes the preferred's weights for all of it."""
    pair.__class__ = _saying(type(pair))
    return pair


def saying_nothing(model: ModelPatcher) -> ModelPatcher:
    """The MODEL of the class that it had before it was a pair's."""
    model.__class__ = next(kind for kind in type(model).__mro__ if not issubclass(kind, _SaysWhatIsLost))
    return model


def _saying(kind: type[ModelPatcher]) -> type[ModelPatcher]:
    return type(kind.__name__, (_SaysWhatIsLost, kind), {})


def _say(done: str) -> None:
    line = (
        f"of the pair only the preferred member is {done} here: put this node before CHATS Apply, once for each member"
    )
    if show_lines([f"⚠ {line}"]):
        logging.warning("CHATS: %s", line)
