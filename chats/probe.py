"""Whether a network is linear enough in its prompt for Eq. 17 of the paper (arXiv 2502.12579) to stand for Eq. 16.

The proxy form asks the dispreferred model once, with c̃ = −α c + (1+α) ∅, for what the exact form puts together from
two answers. Seen from the null prompt, both move the prediction: the exact form by −α (ε⁻(z_t, c) − ε⁻(z_t, ∅)), the
proxy by ε⁻(z_t, c̃) − ε⁻(z_t, ∅). In a network that is linear in its prompt the two are equal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Our own choice, neither the paper's nor fitted to people's judgement of pictures. At a cosine of 0.9 a fifth of the
# proxy's displacement (by energy) points elsewhere, at 0.7 half of it.
GOOD_COSINE, FAIR_COSINE = 0.9, 0.7
GOOD_ERROR, FAIR_ERROR = 0.5, 1.0


class ProxyAgreement(NamedTuple):
    """How the proxy's displacement d_p stands to the exact one d_e, [batch] each: their cosine, and ‖d_p − d_e‖ /
    ‖d_e‖.

    Both are NaN where the prompt moves nothing, and so d_e is zero.
    """

    cosine: Tensor
    relative_error: Tensor


def proxy_agreement(prompt: Tensor, null: Tensor, proxy: Tensor, alpha: float) -> ProxyAgreement:
    """Compares the displacements of three predictions of the dispreferred model at one z_t.

    In epsilon, v or velocity alike: the denoised latent is affine in each, so cosine and relative error do not change.

    Args:
        prompt, null, proxy: ε⁻(z_t, c), ε⁻(z_t, ∅) and ε⁻(z_t, c̃), [batch, channels, ...].
        alpha: that of the proxy prompt.

    Raises:
        ValueError: when ``alpha`` is 0, where the proxy prompt is the null prompt and there is nothing to compare.
    """
    if alpha == 0:
        raise ValueError("`alpha` is 0, where the proxy prompt is the null prompt; probe with another")
    prompt, null, proxy = (prediction.double().flatten(1) for prediction in (prompt, null, proxy))
    proxy_move, exact_move = proxy - null, -alpha * (prompt - null)
    exact_norm, proxy_norm = exact_move.norm(dim=1), proxy_move.norm(dim=1)
    # A proxy that moves nothing has no direction: its cosine is 0, as far from agreement as orthogonal ones.
    cosine = (proxy_move * exact_move).sum(1) / exact_norm / torch.where(proxy_norm == 0, 1.0, proxy_norm)
    return ProxyAgreement(cosine, (proxy_move - exact_move).norm(dim=1) / exact_norm)


def proxy_goes_the_way(cosine: float, relative_error: float) -> bool:
    """Whether the proxy form goes the exact one's way at least roughly."""
    return cosine >= FAIR_COSINE and relative_error <= FAIR_ERROR


def proxy_verdict(cosine: float, relative_error: float) -> str:
    """What the means over noise levels and prompts say, in one line with its thresholds."""
    measured = f"cosine {cosine:.2f}, relative error {relative_error:.2f}"
    thresholds = (
        f"thresholds of this project's own making: good from {GOOD_COSINE} and up to {GOOD_ERROR}, "
        f"fair from {FAIR_COSINE} and up to {FAIR_ERROR}"
    )
    if cosine >= GOOD_COSINE and relative_error <= GOOD_ERROR:
        meaning = "the proxy form stands for the exact one"
    elif proxy_goes_the_way(cosine, relative_error):
        meaning = "the proxy form goes the exact one's way, but only roughly; compare pictures of both"
    elif math.isnan(cosine):
        meaning = "the model does not react to these prompts, so the two forms cannot be told apart"
    else:
        meaning = "the proxy form does NOT stand for the exact one; sample with the exact form"
    return f"{measured}: {meaning} ({thresholds})"
