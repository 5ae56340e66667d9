"""The probe of the proxy prompt against networks that are linear in their prompt and ones that are not."""

import math

import pytest
import torch

from chats.guidance import proxy_prompt
from chats.probe import (
    FAIR_COSINE,
    FAIR_ERROR,
    GOOD_COSINE,
    GOOD_ERROR,
    proxy_agreement,
    proxy_goes_the_way,
    proxy_verdict,
)

ALPHA = 0.5


def predictions(network, alpha=ALPHA):
    generator = torch.Generator().manual_seed(0)
    prompt, null = (torch.randn(3, 7, 5, generator=generator, dtype=torch.float32) for _ in range(2))
    return [network(tokens) for tokens in (prompt, null, proxy_prompt(prompt, null, alpha))]


def linear(tokens):
    weights = torch.randn(7 * 5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (tokens.double().flatten(1) @ weights + 3.0).unflatten(1, (4, 2, 3))


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.5])
def test_a_network_linear_in_its_prompt_agrees(alpha):
    agreement = proxy_agreement(*predictions(linear, alpha), alpha)
    assert agreement.cosine.shape == (3,)
    torch.testing.assert_close(agreement.cosine, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert agreement.relative_error.max() < 1e-5  # the proxy prompt is mixed in fp32


def test_a_network_that_saturates_does_not():
    agreement = proxy_agreement(*predictions(lambda tokens: torch.tanh(linear(tokens) * 10)), ALPHA)
    assert agreement.cosine.max() < 0.9
    assert agreement.relative_error.min() > 0.5


def test_by_hand():
    # d_e = −0.5 · ((2, 0) − (0, 0)) = (−1, 0). First row d_p = (−3, 4): cosine 3/5, error |(−2, 4)| = √20.
    # Second row: the proxy moves nothing, cosine 0, error 1. Third row: the prompt moves nothing.
    prompt = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    proxy = torch.tensor([[-3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    agreement = proxy_agreement(prompt, torch.zeros(3, 2), proxy, 0.5)
    assert agreement.cosine[:2].tolist() == pytest.approx([0.6, 0.0])
    assert agreement.relative_error[:2].tolist() == pytest.approx([math.sqrt(20), 1.0])
    assert agreement.cosine[2].isnan()
    with pytest.raises(ValueError, match="`alpha` is 0") as error:
        proxy_agreement(prompt, prompt, proxy, 0.0)
    assert str(error.value) == "`alpha` is 0, where the proxy prompt is the null prompt; probe with another"


def test_displacements_of_half_precision_do_not_overflow():
    # d_e = (−30000, 0), d_p = (−30000, 40000), whose length is 50000: cosine 3/5, error 4/3. In fp16 the product of the
    # two, 9·10⁸, is infinite.
    prompt, null, proxy = (
        torch.tensor([row], dtype=torch.float16) for row in ([60000.0, 0.0], [0.0, 0.0], [-30000.0, 40000.0])
    )
    agreement = proxy_agreement(prompt, null, proxy, 0.5)
    assert agreement.cosine.item() == pytest.approx(0.6, abs=1e-3)
    assert agreement.relative_error.item() == pytest.approx(4 / 3, abs=1e-3)


def displaced(cosine, length):
    """Cosine and relative error of a proxy that moves ``length`` times as far as the exact form, at that cosine."""
    # d_e = −0.5 · (−2, 0) = (1, 0)
    prompt, null = torch.tensor([[-2.0, 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    proxy = length * torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    agreement = proxy_agreement(prompt, null, proxy, 0.5)
    return agreement.cosine.item(), agreement.relative_error.item()


def test_what_the_thresholds_of_the_cosine_let_through():
    # The part of d_p that points elsewhere has the energy sin² = 1 − cos² of it: a fifth at "good", half at "fair".
    elsewhere = [1 - cosine**2 for cosine in (GOOD_COSINE, FAIR_COSINE)]
    assert elsewhere == pytest.approx([0.19, 0.51])


def test_what_the_thresholds_of_the_error_let_through():
    # A proxy that does not move from the null prompt is wrong by all of d_e: whatever is farther off is worse than
    # leaving the prompt out. "Good" is at most half of that.
    _, error = displaced(0.0, 0.0)
    assert error == FAIR_ERROR == 2 * GOOD_ERROR
    # With the right length, the cosines alone decide: ‖d_p − d_e‖² = 2 − 2 cos, so √0.2 at 0.9 and √0.6 at 0.7.
    turned = [displaced(cosine, 1.0)[1] for cosine in (GOOD_COSINE, FAIR_COSINE)]
    assert turned == pytest.approx([math.sqrt(0.2), math.sqrt(0.6)])
    assert turned[0] < GOOD_ERROR < turned[1] < FAIR_ERROR
    # In the right direction, half as far again is the most that is good, and twice as far the most that is fair.
    assert displaced(1.0, 1.5) == pytest.approx((1.0, GOOD_ERROR))
    assert displaced(1.0, 2.0) == pytest.approx((1.0, FAIR_ERROR))


@pytest.mark.parametrize(
    ("cosine", "error", "good", "fair"),
    [
        (0.9, 0.5, True, True),  # both thresholds themselves: "from 0.9 and up to 0.5"
        (0.89, 0.5, False, True),
        (0.9, 0.51, False, True),
        (0.7, 1.0, False, True),
        (0.69, 1.0, False, False),
        (0.7, 1.01, False, False),
        (0.99, 1.01, False, False),
        (0.69, 0.1, False, False),
        (-1.0, 2.0, False, False),
    ],
)
def test_both_numbers_must_reach_a_threshold(cosine, error, good, fair):
    verdict = proxy_verdict(cosine, error)
    assert ("the proxy form stands for the exact one" in verdict) == good
    assert ("only roughly" in verdict) == (fair and not good)
    assert ("does NOT stand" in verdict) == (not fair)
    assert proxy_goes_the_way(cosine, error) == fair


THRESHOLDS = "(thresholds of this project's own making: good from 0.9 and up to 0.5, fair from 0.7 and up to 1.0)"


@pytest.mark.parametrize(
    ("cosine", "error", "line"),
    [
        (0.95, 0.3, "cosine 0.95, relative error 0.30: the proxy form stands for the exact one"),
        (
            0.95,
            0.6,
            "cosine 0.95, relative error 0.60: the proxy form goes the exact one's way, but only roughly; compare "
            "pictures of both",
        ),
        (
            0.3,
            0.9,
            "cosine 0.30, relative error 0.90: the proxy form does NOT stand for the exact one; sample with the exact "
            "form",
        ),
        (
            math.nan,
            math.nan,
            "cosine nan, relative error nan: the model does not react to these prompts, so the two forms cannot be "
            "told apart",
        ),
    ],
)
def test_the_verdict_is_one_line_with_its_thresholds(cosine, error, line):
    assert proxy_verdict(cosine, error) == f"{line} {THRESHOLDS}"
