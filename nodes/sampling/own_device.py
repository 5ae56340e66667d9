"""A dispreferred model on a device of its own: what its passes need is brought there, and they run beside the
preferred's, in a thread of ComfyUI's own pool.

ComfyUI loads each model on its own device and counts the memory of each. Samplers are on the preferred's: latents and
options come from there, and predictions go back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.controlnet import ControlBase
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .run import Conds

try:
    from comfy.multigpu import MultiGPUThreadPool
except ImportError:  # ComfyUI before 0.33, where the passes take turns
    MultiGPUThreadPool = None

# What torch says of tensors on two devices.
MIXED = "same device"


class OwnDevice:
    """The device of a run's dispreferred model, which is not the preferred's.

    Args:
        patcher: this run's, of the dispreferred model.
        conds: all of the run's conditioning, before it is encoded.

    Raises:
        ValueError: when something in the conditioning cannot be on two devices.
    """

    def __init__(self, patcher: ModelPatcher, conds: dict[str, list[dict]]):
        self.device: torch.device = patcher.load_device
        entries = [entry for each in conds.values() for entry in each]
        if any("gligen" in entry for entry in entries):
            raise ValueError(self._needs_one("GLIGEN"))
        self.controls: list[ControlBase] = list(dict.fromkeys(e["control"] for e in entries if "control" in e))
        chained = [each for control in self.controls for each in _chain(control)]
        if any(self.device not in getattr(each, "multigpu_clones", {}) for each in chained):
            self._copy_controls(patcher, conds, ", ".join(dict.fromkeys(type(each).__name__ for each in chained)))
        # A ControlNet that encodes its picture with a VAE has ComfyUI load that in the middle of a pass, which two
        # threads must not do at once.
        in_turn = MultiGPUThreadPool is None or any(getattr(each, "vae", None) is not None for each in chained)
        self._pool = None if in_turn else MultiGPUThreadPool([self.device])
        self._begun = False

    def _copy_controls(self, patcher: ModelPatcher, conds: dict[str, list[dict]], named: str) -> None:
        """Has ComfyUI copy the ControlNets, as it does for one model on several devices; it keeps the copies."""
        if not hasattr(comfy.sampler_helpers, "preprocess_multigpu_conds"):
            raise ValueError(self._needs_one(f"{named} before ComfyUI 0.33"))
        # All that the function asks of a model are its copies on other devices.
        copies = SimpleNamespace(get_additional_models_with_key=lambda key: [patcher])
        try:
            comfy.sampler_helpers.preprocess_multigpu_conds(conds, copies, {})
        except NotImplementedError as error:
            raise ValueError(self._needs_one(named)) from error

    def _needs_one(self, what: str) -> str:
        return (
            f"the dispreferred model is on {self.device} and the preferred one on another device, where {what} cannot "
            "follow; load both on one device"
        )

    def models(self) -> list[ModelPatcher]:
        """What is to be loaded there beside the model."""
        return [model for each in self.controls for model in each.get_instance_for_device(self.device).get_models()]

    def encode(self, encode: Callable[..., list[dict]], model: BaseModel, inputs: Mapping[str, Any]) -> list[dict]:
        """The entries that ``encode`` makes of the model and its inputs, when all is on the device."""
        moved = {name: self._brought(value) for name, value in inputs.items()}
        with self._explained():
            entries = [self._entry(entry) for entry in encode(model, {**moved, "device": self.device})]
        # The ControlNets' copies were readied for the preferred model, as it is ComfyUI's way.
        comfy.samplers.pre_run_control(model, entries)
        return entries

    def begin(self, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, options: dict) -> Callable[[], list]:
        """Begins a call for predictions, in the thread where there is one; what gives them, on the device of ``x``."""
        # Devices wait for each other where tensors are copied, so all of that is done in one thread.
        here = [entries and [self._entry(entry) for entry in entries] for entries in conds]
        call = partial(
            comfy.samplers.calc_cond_batch,
            model,
            here,
            x.to(self.device),
            timestep.to(self.device),
            self._options(options),
        )
        if self._pool is not None:
            modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
            self._pool.submit(self.device, _in_modes, *modes, call)
            self._begun = True
        return partial(self._predictions, call, x.device)

    def _predictions(self, call: Callable[[], list[Tensor]], device: torch.device) -> list[Tensor]:
        with self._explained():
            if self._pool is None:
                with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                    return [one.to(device) for one in call()]
            predictions, error = self._end(self._pool)
            if error is not None:
                raise error
            return [one.to(device) for one in predictions]

    def _end(self, pool: MultiGPUThreadPool) -> tuple[list[Tensor], BaseException | None]:
        self._begun = False
        return pool.get_result(self.device)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around what begins predictions: however it ends, none is left under way."""
        try:
            yield
        finally:
            if self._pool is not None and self._begun:
                self._end(self._pool)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        # ComfyUI itself cleans up those that it finds in the conditioning, where the copies are now.
        for control in self.controls:
            control.cleanup()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What is of one device in the middle of a pass: a patch with tensors, a second network."""
        try:
            yield
        except RuntimeError as error:
            if MIXED not in str(error):
                raise
            raise RuntimeError(self._needs_one(f"something on the models or in the conditioning ({error})")) from error

    def _entry(self, entry: dict) -> dict:
        """An encoded entry as it is used on the device."""
        made = {name: self._brought(value) for name, value in entry.items()}
        made["model_conds"] = {name: self._cond(cond) for name, cond in entry["model_conds"].items()}
        if "control" in entry and hasattr(entry["control"], "get_instance_for_device"):
            made["control"] = entry["control"].get_instance_for_device(self.device)
        return made

    def _cond(self, cond: Any) -> Any:
        value = cond.cond
        if isinstance(value, list):
            return cond._copy_with([self._brought(each) for each in value])
        return cond._copy_with(self._brought(value)) if torch.is_tensor(value) else cond

    def _options(self, options: dict) -> dict:
        """Model options with their tensors, and the patches that ComfyUI brings to a device."""
        made = {name: self._brought(value) for name, value in options.get("transformer_options", {}).items()}
        for kind in {"patches", "patches_replace"} & made.keys():
            made[kind] = {name: self._patches(patches) for name, patches in made[kind].items()}
        return {**options, "transformer_options": made}

    def _patches(self, patches: Any) -> Any:
        if isinstance(patches, dict):
            return {name: self._patch(patch) for name, patch in patches.items()}
        return [self._patch(patch) for patch in patches]

    def _patch(self, patch: Any) -> Any:
        # A copy, since the preferred's passes may have the very same at the same time.
        return copy.copy(patch).to(self.device) if hasattr(patch, "to") else patch

    def _brought(self, value: Any) -> Any:
        return value.to(self.device) if torch.is_tensor(value) else value


def own_device(preferred: ModelPatcher, dispreferred: ModelPatcher, conds: dict[str, list[dict]]) -> OwnDevice | None:
    """The dispreferred model's device where it is not the preferred's; the models are a run's."""
    if dispreferred.load_device == preferred.load_device:
        return None
    return OwnDevice(dispreferred, conds)


def _chain(control: ControlBase | None) -> Iterator[ControlBase]:
    while control is not None:
        yield control
        control = control.previous_controlnet


def _in_modes(inference: bool, gradient: bool, call: Callable[[], list[Tensor]]) -> list[Tensor]:
    """A call in the modes of the thread that asked for it; torch keeps them for each thread."""
    with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
        return call()
