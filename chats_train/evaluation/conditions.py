"""What is compared: the ways to sample one noise, and how each is sampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..families import Family, Prompt
from ..runs.members import DISPREFERRED, PREFERRED, Members
from ..sampling.sampler import Form, SamplingSettings, sample_cfg, sample_pair
from ..support.errors import UserError

Models = Literal["base", "preferred", "base_negative", "pair"]
SINGLE_METHODS: dict[Models, str] = {
    "base": "base, CFG",
    "preferred": "preferred, CFG",
    "base_negative": "preferred, base as negative",
}


@dataclass(frozen=True)
class Condition:
    """One way to sample: the base or the preferred model alone under CFG (Eq. 8), the preferred model with the base as
    its negative, or the pair under CHATS (Eq. 16, 17).

    Attributes:
        models: which models sample. With ``base_negative`` it is (1+s) ε⁺(z, c) − s ε_ref(z, ∅): CHATS at α = 0 with
            the untouched base in the dispreferred model's place. The paper has no such row.
        guidance_scale: the paper's s.
        alpha, form: of CHATS, None for the others. At α = 0 the two forms are equal, and sampled as the cheaper proxy.
    """

    models: Models
    guidance_scale: float
    alpha: float | None = None
    form: Form | None = None

    @property
    def method(self) -> str:
        """What distinguishes it beside the guidance scale."""
        if self.models != "pair":
            return SINGLE_METHODS[self.models]
        return "CHATS α=0" if self.alpha == 0 else f"CHATS {self.form} α={self.alpha:g}"

    @property
    def name(self) -> str:
        return f"{self.method}, s={self.guidance_scale:g}"

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        scale = f"s{self.guidance_scale:g}"
        if self.models != "pair":
            return f"{self.models}_{scale}"
        return f"chats_a0_{scale}" if self.alpha == 0 else f"chats_{self.form}_a{self.alpha:g}_{scale}"

    @property
    def total_scale(self) -> float:
        """(1+α)s, the weight of the negative: with equal members the exact form IS CFG at this scale, so α is fairly
        compared at equal ones."""
        return (1 + (self.alpha or 0.0)) * self.guidance_scale

    @property
    def weights(self) -> dict[str, float | str | None]:
        """All that tells its pictures from another condition's."""
        return {"models": self.models, "guidance_scale": self.guidance_scale, "alpha": self.alpha, "form": self.form}


def make_conditions(
    pair: bool, guidance_scales: Iterable[float], alphas: Iterable[float], forms: Iterable[Form]
) -> list[Condition]:
    """Every condition, in a fixed order; each method gets every guidance scale.

    Args:
        pair: whether there are two members; one model's objective has the preferred alone, with either negative.

    Raises:
        UserError: for a guidance scale below 0.
    """
    scales = list(dict.fromkeys(guidance_scales))
    for scale in scales:
        if not scale >= 0:
            raise UserError(f"`--guidance-scale` is {scale:g}; the paper's s is 0 or more, 5 by default")
    made = [Condition(models, scale) for models in SINGLE_METHODS for scale in scales]
    if pair:
        both = sorted(set(forms), key=lambda form: form != "proxy")
        for alpha in dict.fromkeys(alphas):
            asked: list[Form] = both if alpha else ["proxy"]
            made += [Condition("pair", scale, alpha, form) for form in asked for scale in scales]
    return made


def sample_condition(
    condition: Condition, family: Family, members: Members, prompt: Prompt, null: Prompt, noise: Tensor, steps: int
) -> Tensor:
    """Latents, in the denoiser's scale, of the shape of ``noise`` [batch, channels, height, width].

    Args:
        prompt, null: embeddings, of the batch or of 1.
    """
    settings = SamplingSettings(steps=steps, guidance_scale=condition.guidance_scale)
    if condition.models == "base":
        return sample_cfg(family, members.reference(), prompt, null, noise, settings)
    if condition.models == "preferred":
        return sample_cfg(family, members.denoiser(PREFERRED), prompt, null, noise, settings)
    if condition.models == "base_negative":
        settings = replace(settings, alpha=0.0)
        return sample_pair(family, members.denoiser(PREFERRED), members.reference(), prompt, null, noise, settings)
    assert condition.alpha is not None
    assert condition.form is not None
    settings = replace(settings, alpha=condition.alpha, form=condition.form)
    pair = members.denoiser(PREFERRED), members.denoiser(DISPREFERRED)
    return sample_pair(family, *pair, prompt, null, noise, settings)
