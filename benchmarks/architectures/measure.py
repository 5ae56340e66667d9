"""A pair held against its formula: what CHATS samples, and what each member by itself predicts in stock ComfyUI.

The formula's side knows nothing of the pack but the negative prompt: at each step a stock run of each member alone
gives a denoised prediction, and the two are combined as negative + cfg · (positive − negative).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy.samplers import KSAMPLER, CFGGuider, sampler_object
from mini import relative_error
from running import guider_of, schedule

from .minis import Network, lora_on_all, noise, with_lora

CFG, ALPHA, STEPS = 6.0, 0.5, 2
Patch = Callable[[ModelPatcher], ModelPatcher]
Join = Callable[[ModelPatcher, ModelPatcher], ModelPatcher]
Negative = Callable[[list, list, float, str], list]


@dataclass
class Errors:
    """Relative errors against the formula, by form; a sentence where something was refused or failed.

    ``said``: what the pack said on the way, by kind of pair; ``distance``: between the pair and stock CFG on its
    preferred member, the smallest.
    """

    two_models: dict[str, float | str] = field(default_factory=dict)
    lora_pair: dict[str, float | str] = field(default_factory=dict)
    distance: float = float("inf")
    said: dict[str, list[str]] = field(default_factory=lambda: {"two_models": [], "lora_pair": []})

    as_dict = asdict


class Formula(CFGGuider):
    """Combines two members' own predictions; the sampler around it is ComfyUI's."""

    def __init__(self, preferred: ModelPatcher, dispreferred: ModelPatcher, together: bool):
        super().__init__(preferred)
        self.preferred, self.dispreferred, self.together = preferred, dispreferred, together

    def set_conds(self, positive: list, negative: list) -> None:
        super().set_conds(positive, negative)
        self.given = positive, negative

    def outer_sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        self.mask, self.shapes = denoise_mask, kwargs.get("latent_shapes")
        return super().outer_sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def predict_noise(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict = {}, seed=None):  # noqa: B006
        positive = self.prediction(self.preferred, "positive", x, timestep[0])
        negative = self.prediction(self.dispreferred, "negative", x, timestep[0])
        return negative + self.cfg * (positive - negative)

    def prediction(self, model: ModelPatcher, name: str, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Of one stock model for one conditioning at one noise level, denoised; in passes of its own, if not with both
        branches."""
        predicted, names = {}, ("positive", "negative") if self.together else (name,)

        def evaluate(guided, started, sigmas, extra_args, callback=None, disable=None):
            guider, options = guided.inner_model, extra_args["model_options"]
            repeated = sigmas[:1].expand(x.shape[0])
            conds = [guider.conds[each] for each in names]
            made = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, repeated, options)
            predicted.update(zip(names, made, strict=True))
            return started

        guider = guider_of(model.clone(), *self.given, self.cfg)
        empty, sigmas = self.unpacked(torch.zeros_like(x)), torch.stack([sigma, sigma * 0]).cpu()
        guider.sample(
            self.unpacked(x), empty, KSAMPLER(evaluate), sigmas, denoise_mask=self.mask, disable_pbar=True, seed=0
        )
        return predicted[name]

    def unpacked(self, x: torch.Tensor) -> torch.Tensor | NestedTensor:
        if len(self.shapes or ()) < 2:
            return x
        return NestedTensor(comfy.utils.unpack_latents(x, self.shapes))


