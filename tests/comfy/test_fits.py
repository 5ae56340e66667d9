"""Living beside other nodes: core's own that patch the inside of a model, and the ways in which well-known packs reach
into sampling.

The packs' mechanisms are imitated here in a few lines each; `test_real_packs.py` runs the packs themselves where they
are installed.
"""

from types import MethodType

import comfy.controlnet
import mini
import nodes as comfy_nodes
import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from conftest import ends_only, newest, newest_only
from fitting import CFG, assert_shared_weights_fit, assert_two_models_fit, ksampler, lora_pairs, prompts
from mini_architectures import SD15
from running import guider_of, reference_of, result, run

pytestmark = ends_only


@pytest.fixture
def join(nodes):
    return lambda preferred, dispreferred: nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]


def on_the_model(node, *settings):
    """KSampler with a node put on its MODEL, as one behind CHATS Apply is."""
    return lambda model, positive, negative: ksampler(result(node, model, *settings)[0], positive, negative)


def attn2_replaced(model):
    """The image prompt of IPAdapter: an attention of its own in each cross-attention, other for the positive and the
    negative rows."""
    patched = model.clone()
    generator = torch.Generator().manual_seed(8)
    image = {branch: torch.randn(1, 4, 64, generator=generator) for branch in (0, 1)}

    def replace(q, k, v, options):
        from comfy.ldm.modules.attention import optimized_attention

        branches = options["cond_or_uncond"]
        tokens = torch.cat([image[branch].repeat(len(q) // len(branches), 1, 1) for branch in branches])
        return optimized_attention(q, k, v, options["n_heads"]) + 0.8 * optimized_attention(
            q, tokens, tokens, options["n_heads"]
        )

    for place in [("input", 1), ("input", 3), ("middle", 1), ("output", 0), ("output", 2)]:
        patched.set_model_attn2_replace(replace, *place)
    return patched


def tiles_in_one_batch(apply_model, args):
    """The wrapper of TiledDiffusion: the tiles of all rows, one tile after the other, in one batch; then their
    average."""
    x, t, c = args["input"], args["timestep"], args["c"]
    starts = (0, 4, 8)
    tiles = torch.cat([x[..., start : start + 8] for start in starts])
    repeated = {name: value.repeat(len(starts), 1, 1) if name == "c_crossattn" else value for name, value in c.items()}
    predicted = apply_model(tiles, t.repeat(len(starts)), **repeated).chunk(len(starts))
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for start, tile in zip(starts, predicted, strict=True):
        total[..., start : start + 8] += tile
        count[..., start : start + 8] += 1
    return total / count


def wrapped(wrapper):
    def sample(model, positive, negative):
        patched = model.clone()
        patched.set_model_unet_function_wrapper(wrapper)
        return ksampler(patched, positive, negative)

    return sample


def tile_loop(model, positive, negative):
    """Ultimate SD Upscale: a KSampler run on each crop, conditioning cropped to it, and the crops put back in turn."""
    whole = mini.latent("sd15", size=(8, 16), seed=5)["samples"]
    positive = result(comfy_nodes.ConditioningSetArea, positive, 128, 64, 0, 0, 1.0)[0] + mini.conditioning("sd15", 5)
    for left in (0, 8):
        crop = {"samples": whole[..., left : left + 8].clone()}
        cropped = [
            [tokens, {**options, **({"area": (8, 8, 0, 0)} if "area" in options else {})}]
            for tokens, options in positive
        ]
        whole[..., left : left + 8] = ksampler(model, cropped, negative, crop, denoise=0.6)
    return whole


def detailer(model, positive, negative):
    """Impact Pack's detailers: a crop, enlarged, sampled under a soft noise mask, and put back."""
    whole = mini.latent("sd15", size=(8, 16), seed=5)["samples"]
    enlarged = torch.nn.functional.interpolate(whole[..., 4:12], scale_factor=1.5, mode="bilinear")
    mask = torch.zeros(1, 96, 96)
    mask[:, 16:80, 16:80] = torch.linspace(0.3, 1.0, 64)
    detailed = ksampler(model, positive, negative, {"samples": enlarged, "noise_mask": mask}, denoise=0.5)
    whole[..., 4:12] = torch.nn.functional.interpolate(detailed, size=8, mode="area")
    return whole


def controlnet():
    """A ControlNet of random weights for the mini SD1.5, read as one from a file."""
    from comfy.cldm.cldm import ControlNet
    from comfy.ops import disable_weight_init

    config = {name: value for name, value in SD15.items() if name not in ("out_channels", "transformer_depth_output")}
    network = ControlNet(**config, hint_channels=3, device="meta", dtype=torch.float32, operations=disable_weight_init)
    loaded = comfy.controlnet.load_controlnet_state_dict(
        {f"control_model.{k}": v for k, v in mini.random_weights(network, 9).items()}
    )
    assert loaded is not None
    return loaded


def controlled(model, positive, negative):
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(6))
    return ksampler(
        model, *result(comfy_nodes.ControlNetApplyAdvanced, positive, negative, controlnet(), hint, 0.7, 0.0, 0.8)
    )


def nag(model, positive, negative):
    """Normalized attention guidance compares the two branches within a pass."""
    from comfy_extras.nodes_nag import NAGuidance

    return on_the_model(NAGuidance, 5.0, 0.5, 1.5)(model, positive, negative)


NODES = {
    "PatchModelAddDownscale": on_the_model(PatchModelAddDownscale, 1, 2.0, 0.0, 0.6, True, "bicubic", "bicubic"),
    "PAG": on_the_model(PerturbedAttentionGuidance, 3.0),
    "SAG": on_the_model(SelfAttentionGuidance, 0.8, 2.0),
    "NAG": nag,
    "ControlNet": controlled,
    "attn2 replace (IPAdapter)": lambda model, positive, negative: ksampler(attn2_replaced(model), positive, negative),
    "wrapper with tiles (TiledDiffusion)": wrapped(tiles_in_one_batch),
    "tile loop (Ultimate SD Upscale)": tile_loop,
    "crop and noise mask (detailers)": detailer,
}
# The ways in: from inside of the attention, around the model, around the sampler. The others are tried in the newest
# ComfyUI.
IN_ALL_VERSIONS = (
    "attn2 replace (IPAdapter)",
    "wrapper with tiles (TiledDiffusion)",
    "crop and noise mask (detailers)",
)
EVERYWHERE = [*IN_ALL_VERSIONS, *newest(*(node for node in NODES if node not in IN_ALL_VERSIONS))]
# It acts on layers of twice and four times the first one's channels.
free_u = on_the_model(FreeU_V2, 1.3, 1.4, 0.9, 0.2)
# Tiles of one size: it draws sizes from torch's global generator, which two passes read twice.
hypertile = on_the_model(HyperTile, 64, 1, 0, False)


@newest_only
def test_free_u(join, twins):
    assert_two_models_fit(free_u, join, twins("sd15_of_two_widths"), unlike=ksampler)
    assert_shared_weights_fit(free_u, join, twins("sd15_of_two_widths"))


def test_hypertile(join, twins):
    """Its tiles are rows of their own inside of the attention, in an order of its own: the branches run apart."""
    assert_two_models_fit(hypertile, join, twins("sd15"), unlike=ksampler)
    assert_shared_weights_fit(hypertile, join, twins("sd15"))


@newest_only
def test_tiles_of_several_pictures(join, twins):
    def sample(model, positive, negative):
        patched = model.clone()
        patched.set_model_unet_function_wrapper(tiles_in_one_batch)
        return ksampler(patched, positive, negative, mini.latent("sd15", 2, size=(8, 16)))

    assert_shared_weights_fit(sample, join, twins("sd15"))


def row_by_row(apply_model, args):
    """Each row twice in a row, where its prompt is too."""
    c = {**args["c"], "c_crossattn": args["c"]["c_crossattn"].repeat_interleave(2, dim=0)}
    return apply_model(args["input"].repeat_interleave(2, dim=0), args["timestep"].repeat_interleave(2), **c)[::2]


@pytest.mark.parametrize("wrapper", [row_by_row, *newest(tiles_in_one_batch)])
def test_rows_that_cannot_be_told_apart(wrapper, join, twins):
    """Also with a negative that is the prompt, where rows say nothing of whose they are."""

    def sample(model, positive, negative):
        return wrapped(wrapper)(model, positive, positive)

    assert_shared_weights_fit(sample, join, twins("sd15"))


@newest_only
def test_nag_is_each_members_own(join, pairs):
    """The formula of the two members, each with the node; no member sees the other's branch."""
    from comfy_extras.nodes_nag import NAGuidance

    latent, conds = mini.latent("sd15"), prompts()
    members = [result(NAGuidance, model, 5.0, 0.5, 1.5)[0] for model in pairs("sd15")]
    expected = run(reference_of(*members, *conds, CFG), latent)
    after = result(NAGuidance, join(*pairs("sd15")), 5.0, 0.5, 1.5)[0]
    for model in (after, join(*members)):
        assert mini.relative_error(run(guider_of(model, *conds, CFG), latent), expected) < 1e-5
    assert mini.relative_error(run(guider_of(join(*pairs("sd15")), *conds, CFG), latent), expected) > 1e-3


class WanCrossAttentionPatch:
    """As KJNodes' guidance of that name: in the place of a layer's forward, and one row is a positive by itself."""

    def __get__(self, layer, kind=None):
        def wrapped_attention(self_module, x, context, *args, **kwargs):
            made = type(self_module).forward(self_module, x, context, *args, **kwargs)
            first = made[: max(1, len(made) // 2)]
            return torch.cat([first * 1.5, made[len(first) :]])

        return MethodType(wrapped_attention, layer)


@newest_only
@pytest.mark.parametrize("weights", ["two models", "two LoRAs"])
def test_nag_in_the_place_of_a_layer(weights, join, pairs, twins, caplog):
    """The formula of the two members, each with it and both branches in a pass."""
    place = "diffusion_model.middle_block.1.transformer_blocks.0.attn2"

    def patched(model):
        made, layer = model.clone(), model.get_model_object(place)
        made.add_object_patch(f"{place}.forward", WanCrossAttentionPatch().__get__(layer))
        return made

    members, own = pairs("sd15"), pairs("sd15")[1]
    if weights == "two LoRAs":
        *members, own = lora_pairs(twins("sd15"))
    latent, conds = mini.latent("sd15"), prompts()
    expected = run(reference_of(patched(members[0]), patched(own), *conds, CFG), latent)
    actual = run(guider_of(patched(join(*members)), *conds, CFG), latent)
    assert mini.relative_error(actual, expected) < 1e-4
    assert mini.relative_error(run(guider_of(join(*members), *conds, CFG), latent), expected) > 1e-3
    assert ("encoding by the preferred model" in caplog.text) == (weights == "two models")


@pytest.mark.parametrize("node", EVERYWHERE)
def test_with_two_models(node, join, twins):
    assert_two_models_fit(NODES[node], join, twins("sd15"), unlike=ksampler)


@pytest.mark.parametrize("node", EVERYWHERE)
def test_with_two_loras_on_one_model(node, join, twins):
    assert_shared_weights_fit(NODES[node], join, twins("sd15"))
