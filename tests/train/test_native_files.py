"""Native checkpoints that are not what they seem: quantized, of other noise, with other inputs, of another family."""

import json
import struct

import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file, save_file

from chats_train import cli
from chats_train.families import SourceError, load_family
from chats_train.layouts.formats import file_format
from chats_train.layouts.places import to_native

DENOISER = "model.diffusion_model."
FIRST = DENOISER + "input_blocks.0.0.weight"


@pytest.fixture(scope="session")
def plain(bases):
    """A tiny SD1.5 or SDXL as one checkpoint."""
    made = {}

    def tensors(family):
        if family not in made:
            made[family] = tiny_pipelines.native_checkpoint(family, bases(family))
        return dict(made[family])

    return tensors


@pytest.fixture
def load(bases, tmp_path):
    """Opens tensors as a checkpoint of a family."""

    def load(family, tensors, metadata=None, **options):
        path = tmp_path / "base.safetensors"
        save_file(tensors, path, metadata)
        tokenizer = tiny_pipelines.save_clip_tokenizer(tmp_path / "tokenizer")
        return load_family(family, str(path), configs=str(bases(family)), tokenizer=str(tokenizer), **options)

    return load


def scaled(tensors, ending="scale_weight", parts=(DENOISER,)):
    """As ComfyUI scales a checkpoint's weights into fp8: matrices alone, each by its largest number."""
    made = {}
    for key, value in tensors.items():
        if key.startswith(parts) and value.ndim == 2 and key.endswith(".weight"):
            scale = value.abs().max() / 448
            made[key], made[key[:-6] + ending] = (value / scale).to(torch.float8_e4m3fn), scale.reshape(1).float()
            if ending == "weight_scale":
                words = json.dumps({"format": "float8_e4m3fn"}).encode()
                made[key[:-6] + "comfy_quant"] = torch.tensor(list(words), dtype=torch.uint8)
        else:
            made[key] = value
    if ending == "scale_weight":
        made[DENOISER + "scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return made


def meant(tensors):
    """The same checkpoint with the numbers that its weights stand for."""
    scales = {
        key.replace(ending, "weight"): value
        for ending in ("scale_weight", "weight_scale")
        for key, value in tensors.items()
        if key.endswith(ending)
    }
    plain = {
        key: value
        for key, value in tensors.items()
        if not key.endswith(("scale_weight", "weight_scale", "comfy_quant", "scaled_fp8"))
    }
    return {key: value.float() * scales[key] if key in scales else value for key, value in plain.items()}


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_the_numbers_that_were_meant(plain, load, ending):
    tensors = scaled(plain("sd15"), ending)
    family = load("sd15", tensors)
    loaded, shapes = family.load_denoiser().state_dict(), family.source.shapes("unet")
    counts, notes = family.parameter_counts(), family.notes
    expected = load("sd15", meant(tensors)).load_denoiser().state_dict()
    assert [key for key in expected if not torch.equal(loaded[key], expected[key])] == []
    original = load("sd15", plain("sd15"))
    weight = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(loaded[weight], original.load_denoiser().state_dict()[weight], rtol=0.07, atol=1e-3)
    assert (shapes, counts) == (original.source.shapes("unet"), original.parameter_counts())
    assert notes == ["base.safetensors has fp8 weights, which are multiplied by their scales"]
    assert original.notes == []


def test_scales_of_fused_weights_are_those_of_their_parts(bases, tmp_path):
    """SD3's q, k and v are one native matrix, and some of its modulations have their halves swapped."""
    denoiser = tiny_pipelines.denoiser("sd3")
    native = to_native(denoiser.state_dict(), file_format("sd3").layout(denoiser.state_dict()))
    tensors = scaled({DENOISER + key: value for key, value in native.items()})
    results = []
    for name, held in (("scaled", tensors), ("meant", meant(tensors))):
        save_file({key: value.contiguous() for key, value in held.items()}, tmp_path / f"{name}.safetensors")
        family = load_family("sd3", str(tmp_path / f"{name}.safetensors"), encoders=str(bases("sd3")))
        results.append(family.load_denoiser().state_dict())
    assert [key for key in results[0] if not torch.equal(results[0][key], results[1][key])] == []


def test_scaled_encoders_are_the_numbers_that_were_meant(plain, load):
    tensors = scaled(plain("sd15"), parts=(DENOISER, "cond_stage_model."))
    family = load("sd15", tensors)
    tokens, fingerprint = family.encode_prompt(["a cat"])["tokens"], family.fingerprint
    other = load("sd15", meant(tensors))
    assert torch.equal(tokens, other.encode_prompt(["a cat"])["tokens"])
    assert fingerprint != other.fingerprint


def test_fp8_without_scales_is_taken_as_it_is(plain, load):
    tensors = {
        key: value.to(torch.float8_e4m3fn) if key.startswith(DENOISER) else value
        for key, value in plain("sd15").items()
    }
    family = load("sd15", tensors)
    assert torch.equal(family.load_denoiser().conv_in.weight, tensors[FIRST].float())
    assert family.notes == ["base.safetensors has fp8 weights, which are taken as they are, as there are no scales"]


def test_the_note_is_said(plain, load, config, tmp_path, capsys, bases):
    load("sd15", scaled(plain("sd15")))
    run = config(
        pretrained_model=str(tmp_path / "base.safetensors"),
        configs=str(bases("sd15")),
        tokenizer=str(tmp_path / "tokenizer"),
    )
    (tmp_path / "run.yaml").write_text(json.dumps(run.model_dump(mode="json")))
    assert cli.main(["check", str(tmp_path / "run.yaml")]) == 0
    assert "note: base.safetensors has fp8 weights, which are multiplied by their scales\n" in capsys.readouterr().err


REFUSED = [
    (
        lambda t: t.update({FIRST: torch.zeros(16, 9, 3, 3)}),
        "9 input channels instead of 4: a mask and a masked picture",
    ),
    (lambda t: t.update({FIRST: torch.zeros(16, 8, 3, 3)}), "8 input channels instead of 4: a picture, to edit"),
    (lambda t: t.update({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}), r"is marked `edm_mean` \(EDM"),
    (lambda t: t.update({"edm_vpred.sigma_max": torch.tensor(80.0)}), "is marked `edm_vpred.sigma_max`"),
    (lambda t: t.update({DENOISER + "edm_vpred.sigma_max": torch.tensor(80.0)}), "is marked `edm_vpred.sigma_max`"),
    (lambda t: t.update({DENOISER + "out.2.weight": torch.zeros(9, dtype=torch.uint8)}), r"is quantized \(U8\)"),
    (lambda t: t.update({DENOISER + "out.2.weight": torch.zeros(9, dtype=torch.int8)}), r"is quantized \(I8\)"),
    (lambda t: t.update({DENOISER + "out.2.weight_scale": torch.zeros(4, 1)}), "is no scale of one weight as a whole"),
    (lambda t: t.update({DENOISER + "nowhere.scale_weight": torch.zeros(1)}), "is no scale of one weight as a whole"),
    (
        lambda t: t.update({DENOISER + "fuser.weight": torch.zeros(1)}),
        "has 1 weights that no SDXL has, the first is `fuser",
    ),
    (lambda t: t.pop(DENOISER + "out.2.bias"), r"has no `out\.2\.bias`"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_what_it_is_not_is_refused(plain, load, change, sentence):
    tensors = plain("sdxl")
    change(tensors)
    with pytest.raises(SourceError, match=sentence) as caught:
        load("sdxl", tensors)
    assert str(caught.value).startswith("`pretrained_model` base.safetensors")
    assert "; " in str(caught.value)


def test_another_family_is_named(plain, load, bases):
    wide = {f"{DENOISER}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768)}
    flux = {f"{DENOISER}double_blocks.0.img_attn.qkv.weight": torch.zeros(9, 3)}
    with pytest.raises(SourceError, match=r"is SD1.5 .native layout., and `family` is sdxl; correct `family`"):
        load("sdxl", wide)
    for family in ("sd15", "sd3"):
        with pytest.raises(SourceError, match=f"is Flux.1-schnell .native layout., and `family` is {family}"):
            load(family, flux)
    with pytest.raises(SourceError, match="of a kind not known here, and `family` is flux"):
        load("flux", {"weight": torch.zeros(1)})
    with pytest.raises(SourceError, match=r"diffusers layout.; give the whole diffusers folder"):
        load("sd15", load_file(bases("sd15") / "unet" / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize(
    ("family", "mark"), [("sd3", "joint_blocks.0.context_block.attn.qkv"), ("flux", "double_blocks.0.img_attn.qkv")]
)
@pytest.mark.parametrize("more", [{}, {"x_embedder.proj.weight": (3,), "img_in.weight": (3,)}])
def test_a_file_with_little_more_than_its_marks_is_refused(load, family, mark, more):
    shapes = {f"{mark}.weight": (9, 3), **more}
    with pytest.raises(
        SourceError, match=r"so it is not whole; download it again|of other shapes than a (SD3|Flux); correct"
    ):
        load(family, {DENOISER + key: torch.zeros(shape) for key, shape in shapes.items()})


@pytest.mark.parametrize("prefix", ["", DENOISER])
def test_marks_count_where_either_loader_of_comfyui_looks(plain, load, prefix):
    family = load("sdxl", plain("sdxl") | {prefix + "v_pred": torch.tensor([]), prefix + "ztsnr": torch.tensor([])})
    assert (family.prediction_type, family.schedule.zero_terminal_snr) == ("v_prediction", True)


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
def test_a_header_that_says_v_without_the_mark_is_asked_about(plain, load, key):
    with pytest.raises(
        SourceError, match=f"its header says `{key}` v, but there is no `v_pred` tensor.*set `prediction_type`"
    ):
        load("sdxl", plain("sdxl"), {key: "v"})
    assert load("sdxl", plain("sdxl"), {key: "v"}, prediction_type="v_prediction").prediction_type == "v_prediction"
    assert load("sdxl", plain("sdxl"), {key: "epsilon"}).prediction_type == "epsilon"


def test_a_gguf_file_is_called_one(tmp_path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0))
    with pytest.raises(SourceError, match=r"base\.gguf is a GGUF file, which is not read here; give the .safetensors"):
        load_family("flux", str(tmp_path / "base.gguf"))