def sampled(guider: CFGGuider, latent: tuple, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What a sampler makes of nothing and a seeded noise; several streams as one vector.

    Args:
        latent: one shape, or several.
    """
    shapes = latent if isinstance(latent[0], tuple) else (latent,)
    started, empty = [noise(7 + place, *shape) for place, shape in enumerate(shapes)], [torch.zeros(s) for s in shapes]
    both = [NestedTensor(each) if len(shapes) > 1 else each[0] for each in (started, empty)]
    sigmas = schedule(guider.model_patcher, STEPS)
    made = guider.sample(*both, sampler_object("euler"), sigmas, denoise_mask=mask, disable_pbar=True, seed=7)
    return torch.cat([part.flatten() for part in (made.unbind() if len(shapes) > 1 else [made])])


def sampled_by_experts(high: CFGGuider, low: CFGGuider, latent: tuple) -> torch.Tensor:
    """Half of the steps by a guider of its own, the rest by another, as two advanced samplers in a row."""
    sigmas, euler = schedule(high.model_patcher, 2 * STEPS), sampler_object("euler")
    empty = torch.zeros(latent)
    half = high.sample(noise(7, *latent), empty, euler, sigmas[: STEPS + 1], disable_pbar=True, seed=7)
    return low.sample(empty, half, euler, sigmas[STEPS:], disable_pbar=True, seed=7)


def formula_of(members: tuple[ModelPatcher, ModelPatcher], positive: list, negative: list, together: bool) -> Formula:
    guider = Formula(*members, together)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    return guider


@contextmanager
def listening(heard: list[str]) -> Iterator[None]:
    """Notes what the pack says within it, each line once."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if line.startswith("CHATS: ") and line[7:] not in heard:
                heard.append(line[7:])

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def attempt(function: Callable[[], float]) -> float | str:
    """What it gives; where it raises, why."""
    try:
        return function()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"


def by_comfyui_alone(function: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What it gives. What fails here has nothing to do with the pack."""
    try:
        return function()
    except Exception as error:
        raise RuntimeError(f"without the pack too: {error}") from error


@dataclass(frozen=True)
class Case:
    """What is compared, beyond the network.

    Args:
        network: of both members.
        after: what a node does to a model; to the pair after *CHATS Apply*, and to each member in the formula.
        before: what a node does to each member before it, with the member's seed.
        conditions: what nodes do to the prompt; the negative is made of what comes of it.
        mask: of what is sampled anew.
        together: whether the formula's predictions are made in passes of both branches, which a node compares.
        experts: how many networks share the steps.
        strengths: of the preferred's LoRA and the dispreferred's.
        without: what the LoRAs leave out, by a part of a layer's name; None where they are on every layer.
        models: a loaded model of a network and a seed; two of one seed have weights of their own.
        formulas: the same, for the dispreferred of a LoRA pair in the formula; None where that is ``models``.
        forms: of the negative.
    """

    network: Network
    after: Patch = lambda model: model
    before: Callable[[ModelPatcher, int], ModelPatcher] = lambda model, seed: model
    conditions: Callable[[list], list] = lambda conditioning: conditioning
    mask: torch.Tensor | None = None
    together: bool = False
    experts: int = 1
    strengths: tuple[float, float] = (0.8, 1.2)
    without: str | None = None
    models: Callable[[Network, int], ModelPatcher] = Network.model
    formulas: Callable[[Network, int], ModelPatcher] | None = None
    forms: tuple[str, ...] = ("proxy", "exact")

    def prompts(self, form: str, negative: Negative) -> tuple[list, list]:
        long, short = self.network.tokens
        positive = self.conditions(self.network.prompt(3, long))
        null = self.network.prompt(4, long if form == "proxy" else short)
        return positive, negative(positive, null, ALPHA, form)

    def sampled(self, make: Callable[[int], CFGGuider]) -> torch.Tensor:
        """What the guider of each expert, by its number, makes."""
        guiders = [make(expert) for expert in range(self.experts)]
        latent = self.network.latent
        return sampled(*guiders, latent, self.mask) if self.experts == 1 else sampled_by_experts(*guiders, latent)

    def two_models(self, expert: int) -> tuple[ModelPatcher, ModelPatcher, ModelPatcher]:
        """The preferred, the dispreferred, and the dispreferred for the formula."""
        members = [self.before(self.models(self.network, 10 * expert + seed), seed) for seed in (1, 2)]
        return *members, members[1]

    def lora_pair(self, expert: int) -> tuple[ModelPatcher, ModelPatcher, ModelPatcher]:
        """The same, on one set of weights; for the formula the dispreferred has weights of its own."""
        shared, own = (make(self.network, 10 * expert + 1) for make in (self.models, self.formulas or self.models))
        states = lora_on_all(shared, 41, 2, self.without), lora_on_all(shared, 42, 3, self.without)
        return tuple(
            self.before(with_lora(model, states[side], self.strengths[side]), side + 1)
            for model, side in ((shared, 0), (shared, 1), (own, 1))
        )


@torch.inference_mode()
def errors_of(case: Case, join: Join, negative: Negative) -> Errors:
    """Both kinds of pair against the formula, in each form."""
    errors = Errors()
    for kind in ("two_models", "lora_pair"):
        experts = [getattr(case, kind)(expert) for expert in range(case.experts)]
        for form in case.forms:
            prompts = partial(case.prompts, form, negative)
            with listening(errors.said[kind]):
                getattr(errors, kind)[form] = attempt(partial(_error, case, experts, prompts, join, errors))
    return errors


def _error(case: Case, experts: list[tuple], prompts: Callable[[], tuple], join: Join, errors: Errors) -> float:
    """Of one pair in one form; the distance to stock CFG goes into ``errors``."""
    conds = prompts()
    stock = by_comfyui_alone(lambda: case.sampled(lambda e: guider_of(case.after(experts[e][0]), *conds, CFG)))
    expected = case.sampled(
        lambda e: formula_of((case.after(experts[e][0]), case.after(experts[e][2])), *conds, case.together)
    )
    actual = case.sampled(lambda e: guider_of(case.after(join(*experts[e][:2])), *conds, CFG))
    errors.distance = min(errors.distance, relative_error(expected, stock))
    return relative_error(actual, expected)
