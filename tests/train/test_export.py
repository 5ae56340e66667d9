"""Exported members: native layouts and LoRA names, read back by the trainer's own loader, by diffusers and by
`chats.pair`."""

import math

import peft
import pytest
import tiny_pipelines
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chats.pair import PairMetadata, read_header, read_metadata
from chats_train.families import load_family
from chats_train.families.single_file import CONFIGS
from chats_train.families.sources import read_json
from chats_train.layouts.formats import lora_names
from chats_train.layouts.mmdit import mmdit_layout
from chats_train.layouts.places import LayoutError, to_native
from chats_train.layouts.unet import unet_layout
from chats_train.runs.pair_files import check_lora, export_full, export_lora
from chats_train.settings.facts import FAMILIES

METADATA = PairMetadata(
    "preferred", pair_id="p", base_name="tiny", prediction_type="epsilon", null_prompt="zeros", resolution=64, step=3
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipelines.save_pipeline(name, root / name) for name in FAMILIES}


def tensors_of(path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def shapes_of(module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_member_can_be_trained_on(bases, tmp_path, name):
    member = tiny_pipelines.denoiser(name, seed=7)
    export_full(tmp_path / "member.safetensors", name, member.state_dict(), METADATA, title="tiny")
    # SD3's and Flux's configurations come from the file's shapes, the UNets' from the base's.
    options = {"configs": str(bases[name])} if name in ("sd15", "sdxl") else {}
    family = load_family(name, str(tmp_path / "member.safetensors"), encoders=str(bases[name]), **options)
    loaded = family.load_denoiser()
    assert loaded.state_dict().keys() == member.state_dict().keys()
    assert [key for key, value in member.state_dict().items() if not torch.equal(loaded.state_dict()[key], value)] == []
    noisy, prompt = torch.randn(1, family.latent_channels, 8, 8), family.encode_prompt(["a cat"])
    timesteps = family.sample_timesteps(torch.tensor([0.5]), (8, 8))
    with torch.no_grad():
        assert torch.equal(*(family.predict(denoiser, noisy, timesteps, prompt) for denoiser in (member, loaded)))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_unet_layout_is_the_one_diffusers_reads(name):
    unet = tiny_pipelines.denoiser(name)
    native = {
        f"model.diffusion_model.{key}": value
        for key, value in to_native(unet.state_dict(), unet_layout(unet.state_dict())).items()
    }
    back = convert_ldm_unet_checkpoint(native, config=unet.config)
    assert back.keys() == unet.state_dict().keys()
    assert [key for key, value in unet.state_dict().items() if not torch.equal(back[key], value)] == []


def test_the_mmdit_layout_is_the_one_diffusers_reads():
    transformer = tiny_pipelines.denoiser("sd3")
    native = to_native(transformer.state_dict(), mmdit_layout(transformer.state_dict()))
    back = convert_sd3_transformer_checkpoint_to_diffusers(native)
    assert back.keys() == transformer.state_dict().keys()
    assert [key for key, value in transformer.state_dict().items() if not torch.equal(back[key], value)] == []


# Names as the published files have them, at the places where counting goes wrong first.
SD15_NAMES = {
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "down_blocks.3.resnets.1.time_emb_proj.bias": "input_blocks.11.0.emb_layers.1.bias",
    "down_blocks.2.attentions.1.proj_in.weight": "input_blocks.8.1.proj_in.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias": (
        "middle_block.1.transformer_blocks.0.attn2.to_out.0.bias"
    ),
    "mid_block.resnets.1.norm2.weight": "middle_block.2.out_layers.0.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.upsamplers.0.conv.bias": "output_blocks.5.2.conv.bias",
    "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
    "conv_norm_out.weight": "out.0.weight",
    "time_embedding.linear_2.weight": "time_embed.2.weight",
}
SDXL_NAMES = {
    "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj.weight": (
        "input_blocks.4.1.transformer_blocks.1.ff.net.0.proj.weight"
    ),
    "down_blocks.2.resnets.1.conv1.weight": "input_blocks.8.0.in_layers.2.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
    "up_blocks.2.resnets.0.conv2.bias": "output_blocks.6.0.out_layers.3.bias",
}


@pytest.mark.parametrize(("name", "count", "names"), [("sd15", 686, SD15_NAMES), ("sdxl", 1680, SDXL_NAMES)])
def test_every_weight_of_the_published_unets_has_its_published_name(name, count, names):
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(read_json(CONFIGS / name / "unet" / "config.json"))
    places = unet_layout(unet.state_dict())
    assert len(places) == len({place.key for place in places.values()}) == count
    assert {key: places[key].key for key in names} == names


def test_markers_and_metadata_of_a_v_prediction_member(tmp_path):
    metadata = PairMetadata("dispreferred", pair_id="p", prediction_type="v_prediction", resolution=1024)
    weights = tiny_pipelines.denoiser("sdxl").state_dict()
    export_full(
        tmp_path / "v.safetensors", "sdxl", weights, metadata, title="t", zero_terminal_snr=True, dtype=torch.bfloat16
    )
    tensors = tensors_of(tmp_path / "v.safetensors")
    assert tensors["v_pred"].numel() == tensors["ztsnr"].numel() == 0
    assert {tensor.dtype for key, tensor in tensors.items() if key not in ("v_pred", "ztsnr")} == {torch.bfloat16}
    assert read_metadata(tmp_path / "v.safetensors") == metadata
    header = read_header(tmp_path / "v.safetensors")
    assert header["modelspec.prediction_type"] == header["modelspec.predict_key"] == "v"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header["modelspec.resolution"] == "1024x1024"
    export_full(tmp_path / "e.safetensors", "sdxl", weights, METADATA, title="t", zero_terminal_snr=True)
    assert not {"v_pred", "ztsnr"} & tensors_of(tmp_path / "e.safetensors").keys()


def test_a_weight_without_a_place_is_an_error_and_leaves_no_file(tmp_path):
    weights = tiny_pipelines.denoiser("sd15").state_dict()
    for extra in (
        "down_blocks.0.motion_modules.0.weight",
        "encoder_hid_proj.weight",
        "mid_block.resnets.0.other.weight",
    ):
        with pytest.raises(LayoutError, match=f"1 weights have no place .* `{extra}`"):
            export_full(tmp_path / "m.safetensors", "sd15", weights | {extra: torch.zeros(1)}, METADATA, title="t")
    fused = tiny_pipelines.denoiser("sd3").state_dict()
    fused.pop("transformer_blocks.0.attn.to_k.weight")
    with pytest.raises(LayoutError, match="fused from 3 weights, of which 2"):
        export_full(tmp_path / "m.safetensors", "sd3", fused, METADATA, title="t")
    assert list(tmp_path.iterdir()) == []


def test_a_member_with_nan_is_not_left_lying(tmp_path):
    weights = tiny_pipelines.denoiser("sd15").state_dict()
    weights["conv_in.bias"] = torch.full((16,), math.nan)
    with pytest.raises(LayoutError, match=r"`input_blocks\.0\.0\.bias` .* NaN"):
        export_full(tmp_path / "m.safetensors", "sd15", weights, METADATA, title="t")
    assert list(tmp_path.iterdir()) == []


# LoRA.


def trained_lora(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A base, and PEFT's state of an adapter on the family's own targets whose factors are no zeros."""
    base = tiny_pipelines.denoiser(name)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=list(FAMILIES[name].lora_targets))
    model = peft.get_peft_model(tiny_pipelines.denoiser(name), config)
    for key, weight in model.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return base, peft.get_peft_model_state_dict(model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sd15", "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight"),
        ("sdxl", "lora_unet_input_blocks_8_1_transformer_blocks_1_attn1_to_q.lora_down.weight"),
        ("sd3", "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"),
        ("flux", "transformer.single_transformer_blocks.1.attn.to_v.lora_B.weight"),
        ("z_image", "transformer.noise_refiner.0.attention.to_out.0.lora_A.weight"),
        ("qwen_image", "transformer.transformer_blocks.1.attn.add_q_proj.lora_A.weight"),
        ("krea2", "transformer.text_fusion.refiner_blocks.1.attn.to_v.lora_A.weight"),
        ("flux2_klein", "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_B.weight"),
        ("chroma", "transformer.transformer_blocks.0.attn.to_add_out.lora_A.weight"),
    ],
)
def test_a_lora_has_the_names_of_its_family_and_an_alpha_each(tmp_path, name, expected):
    base, lora = trained_lora(name)
    count = export_lora(tmp_path / "lora.safetensors", name, lora, 2.0, shapes_of(base), METADATA, title="t")
    tensors = tensors_of(tmp_path / "lora.safetensors")
    assert count == len(lora) / 2 == len(tensors) / 3
    assert expected in tensors
    assert {tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")} == {2.0}
    assert read_header(tmp_path / "lora.safetensors")["modelspec.architecture"].endswith("/lora")
    assert check_lora(tmp_path / "lora.safetensors", name, shapes_of(base)) == count


def test_a_convolutions_lora_fits_too(tmp_path):
    base = tiny_pipelines.denoiser("sd15")
    model = peft.get_peft_model(
        tiny_pipelines.denoiser("sd15"), peft.LoraConfig(r=4, target_modules=["conv1", "proj_in"])
    )
    count = export_lora(
        tmp_path / "l.safetensors",
        "sd15",
        peft.get_peft_model_state_dict(model),
        4,
        shapes_of(base),
        METADATA,
        title="t",
    )
    assert tensors_of(tmp_path / "l.safetensors")["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape == (
        4,
        32,
        3,
        3,
    )
    assert count > 5


def test_a_lora_of_another_base_is_an_error(tmp_path):
    _, lora = trained_lora("sd15")
    base, other = tiny_pipelines.denoiser("sdxl"), trained_lora("flux")[1]
    with pytest.raises(LayoutError, match="which the sdxl base does not have"):
        export_lora(tmp_path / "l.safetensors", "sdxl", other, 2.0, shapes_of(base), METADATA, title="t")
    widths = shapes_of(tiny_pipelines.denoiser("sd15")) | {
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight": (8, 8)
    }
    with pytest.raises(LayoutError, match="do not fit its weight"):
        export_lora(tmp_path / "l.safetensors", "sd15", lora, 2.0, widths, METADATA, title="t")
    with pytest.raises(LayoutError, match="is not a LoRA weight"):
        export_lora(
            tmp_path / "l.safetensors", "sd15", {"mid_block.x.weight": torch.zeros(1)}, 2.0, widths, METADATA, title="t"
        )
    assert list(tmp_path.iterdir()) == []


def test_zero_and_partial_matches_are_errors(tmp_path):
    base, lora = trained_lora("sd15")
    export_lora(tmp_path / "l.safetensors", "sd15", lora, 2.0, shapes_of(base), METADATA, title="t")
    tensors = load_file(tmp_path / "l.safetensors")
    with pytest.raises(LayoutError, match="change nothing"):
        check_lora(tmp_path / "l.safetensors", "sd3", shapes_of(tiny_pipelines.denoiser("sd3")))
    # What diffusers' own save_lora_weights would write.
    save_file(
        {key.replace("lora_unet_", "unet."): value for key, value in tensors.items()}, tmp_path / "zero.safetensors"
    )
    with pytest.raises(LayoutError, match="change nothing"):
        check_lora(tmp_path / "zero.safetensors", "sd15", shapes_of(base))
    for lost in (".alpha", ".lora_up.weight"):
        victim = next(key for key in tensors if key.endswith(lost))
        save_file({key: value for key, value in tensors.items() if key != victim}, tmp_path / "part.safetensors")
        with pytest.raises(LayoutError, match="only in part"):
            check_lora(tmp_path / "part.safetensors", "sd15", shapes_of(base))


def test_lora_names_are_unique():
    for name in FAMILIES:
        names = lora_names(name, tiny_pipelines.denoiser(name).state_dict())
        assert len(set(names.values())) == len(names)
