"""What nodes inject into a network beside its weights, such as core's bypass LoRAs, under a pair on one base."""

import comfy.sd
import mini
import pytest
from conftest import newest_only
from fitting import CFG, lora_pairs, prompts, with_lora
from running import guider_of, lora, run

pytestmark = newest_only


def bypassed(model, seed):
    """With a LoRA of core's bypass loaders."""
    return comfy.sd.load_bypass_lora_for_models(model, None, lora(model, seed), 1.0, 0.0)[0]


def refused(nodes, preferred, dispreferred):
    with pytest.raises(ValueError, match="differ in more than LoRAs: `bypass_lora`") as error:
        nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)
    assert "\n" not in str(error.value)


def test_two_injected_loras_are_not_taken_for_one(nodes, twins):
    base = twins("sd15")[0]
    refused(nodes, bypassed(base, 51), bypassed(base, 52))
    refused(nodes, bypassed(with_lora(base, 41), 51), bypassed(with_lora(base, 42), 52))


def test_one_injected_lora_below_both(nodes, twins):
    """As the same two models on weights of their own."""
    first, second = (bypassed(model, 51) for model in twins("sd15"))
    preferred, shared, separate = lora_pairs((first, second))
    latent = mini.latent("sd15")

    def sampled(dispreferred):
        joined = nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]
        return run(guider_of(joined, *prompts(), CFG), latent)

    expected = sampled(separate)
    assert mini.relative_error(sampled(shared), expected) < 1e-4
    assert mini.relative_error(run(guider_of(preferred, *prompts(), CFG), latent), expected) > 1e-3
