"""Core's skip-layer guidance on a pair: by its own formula from each member's stock predictions, without a misleading
line."""

import comfy.sd
import mini
import pytest
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from conftest import newest_only
from running import FormulaGuider, guider_of, lora, predictions, result, run

pytestmark = newest_only
CFG, SCALE, LAYER = 6.0, 3.0, 1


def without_layer(model):
    """Stock ComfyUI's own, with one transformer block left out."""
    patched = model.clone()
    patched.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", LAYER)
    return patched


class SkipGuider(FormulaGuider):
    """The formula; then away from what the preferred predicts without the layer (`SkipLayerGuidanceDiT`)."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        made = super().predict_noise(x, timestep, model_options, seed)
        sigma = timestep[0].clone()
        positive, weaker = (
            predictions(model, self.given, x, sigma)["positive"]
            for model in (self.preferred, without_layer(self.preferred))
        )
        return made + SCALE * (positive - weaker)


def given(guider):
    guider.set_conds(mini.conditioning("sd3", 3), mini.conditioning("sd3", 4))
    guider.set_cfg(CFG)
    return run(guider, mini.latent("sd3", 2))


def expected(node, preferred, dispreferred):
    if node is SkipLayerGuidanceDiT:
        return given(SkipGuider(preferred, dispreferred))
    return given(FormulaGuider(preferred, without_layer(dispreferred)))


def put(node, model):
    settings = (SCALE, 0.0, 1.0) if node is SkipLayerGuidanceDiT else (0.0, 1.0)
    return result(node, model, *settings, double_layers=str(LAYER))[0]


@pytest.mark.parametrize("weights", ["two models", "two LoRAs"])
@pytest.mark.parametrize("node", [SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple])
def test_as_the_members_alone(node, weights, nodes, pairs, twins, caplog):
    preferred, dispreferred = pairs("sd3")
    own = dispreferred
    if weights == "two LoRAs":
        first, second = twins("sd3")
        states = lora(first, 41), lora(first, 42)
        preferred, dispreferred, own = (
            comfy.sd.load_lora_for_models(model, None, states[side], 1.0, 0.0)[0]
            for model, side in ((first, 0), (first, 1), (second, 1))
        )
    joined = nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]
    actual = given(guider_of(put(node, joined), [], [], CFG))
    assert mini.relative_error(actual, expected(node, preferred, own)) < 1e-4
    assert mini.relative_error(given(guider_of(joined, [], [], CFG)), actual) > 1e-3
    assert "CHATS" not in caplog.text
