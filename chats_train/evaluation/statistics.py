"""Means, paired differences and win rates with standard errors. Prompts are what was sampled from the world: pictures
of one prompt from several seeds are alike, so the errors are over prompts, not over pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Values by picture, each named by its prompt and its seed.
PictureValues = Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error (NaN where there are fewer than two prompts), from how many prompts and
    pictures."""

    mean: float
    standard_error: float
    prompts: int
    pictures: int


def estimate(values: PictureValues) -> Estimate:
    """The mean over prompts of each prompt's mean over seeds, with the standard error clustered by prompt: sd(prompt
    means) / √prompts.

    With equally many seeds for each prompt, as ever but after an interruption, it is the plain mean over pictures.

    Raises:
        ValueError: when there is no value.
    """
    if not values:
        raise ValueError("no value to take the mean of")
    by_prompt = defaultdict(list)
    for (prompt, _), value in values.items():
        by_prompt[prompt].append(value)
    means = [math.fsum(each) / len(each) for each in by_prompt.values()]
    mean = math.fsum(means) / len(means)
    if len(means) < 2:
        return Estimate(mean, math.nan, len(means), len(values))
    variance = math.fsum((each - mean) ** 2 for each in means) / (len(means) - 1)
    return Estimate(mean, math.sqrt(variance / len(means)), len(means), len(values))


def ratio(parts: Mapping[tuple[str, int], tuple[float, float]]) -> Estimate:
    """Σ met / Σ asked over pictures, with the standard error clustered by prompt: √(C/(C−1) Σ_c (met_c − ratio ·
    asked_c)²) / Σ asked, over the C prompts' sums. Where every prompt asks equally much it is :func:`estimate`.

    Args:
        parts: of each picture, named by its prompt and its seed, (met, asked).

    Raises:
        ValueError: when nothing was asked.
    """
    by_prompt: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (prompt, _), (met, asked) in parts.items():
        by_prompt[prompt][0] += met
        by_prompt[prompt][1] += asked
    total = math.fsum(asked for _, asked in by_prompt.values())
    if not total:
        raise ValueError("nothing was asked")
    mean, count = math.fsum(met for met, _ in by_prompt.values()) / total, len(by_prompt)
    if count < 2:
        return Estimate(mean, math.nan, count, len(parts))
    squares = math.fsum((met - mean * asked) ** 2 for met, asked in by_prompt.values())
    return Estimate(mean, math.sqrt(count / (count - 1) * squares) / total, count, len(parts))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several means of different prompts, each weighing the same: its error is √(Σ error²) / their number.

    Raises:
        ValueError: when there is none.
    """
    if not estimates:
        raise ValueError("no estimate to take the mean of")
    return Estimate(
        math.fsum(each.mean for each in estimates) / len(estimates),
        math.sqrt(math.fsum(each.standard_error**2 for each in estimates)) / len(estimates),
        sum(each.prompts for each in estimates),
        sum(each.pictures for each in estimates),
    )


def paired_difference(values: PictureValues, baseline: PictureValues) -> Estimate:
    """``values`` − ``baseline``, picture by picture from the same noise, over those that both have.

    Raises:
        ValueError: when they have none in common.
    """
    return estimate({key: values[key] - baseline[key] for key in _common(values, baseline)})


def win_rate(values: PictureValues, baseline: PictureValues) -> Estimate:
    """The share of pictures with a higher value than the baseline's from the same noise; a tie counts half.

    Raises:
        ValueError: when they have none in common.
    """
    return estimate({key: (1 + _sign(values[key] - baseline[key])) / 2 for key in _common(values, baseline)})


def sign_flip_p_value(values: PictureValues, baseline: PictureValues, flips: int = 20_000, seed: int = 0) -> float:
    """Of the two-sided paired permutation test: how often the mean of the prompts' differences is as far from 0 when
    each keeps or changes its sign at random, as it would were ``values`` and ``baseline`` alike. The observed signs
    count as one of the draws, so it is never 0.

    Raises:
        ValueError: when they have no picture in common.
    """
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, picture in _common(values, baseline):
        by_prompt[prompt].append(values[prompt, picture] - baseline[prompt, picture])
    if not by_prompt:
        raise ValueError("no value to compare")
    differences = np.array([math.fsum(each) / len(each) for each in by_prompt.values()])
    signs = np.random.default_rng(seed).integers(0, 2, (flips, len(differences)), dtype=np.int8) * 2 - 1
    # Rounding must not tell equal sums apart.
    as_far = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
    return float((1 + as_far.sum()) / (1 + flips))


def _common(values: PictureValues, baseline: PictureValues) -> list[tuple[str, int]]:
    return [key for key in values if key in baseline]


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
