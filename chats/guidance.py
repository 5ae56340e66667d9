"""Guidance with a preferred and a dispreferred model: Eq. 8 and 15 to 17 of the paper (arXiv 2502.12579).

A *prediction* below is what the network predicts, in any parametrisation that is affine in the noise: epsilon, v, the
velocity of a flow, or the denoised latent. The weights of each equation sum to 1, so all of these combine alike.

``guidance_scale`` is the paper's s; ComfyUI's ``cfg`` is 1 + s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

# Eq. 17 or Eq. 16.
Form = Literal["proxy", "exact"]
# What the dispreferred model is asked: the prompt, the null prompt, or the mix of the two.
Asked = Literal["prompt", "null", "proxy"]

DEFAULT_ALPHA = 0.5
DEFAULT_GUIDANCE_SCALE = 5.0

CLIP_CHUNK_TOKENS = 77
# Widths of CLIP text encodings: SD1 (CLIP-L), OpenCLIP-H of SD2, OpenCLIP-G alone (SDXL refiner), SDXL (L and G side by
# side).
CLIP_WIDTHS = frozenset({768, 1024, 1280, 2048})


def cfg_from_guidance_scale(guidance_scale: float) -> float:
    """The paper's s as ComfyUI's cfg (Eq. 8 reads (1+s)·cond − s·uncond, ComfyUI uncond + cfg·(cond − uncond))."""
    return 1.0 + guidance_scale


def guidance_scale_from_cfg(cfg: float) -> float:
    """The inverse of :func:`cfg_from_guidance_scale`."""
    return cfg - 1.0


def classifier_free_guidance(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Eq. 8): ε̃ = (1+s) ε(z_t, c) − s ε(z_t).

    Both predictions have the shape of the latent, [batch, channels, ...], and so has the result.
    """
    s = guidance_scale
    return (1.0 + s) * cond - s * uncond


def proxy_guidance(preferred: Tensor, dispreferred_proxy: Tensor, guidance_scale: float) -> Tensor:
    """CHATS with the proxy prompt (Eq. 17): ε̃ = (1+s) ε_θ⁺(z_t, c) − s ε_θ⁻(z_t, c̃). Two passes, the paper's default.

    Args:
        preferred: prediction of the preferred model for the prompt, [batch, channels, ...].
        dispreferred_proxy: prediction of the dispreferred model for the proxy prompt, same shape.
        guidance_scale: the paper's s.
    """
    return classifier_free_guidance(preferred, dispreferred_proxy, guidance_scale)


def exact_guidance(
    preferred: Tensor,
    dispreferred_prompt: Tensor,
    dispreferred_null: Tensor,
    guidance_scale: float,
    alpha: float = DEFAULT_ALPHA,
) -> Tensor:
    """CHATS without the proxy's approximation (Eq. 16), in three passes.

    ε̃ = (1+s) ε_θ⁺(z_t, c) + αs ε_θ⁻(z_t, c) − (1+α)s ε_θ⁻(z_t, ∅)

    Args:
        preferred: prediction of the preferred model for the prompt, [batch, channels, ...].
        dispreferred_prompt: prediction of the dispreferred model for the prompt, same shape.
        dispreferred_null: prediction of the dispreferred model for the null prompt, same shape.
        guidance_scale: the paper's s.
        alpha: share of the dispreferred conditional.
    """
    prompt_weight, null_weight = negative_weights(alpha)
    negative = prompt_weight * dispreferred_prompt + null_weight * dispreferred_null
    return classifier_free_guidance(preferred, negative, guidance_scale)


def guided_prediction(
    preferred: Tensor,
    dispreferred: Callable[[Asked], Tensor],
    form: Form,
    guidance_scale: float,
    alpha: float = DEFAULT_ALPHA,
) -> Tensor:
    """What a pair predicts with its guidance, in either form; the dispreferred model is called once or twice.

    Args:
        preferred: prediction of the preferred model for the prompt, [batch, channels, ...].
        dispreferred: gives the dispreferred model's prediction for what it is asked, same shape.
        form: `proxy` (:func:`proxy_guidance`) or `exact` (:func:`exact_guidance`).
        guidance_scale: the paper's s.
        alpha: share of the dispreferred conditional; in the proxy form it is in the proxy prompt already.
    """
    if form == "proxy":
        return proxy_guidance(preferred, dispreferred("proxy"), guidance_scale)
    return exact_guidance(preferred, dispreferred("prompt"), dispreferred("null"), guidance_scale, alpha)


def negative_weights(alpha: float) -> tuple[float, float]:
    """Weights of the prompt and of the null prompt in the negative of Eq. 16 and in the proxy prompt: (−α, 1+α). Their
    sum is 1."""
    return -alpha, 1.0 + alpha


def proxy_prompt(prompt: Tensor, null: Tensor, alpha: float = DEFAULT_ALPHA) -> Tensor:
    """The proxy prompt c̃ = −α c + (1+α) ∅ of Eq. 17, on token embeddings or on pooled ones.

    Mixed in fp32 and returned in the dtype and on the device of ``prompt``.

    Args:
        prompt: embedding of the prompt, [batch, tokens, dim] or [batch, dim].
        null: embedding of the null prompt, same shape; a batch of 1 serves every row.
        alpha: share of the dispreferred conditional; 0 gives the null prompt.

    Raises:
        ValueError: when the shapes differ in more than the batch (see :func:`align_null`).
    """
    if prompt.shape[1:] != null.shape[1:]:
        raise ValueError(
            f"the prompt's embedding is {list(prompt.shape)} and the null prompt's {list(null.shape)}; "
            "a proxy prompt needs equal shapes: use the exact form"
        )
    prompt_weight, null_weight = negative_weights(alpha)
    mixed = prompt_weight * prompt.float() + null_weight * null.to(prompt.device).float()
    return mixed.to(prompt.dtype)


def align_null(prompt: Tensor, null: Tensor) -> Tensor | None:
    """The null prompt at the prompt's length, or None where no exact way to get there is known.

    A CLIP encoder sees its text in chunks of 77 tokens, each on its own, so the encoding of "" at several chunks is the
    encoding of one chunk repeated, to the bit. That is the only case in which lengths can be made equal exactly: a T5
    or LLM encoder attends over the whole length, and repeating the *prompt* would change the mix at pooled or unmasked
    places.

    Args:
        prompt: token embeddings, [batch, tokens, dim].
        null: token embeddings of the null prompt, [batch, tokens, dim].

    Returns:
        ``null`` repeated to [batch, prompt tokens, dim], ``null`` itself when the lengths are equal, or None.
    """
    prompt_tokens, null_tokens = prompt.shape[1], null.shape[1]
    if prompt.shape[2] != null.shape[2]:
        return None
    if prompt_tokens == null_tokens:
        return null
    whole_chunks = null_tokens % CLIP_CHUNK_TOKENS == 0 and prompt_tokens % null_tokens == 0
    if null.shape[2] in CLIP_WIDTHS and whole_chunks:
        return torch.cat([null] * (prompt_tokens // null_tokens), dim=1)
    return None
