"""What it means that another node works with a pair: it gives a pair what it gives one model.

`sample(model, positive, negative)` stands for the node: it samples with a MODEL, however it likes, and returns a
tensor.
"""

from collections.abc import Callable

import comfy.sd
import mini
import running
import torch

CFG = 6.0
Sample = Callable[..., torch.Tensor]


def prompts() -> tuple[list, list]:
    return mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)


def with_lora(model, seed: int, strength: float = 1.0):
    return comfy.sd.load_lora_for_models(model, None, running.lora(model, seed), strength, 0.0)[0]


def ksampler(model, positive, negative, latent: dict | None = None, denoise: float = 1.0) -> torch.Tensor:
    """Two steps of core's KSampler on a small latent, by the function that packs call too."""
    import nodes as comfy_nodes

    latent = latent or mini.latent("sd15", size=(8, 16))
    return comfy_nodes.common_ksampler(model, 7, 2, CFG, "euler", "normal", positive, negative, latent, denoise)[0][
        "samples"
    ]


def assert_two_models_fit(sample: Sample, join: Callable, twins: tuple, unlike: Sample | None = None) -> None:
    """Two models with equal weights and the null prompt are stock CFG, with the node as without: to 1e-5.

    Args:
        join: CHATS Apply.
        twins: two models of equal weights, each its own.
        unlike: what the node must not be equal to, lest it does nothing.
    """
    stock = sample(twins[0], *prompts())
    assert mini.relative_error(sample(join(*twins), *prompts()), stock) < 1e-5
    if unlike is not None:
        assert mini.relative_error(unlike(twins[0], *prompts()), stock) > 1e-3


def lora_pairs(twins: tuple) -> tuple:
    """A preferred model, its dispreferred on the same weights, and the same dispreferred on weights of its own."""
    first, second = twins
    return with_lora(first, 41), with_lora(first, 42), with_lora(second, 42)


def assert_shared_weights_fit(sample: Sample, join: Callable, twins: tuple) -> None:
    """Two LoRAs on one set of weights sample as the same two models on weights of their own: to 1e-4."""
    preferred, shared, separate = lora_pairs(twins)
    expected = sample(join(preferred, separate), *prompts())
    assert mini.relative_error(sample(join(preferred, shared), *prompts()), expected) < 1e-4
    assert mini.relative_error(sample(preferred, *prompts()), expected) > 1e-3, (
        "the dispreferred model has no part in it"
    )
