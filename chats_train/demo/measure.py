"""Counting: how often a sampler's pictures show what their prompts ask for, and, apart from that, how much they are to
the taste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from tqdm import tqdm

from ..evaluation.report import as_text
from ..evaluation.statistics import Estimate, PictureValues, estimate, paired_difference, sign_flip_p_value
from ..families import Family
from .detector import judge
from .samplers import Sampler, sample_pictures
from .taste import Taste, tastes
from .world import ScenePrompt

Measured = Literal["right", "taste"]
MEASURED: tuple[Measured, ...] = ("right", "taste")
# Of both measures together.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Count:
    """Pictures of one sampler at one guidance scale (the paper's s), [prompts, 3, height, width], and what each is
    worth by its prompt's text and its place, so that errors are over texts."""

    guidance_scale: float
    pictures: Tensor
    right: PictureValues
    taste: PictureValues

    @classmethod
    def of(
        cls,
        guidance_scale: float,
        pictures: Tensor,
        texts: Sequence[str],
        right: Sequence[float],
        taste: Sequence[float],
    ) -> Count:
        """From lists in the order of the prompts."""
        keys = list(zip(texts, range(len(texts)), strict=True))
        return cls(guidance_scale, pictures, dict(zip(keys, right, strict=True)), dict(zip(keys, taste, strict=True)))

    def record(self) -> dict[str, Any]:
        """All but the pictures, as plain values."""
        right, taste = [int(each) for each in self.right.values()], [round(each, 4) for each in self.taste.values()]
        return {"guidance_scale": self.guidance_scale, "right": right, "taste": taste}

    def values(self, measured: Measured) -> PictureValues:
        return self.right if measured == "right" else self.taste

    def mean(self, measured: Measured) -> Estimate:
        return estimate(self.values(measured))


def count(
    family: Family,
    sampler: Sampler,
    guidance_scale: float,
    prompts: Sequence[ScenePrompt],
    taste: Taste,
    seed: int,
    workers: int = 1,
    bar: tqdm | None = None,
) -> Count:
    """Samples every prompt and counts; ``workers`` and ``bar`` as :func:`.samplers.sample_pictures` takes them."""
    pictures = sample_pictures(family, sampler, prompts, seed, workers, bar)
    texts, right = [prompt.text for prompt in prompts], [float(each) for each in judge(pictures, prompts)]
    return Count.of(guidance_scale, pictures, texts, right, tastes(pictures, taste))


def best(counts: Sequence[Count]) -> Count:
    """The one at the scale that is right most often."""
    return max(counts, key=lambda each: each.mean("right").mean)


def scales_table(base: Sequence[Count], pair: Sequence[Count]) -> list[str]:
    """A line for each guidance scale, both sides' shares right and tastes."""
    rows = [["s", "base: right", "taste", "pair: right", "taste"]]
    for ours, theirs in zip(base, pair, strict=True):
        cells = [shown(each.mean(measured), measured) for each in (ours, theirs) for measured in MEASURED]
        rows.append([f"{ours.guidance_scale:g}", *cells])
    return as_text(rows)


def result_table(base: Count, pair: Count, titles: tuple[str, str]) -> list[str]:
    """A line for each side, and one for their difference, text by text."""
    rows = [["", "s", "right", "taste"]]
    for title, each in zip(titles, (base, pair), strict=True):
        means = [shown(each.mean(measured), measured) for measured in MEASURED]
        rows.append([title, f"{each.guidance_scale:g}", *means])
    gains = [shown(paired_difference(pair.values(each), base.values(each)), each, "+") for each in MEASURED]
    return as_text([*rows, ["difference", "", *gains]])


def verdicts(base: Count, pair: Count) -> list[str]:
    """A sentence for each measure, which promises nothing: the paired sign-flip test, corrected for both measures."""
    words = {
        "right": ("draws what was asked for more often", "draws what was asked for LESS often"),
        "taste": ("is more to the taste", "is LESS to the taste"),
    }
    lines = []
    for measured in MEASURED:
        ours, theirs = pair.values(measured), base.values(measured)
        p_value = min(1.0, len(MEASURED) * sign_flip_p_value(ours, theirs))
        better, worse = words[measured]
        if p_value > SIGNIFICANCE:
            lines.append(f"{measured}: no clear difference (p = {p_value:.2g})")
        else:
            said = better if paired_difference(ours, theirs).mean > 0 else worse
            lines.append(f"{measured}: the pair {said} (p = {p_value:.2g})")
    return lines


def shown(figure: Estimate, measured: Measured, sign: str = "") -> str:
    """A mean with its standard error; what is right in percent, the taste from 0 to 1."""
    if measured == "right":
        return f"{100 * figure.mean:{sign}.1f} ± {100 * figure.standard_error:.1f} %"
    return f"{figure.mean:{sign}.2f} ± {figure.standard_error:.2f}"
