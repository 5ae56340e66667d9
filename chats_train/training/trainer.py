"""One run: optimizer steps over micro-batches, and the state that a checkpoint holds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from chats.draws import VALIDATION_EPOCH, Order, draw, held_out_rows

from ..data import PairDataset
from ..data.pairs import PairSample
from ..encodings.cache import PairEncodings
from ..families import Family, Prompt
from ..runs.checkpoint import Checkpoint, State
from ..runs.processes import Processes
from ..settings.config import RunConfig
from ..sharding.tensors import clip_gradients, fill
from ..support.errors import UserError
from .gradients import Batch, Gradients, make_batch, run_gradients
from .optimizer import Averages, learning_rate, make_optimizer
from .optimizer_state import flatten_optimizer, unflatten_optimizer
from .reference_errors import ReferenceErrors, basis


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step (counted from 1) came to; ``metrics`` are means over its pairs."""

    step: int
    metrics: dict[str, float]
    pairs: int


class NotFinite(ArithmeticError):
    """A loss or gradient is NaN or infinite; the weights are those of the step before."""


class Trainer:
    """The models of a run and how they take a step.

    Args:
        config: the run.
        family: the base's family, its encoders no longer needed.
        dataset: the pairs; some are held out to measure on.
        encodings: where their latents and embeddings come from.
        gradients: what trains, and towards what; None for the run's objective.
    """

    def __init__(
        self,
        config: RunConfig,
        family: Family,
        dataset: PairDataset,
        encodings: PairEncodings,
        processes: Processes,
        gradients: Gradients | None = None,
    ):
        self.config, self.family, self.encodings, self.processes = config, family, encodings, processes
        self.device = processes.device
        self.dataset_fingerprint = dataset.fingerprint
        trained, measured = held_out_rows(dataset.samples.ids, config.seed, config.validation_pairs)
        self.samples, self.validation = dataset.samples.take(trained), list(dataset.samples.take(measured))
        self.order = Order(self.samples.ids, config.seed)
        self.gradients = gradients or run_gradients(config, family, self.device, processes.shards)
        self.members = self.gradients.members
        self.parameters = self.members.named_parameters()
        self.optimizer = make_optimizer(config, self.parameters.values())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.mixed_precision == "fp16")
        # The scaler settles its scale when it first scales a tensor; ours goes into the gradients' weights instead.
        self.scaler.scale(torch.zeros((), device=self.device))
        self.averages = Averages(config.ema_decay, self.parameters) if config.ema_decay else None
        self.null = null_prompt(family, encodings, self.device)
        draws = config.reference_draws
        measured_ids = [sample.id for sample in self.validation]
        self.references = ReferenceErrors(draws, self.samples.ids, measured_ids) if draws else None
        self._reference_left = False
        self.step = 0

    @property
    def pairs_per_step(self) -> int:
        """Pairs in one optimizer step, over all processes."""
        return self.config.train_batch_size * self.config.gradient_accumulation_steps * self.processes.count

    @property
    def has_models(self) -> bool:
        """Whether the models are to be called in this process whenever the main one calls them: in shards every process
        has a part in each call."""
        return self.processes.is_main or self.processes.shards is not None

    def train_step(self) -> StepReport:
        """One optimizer step.

        Raises:
            NotFinite: before anything is changed; under fp16, whose scaler skips such a step and tries half the scale,
                only when nothing is scaled up any more.
        """
        rows = self.order.step(self.step, self.pairs_per_step)
        picked = [(epoch, self.samples[row]) for epoch, row in rows]
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=self.device))
        for micro, counts in self.processes.passes(micro_batches(picked, self.config.train_batch_size)):
            scale = self.scaler.get_scale() / len(picked) if counts else 0.0
            losses, metrics = self.gradients.backward(self._batch(micro), scale)
            for name, values in {"loss": losses, **metrics}.items() if counts else ():
                sums[name] += values.double().sum()
        self._share_references(picked)
        means = self._means(sums, len(picked))
        rate = learning_rate(self.config, self.step, self.pairs_per_step)
        means |= {"grad_norm": self._apply_gradients(means["loss"], rate), "learning_rate": rate}
        if self.averages is not None:
            self.averages.update(self.parameters, self.step)
        self.step += 1
        return StepReport(self.step, means, len(picked))

    def validate(self) -> dict[str, float]:
        """Means over the held-out pairs, with the same draws each time; empty where none are held out."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=self.device))
        picked = [(VALIDATION_EPOCH, sample) for sample in self.validation]
        for micro, counts in self.processes.passes(micro_batches(picked, self.config.train_batch_size)):
            losses, metrics = self.gradients.measure(self._batch(micro))
            for name, values in {"loss": losses, **metrics}.items() if counts else ():
                sums[name] += values.double().sum()
        self._share_references(picked)
        return self._means(sums, len(picked)) if picked else {}

    def preview(self) -> Image.Image:
        """What is drawn for the run's `sample_prompts`."""
        encoded = [self.encodings.prompt(text) for text in self.config.sample_prompts]
        prompts = [
            ({name: tensor[None].to(self.device) for name, tensor in prompt.items()}, self.null) for prompt in encoded
        ]
        return self.gradients.preview(self.config, prompts)

    def state(self) -> State:
        """Everything that the next step depends on."""
        optimizer, values = flatten_optimizer(self.optimizer.state_dict())
        tensors = {"members": self.members.state(), "optimizer": optimizer}
        if self.averages is not None:
            tensors["averages"] = self.averages.values
        facts = {
            "pairs_per_step": self.pairs_per_step,
            "dataset_fingerprint": self.dataset_fingerprint,
            "optimizer_settings": self._optimizer_settings,
        }
        if self.references is not None:
            tensors["references"] = {"errors": self.references.table}
            facts["references_basis"] = self._references_basis
        return State(self.step, tensors, {"optimizer": values, "scaler": self.scaler.state_dict(), **facts})

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint.

        Raises:
            UserError: when it is of another run.
        """
        theirs = checkpoint.values["pairs_per_step"]
        if theirs != self.pairs_per_step:
            raise UserError(
                f"the checkpoint's steps have {theirs} pairs, this run's {self.pairs_per_step} (batch × accumulation × "
                "processes); "
                "change `gradient_accumulation_steps` so that they are equal, or set `resume_from_checkpoint: null`"
            )
        if checkpoint.values["dataset_fingerprint"] != self.dataset_fingerprint:
            raise UserError(
                "the data set changed since the checkpoint was written; bring back the old one, or set "
                "`resume_from_checkpoint: null`"
            )
        # Version 0.1.0 did not state them.
        for name, theirs in checkpoint.values.get("optimizer_settings", {}).items():
            ours = self._optimizer_settings.get(name, theirs)
            if ours != theirs:
                raise UserError(
                    f"`{name}` is {ours}, and the checkpoint was written with {theirs}, whose optimizer's state is "
                    f"another; set `{name}: {theirs}`, or `resume_from_checkpoint: null`"
                )
        self.members.load_state(checkpoint.tensors("members", self._like))
        groups = self.optimizer.state_dict()["param_groups"]
        tensors = checkpoint.tensors("optimizer", self._optimizer_like)
        self.optimizer.load_state_dict(unflatten_optimizer(tensors, checkpoint.values["optimizer"], groups))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.values["scaler"])
        if self.averages is not None:
            for name, value in checkpoint.weights(self._like).items():
                fill(self.averages.values[name], value)
        if self.references is not None and checkpoint.values.get("references_basis") == self._references_basis:
            self.references.load(checkpoint.tensors("references")["errors"])
            self._release_reference()
        self.step = checkpoint.values["step"]

    @property
    def _optimizer_settings(self) -> dict[str, str]:
        """What the form of the optimizer's state follows from."""
        whole_models = {"weight_dtype": self.config.weight_dtype} if self.config.training_method == "full" else {}
        return {"optimizer": self.config.optimizer, **whole_models}

    def weights(self) -> dict[str, Tensor]:
        """What is exported: the averages where they are kept, else the weights themselves."""
        return self.averages.values if self.averages is not None else self.members.state()

    def _like(self, name: str, shape: torch.Size) -> DTensor | None:
        """What a member's weight lies in shards like."""
        parameter = self.parameters.get(name)
        return parameter if isinstance(parameter, DTensor) and parameter.shape == shape else None

    def _optimizer_like(self, name: str, shape: torch.Size) -> DTensor | None:
        """What an optimizer's state of a weight lies in shards like; Adafactor's is of whole ones."""
        index = int(name.split(".")[0])
        if self.config.optimizer == "adafactor" or index >= len(self.parameters):
            return None
        return self._like(list(self.parameters)[index], shape)

    def _apply_gradients(self, loss: float, rate: float) -> float:
        """Sums, checks, cuts and applies the gradients; their norm before the cut."""
        parameters = list(self.parameters.values())
        self.processes.sum_gradients(parameters)
        # fp16 is over fp32 weights alone, whose optimizers are torch's own.
        scaled = cast(torch.optim.Optimizer, self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.unscale_(scaled)
        limit = self.config.max_grad_norm or math.inf
        norm = clip_gradients(parameters, limit)
        scales_down = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not scales_down and not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(f"step {self.step + 1}: the loss is {loss:g}, the gradient's norm {norm:g}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.scaler.is_enabled():
            self.scaler.step(scaled)
            self.scaler.update()
        else:
            self.optimizer.step()
        return norm

    def _batch(self, micro: list[tuple[int, PairSample]]) -> Batch:
        pairs = [self.encodings.pair(sample) for _, sample in micro]
        epochs = [self.references.draw_epoch(epoch) if self.references else epoch for epoch, _ in micro]
        draws = [
            draw(self.config.seed, epoch, pair.id, pair.chosen.shape) for epoch, pair in zip(epochs, pairs, strict=True)
        ]
        batch = make_batch(self.family, pairs, draws, self.null, self.config.null_prompt_prob, self.device)
        if self.references is None:
            return batch
        together = self.processes.shards is not None and not self._reference_left
        wanted = self.processes.any if together else bool
        errors = self.references.of(micro, lambda: self.gradients.reference_errors(batch), wanted)
        return replace(batch, references={name: values.to(self.device) for name, values in errors.items()})

    def _share_references(self, picked: Sequence[tuple[int, PairSample]]) -> None:
        """After the batches of all processes: what became known of the reference is known to all."""
        if self.references is not None and not self._reference_left:
            self.references.share(picked, self.processes)
            self._release_reference()

    def _release_reference(self) -> None:
        """Lets go of the reference once all of its errors are known; previews show it to the end."""
        self._reference_left = self.references is not None and self.references.complete
        if self._reference_left and self.config.sample_every == 0:
            self.members.release_reference()

    @cached_property
    def _references_basis(self) -> str:
        return basis(self.config, self.family, self.dataset_fingerprint)

    def _means(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        names = sorted({"loss", *self.gradients.objective.metrics})
        totals = self.processes.sum(torch.stack([sums[name] for name in names]))
        return dict(zip(names, (totals / count).tolist(), strict=True))


def null_prompt(family: Family, encodings: PairEncodings, device: torch.device) -> Prompt:
    """∅ by the run's convention, as a batch of 1, from the cache: the encoders may be gone."""
    return family.null_of({name: tensor[None].to(device) for name, tensor in encodings.prompt("").items()})


def micro_batches(picked: Sequence[tuple[int, PairSample]], size: int) -> list[list[tuple[int, PairSample]]]:
    """The pairs of a step in batches of one bucket, at most ``size`` each; which batches there are depends on the step
    alone."""
    by_bucket: dict[tuple[int, int], list[tuple[int, PairSample]]] = defaultdict(list)
    for item in picked:
        by_bucket[item[1].bucket].append(item)
    return [items[start : start + size] for items in by_bucket.values() for start in range(0, len(items), size)]
