"""One run of one sampler: when the dispreferred model predicts the negative, and when it is not even loaded (at cfg 1,
outside the interval); what both kinds of run have in common."""

from __future__ import annotations

import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import comfy.model_management
import comfy.samplers
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor

from .inheritance import Baseline

# Of the wrappers on a MODEL that is a pair, and of the run in its model options.
KEY = "chats"
Member = Literal["preferred", "dispreferred"]
# What ComfyUI predicts in one call: a list of entries for each place, or nothing there.
Conds = list[list[dict] | None]


class Interval(NamedTuple):
    """Where the dispreferred model guides, as shares of the noise schedule; before and after it, cfg is 1."""

    start_percent: float
    end_percent: float


class Run(ABC):
    """A run that has begun. It is kept in the run's own model options (under ``KEY``), never in the patched model:
    ComfyUI copies models freely, and samples in threads on several GPUs.

    Args:
        guider: of this run.
        interval: where the dispreferred model guides.
        baseline: the preferred model as it was when the two were joined.
    """

    # Whether the preferred's own wrappers of a call are the dispreferred's too, and are to be around both.
    shares_wrappers: ClassVar[bool] = False

    def __init__(self, guider: comfy.samplers.CFGGuider, interval: Interval, baseline: Baseline):
        self.guider, self.interval, self.baseline = guider, interval, baseline
        baseline.order_wrappers(guider.model_options, KEY, self.shares_wrappers)
        guider.model_options[KEY] = self
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.sigma_start = float(sampling.percent_to_sigma(interval.start_percent))
        self.sigma_end = float(sampling.percent_to_sigma(interval.end_percent))
        self.prepared = False
        self.apart = True  # whether the two members predict in passes of their own
        self.running: Member | None = None  # whose passes run just now, where they run apart
        # Conditioning as it was before it was encoded.
        self.raw_conds = {name: [entry.copy() for entry in entries] for name, entries in guider.conds.items()}
        # What process_conds encodes conditioning with; complete from SAMPLER_SAMPLE on.
        self.inputs: dict = {}
        self.negative_uuids: frozenset[uuid.UUID] = frozenset()

    def guides_at(self, sigma: Tensor | float) -> bool:
        """Whether the dispreferred model guides at this noise level. With the whole schedule as interval nothing is
        read from the GPU."""
        if self.interval.start_percent <= 0 and self.interval.end_percent >= 1:
            return True
        return self.sigma_end <= float(sigma) <= self.sigma_start

    def needs_negative(self, model_options: dict) -> bool:
        """Whether the guider, as it stands now, will ask for the negative pass. Only the stock guider is known to skip
        it, at cfg 1."""
        stock = type(self.guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        return not (stock and math.isclose(self.guider.cfg, 1.0)) or model_options.get(
            "disable_cfg1_optimization", False
        )

    def prepare(self) -> list[ModelPatcher]:
        """Readies the dispreferred side; the models that must be loaded for it."""
        models = self._prepare()
        self.prepared = True
        return models

    def load_late(self) -> None:
        """Loads the dispreferred side in the middle of a run that began without need of it: at a cfg of 1 that was
        raised since."""
        models = self.prepare()
        loaded = self.guider.loaded_models
        loaded.extend(models)
        main = self.guider.model_patcher
        comfy.model_management.load_models_gpu(
            [main, *loaded], memory_required=main.memory_required(self.inputs["noise"].shape)
        )
        self.encode()

    def encode(self) -> None:
        """Gives the guider the dispreferred side's negative in place of its own; all models are loaded by now."""
        # Under new uuids, because entries that ComfyUI completes from the positive carry the positive's.
        negative = [{**entry, "uuid": uuid.uuid4()} for entry in self._encode()]
        self.negative_uuids = frozenset(entry["uuid"] for entry in negative)
        self.guider.conds["negative"] = negative

    @contextmanager
    def member(self, name: Member) -> Iterator[None]:
        """Within it, all passes are of one member."""
        self.running = name
        try:
            yield
        finally:
            self.running = None

    def call(self) -> AbstractContextManager[None]:
        """Around a call for predictions, some of them the dispreferred's."""
        return nullcontext()

    def encode_anew(self, model: BaseModel, inputs: Mapping[str, Any] | None = None) -> list[dict]:
        """The negative as a model encodes it.

        Positive and negative go through together, since areas and ControlNets of the one are completed from the other.

        Args:
            inputs: what it is encoded with; the run's by default.
        """
        conds = comfy.samplers.process_conds(model, conds=dict(self.raw_conds), **(inputs or self.inputs))
        for entries in self.guider.conds.values():
            # ControlNets are shared by the two models: the preferred's preparation is to be the last.
            comfy.samplers.pre_run_control(self.guider.inner_model, entries)
        return conds["negative"]

    def close(self) -> None:
        """Undoes what the run did, however it ended."""
        self.guider.model_options.pop(KEY, None)
        if self.prepared:
            self._close()

    @abstractmethod
    def _prepare(self) -> list[ModelPatcher]:
        """What ``prepare`` does, by kind."""

    @abstractmethod
    def _encode(self) -> list[dict]:
        """The entries of the dispreferred side's negative, encoded."""

    def begin(
        self, executor: WrapperExecutor, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, options: dict
    ) -> Callable[[], list[Tensor]]:
        """Begins what ``predict`` does, where it need not wait for the preferred's predictions; what gives the
        dispreferred's."""
        return partial(self.predict, executor, model, conds, x, timestep, options)

    @abstractmethod
    def predict(
        self, executor: WrapperExecutor, model: BaseModel, conds: Conds, x: Tensor, timestep: Tensor, options: dict
    ) -> list[Tensor]:
        """The dispreferred's predictions, in place of the call that ``executor`` would go on with."""

    @abstractmethod
    def options_of_dispreferred(self, options: dict) -> dict:
        """The model options of a call, as the dispreferred has them."""

    @abstractmethod
    def patcher_of_dispreferred(self) -> ModelPatcher:
        """The patcher that the dispreferred's passes run with; they are prepared by now."""

    @abstractmethod
    def _close(self) -> None:
        """Undoes what ``_prepare`` and ``_encode`` did."""
