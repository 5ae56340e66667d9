"""The probe of the proxy prompt against networks that are linear in their prompt and ones that are not."""

import math

import pytest
import torch

from chats.guidance import proxy_prompt
from chats.probe import proxy_agreement, proxy_verdict

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
    with pytest.raises(ValueError, match="`alpha` is 0"):
        proxy_agreement(prompt, prompt, proxy, 0.0)


def test_the_verdict_names_its_thresholds():
    assert "stands for the exact one" in proxy_verdict(0.95, 0.3)
    assert "only roughly" in proxy_verdict(0.95, 0.6)
    assert "does NOT stand" in proxy_verdict(0.3, 0.9)
    assert "does NOT stand" in proxy_verdict(0.95, 2.0)
    assert "cannot be told apart" in proxy_verdict(math.nan, math.nan)
    assert "of this project's own making: good from 0.9" in proxy_verdict(0.3, 0.9)
