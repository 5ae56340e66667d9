"""One run of one sampler with a pair: what both ways to have two models have in common."""

from __future__ import annotations

import math
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

if TYPE_CHECKING:
    from .pairing import Pair

KEY = "chats"


class Run(ABC):
    """Everything that a run needs, in the run's own model options (under ``KEY``), never in the patched model: ComfyUI
    copies models freely, and samples in threads on several GPUs.

    Args:
        pair: what is sampled.
        guider: of this run.
        process_options: what this version of ComfyUI wants in process_conds beside the arguments of all.
    """

    def __init__(self, pair: Pair, guider: comfy.samplers.CFGGuider, process_options: dict):
        self.pair, self.guider, self.process_options = pair, guider, process_options
        pair.baseline.order_wrappers(guider.model_options, KEY)
        guider.model_options[KEY] = self
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.sigma_start = float(sampling.percent_to_sigma(pair.start_percent))
        self.sigma_end = float(sampling.percent_to_sigma(pair.end_percent))
        self.prepared = False
        self.inputs: dict | None = None  # what conditioning is encoded with, known from SAMPLER_SAMPLE on
        self.negative_uuids: frozenset[uuid.UUID] = frozenset()

    def guides_at(self, sigma: Tensor | float) -> bool:
        """Whether the dispreferred model guides at this noise level. The whole interval asks nothing of the GPU."""
        if self.pair.start_percent <= 0 and self.pair.end_percent >= 1:
            return True
        return self.sigma_end <= float(sigma) <= self.sigma_start

    def needs_negative(self, model_options: dict) -> bool:
        """Whether the guider, as it stands, will ask for the negative pass; only the stock guider is known to skip it
        at cfg 1."""
        stock = type(self.guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        return not (stock and math.isclose(self.guider.cfg, 1.0)) or model_options.get(
            "disable_cfg1_optimization", False
        )

    def prepare(self) -> list[ModelPatcher]:
        """Readies the dispreferred side before loading; what is to be loaded for it."""
        self.prepared = True
        return self._prepare()

    def load_late(self) -> None:
        """Loads the dispreferred side in the middle of a run that began without need of it (cfg 1 changed on the
        way)."""
        models = self.prepare()
        loaded = self.guider.loaded_models
        loaded.extend(models)
        main = self.guider.model_patcher
        comfy.model_management.load_models_gpu(
            [main, *loaded], memory_required=main.memory_required(self.inputs["noise"].shape)
        )
        self.encode()

    def encode(self) -> None:
        """Puts the dispreferred side's negative, under new uuids, in the guider's place, once all is loaded."""
        # New uuids: entries that ComfyUI completes from the positive carry the positive's.
        negative = [{**entry, "uuid": uuid.uuid4()} for entry in self._encode()]
        self.negative_uuids = frozenset(entry["uuid"] for entry in negative)
        self.guider.conds["negative"] = negative

    def close(self) -> None:
        """Undoes what the run did, however it ended."""
        self.guider.model_options.pop(KEY, None)
        if self.prepared:
            self._close()

    @abstractmethod
    def _prepare(self) -> list[ModelPatcher]: ...

    @abstractmethod
    def _encode(self) -> list[dict]:
        """The negative's entries, encoded."""

    @abstractmethod
    def _close(self) -> None: ...
