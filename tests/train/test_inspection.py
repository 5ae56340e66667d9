"""What `inspect` says of files, told from key names and shapes that real ones have."""

import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from chats import pair
from chats_train import inspection
from chats_train.support.errors import UserError


def write(path, shapes, metadata=None):
    """Zeros of these shapes; a dtype may follow a shape."""
    stated = {key: shape if isinstance(shape, list) else [shape, torch.float16] for key, shape in shapes.items()}
    save_file({key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in stated.items()}, path, metadata)
    return path


CROSS = "attn2.to_k.weight"
KINDS = {
    "SD1.5 (native layout) checkpoint": {
        f"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.{CROSS}": (320, 768),
        "first_stage_model.a": (1,),
        "cond_stage_model.b": (1,),
    },
    "SDXL (native layout) diffusion model, marked v-prediction and zero terminal SNR": {
        f"input_blocks.4.1.transformer_blocks.0.{CROSS}": (640, 2048),
        "v_pred": (0,),
        "ztsnr": (0,),
    },
    "SDXL (diffusers layout) diffusion model": {
        f"down_blocks.1.attentions.0.transformer_blocks.0.{CROSS}": (640, 2048)
    },
    "SD2 (native layout) diffusion model": {f"input_blocks.1.1.transformer_blocks.0.{CROSS}": (320, 1024)},
    "SD3 (native layout) diffusion model": {"joint_blocks.0.context_block.attn.qkv.weight": (9, 3)},
    "SD3 (diffusers layout) diffusion model": {"transformer_blocks.0.attn.add_k_proj.weight": (3, 3)},
    "Flux.1-dev (native layout) diffusion model": {
        "double_blocks.0.img_attn.qkv.weight": (9, 3),
        "guidance_in.in_layer.weight": (3, 3),
    },
    "Flux.1-schnell (native layout) diffusion model": {"double_blocks.0.img_attn.qkv.weight": (9, 3)},
    "Flux (diffusers layout) diffusion model": {
        "transformer_blocks.0.attn.add_k_proj.weight": (3, 3),
        "single_transformer_blocks.0.attn.to_k.weight": (3, 3),
    },
    "Krea 2 (native layout) diffusion model": {"txtfusion.projector.weight": (1, 12), "first.weight": (3, 64)},
    "Flux.2 Klein (native layout) diffusion model": {
        "double_blocks.0.img_attn.qkv.weight": (9, 3),
        "double_stream_modulation_img.lin.weight": (18, 3),
        "img_in.weight": (3, 128),
    },
    "LoRA of rank 8 for Flux.2 Klein (`transformer.` keys, diffusers' PEFT form), 1 modules, 0 of them with alpha": {
        "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight": (8, 3072)
    },
    "Chroma (native layout) diffusion model": {
        "double_blocks.0.img_attn.qkv.weight": (9, 3),
        "distilled_guidance_layer.in_proj.weight": (3, 3),
    },
    "Chroma (diffusers layout) diffusion model": {
        "transformer_blocks.0.attn.add_k_proj.weight": (3, 3),
        "single_transformer_blocks.0.attn.to_k.weight": (3, 3),
        "distilled_guidance_layer.in_proj.weight": (3, 3),
    },
    "LoRA of rank 4 for SDXL (kohya keys), 2 modules, 1 of them with alpha": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": (640, 4),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.alpha": (),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 640),
    },
    "LoRA of rank 8 for Flux or Chroma (`transformer.` keys, diffusers' PEFT form), 1 modules, 0 of them with alpha": {
        "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (8, 3072)
    },
    "LoRA of rank 4 for Flux or Chroma (`transformer.` keys, diffusers' PEFT form), 2 modules, 0 of them with alpha": {
        "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 3072),
        "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (4, 3072),
    },
    "LoRA of rank 8 for SD3 (`diffusion_model.` keys), 1 modules, 0 of them with alpha": {
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": (8, 1536)
    },
    "LoRA of rank 2 to 9 for SD1.5 (`diffusion_model.` keys), 4 modules, 1 of them with alpha, 2 plain differences": {
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_down.weight": (2, 768),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.alpha": (),
        **{
            f"diffusion_model.output_blocks.{rank}.0.in_layers.2.lora_down.weight": (rank, 320, 3, 3)
            for rank in (3, 5, 9)
        },
        "diffusion_model.out.0.diff": (320,),
        "diffusion_model.out.0.diff_b": (320,),
    },
    "LoRA for Flux or Chroma (`transformer.` keys), 0 modules, 0 of them with alpha, 1 plain differences": {
        "transformer.single_transformer_blocks.0.attn.norm_q.diff": (128,)
    },
    "a safetensors file of a kind not known here": {"weight": (1,)},
}


@pytest.mark.parametrize("expected", KINDS)
def test_kinds(tmp_path, expected):
    path = write(tmp_path / "model.safetensors", KINDS[expected])
    assert inspection.describe(path)[0] == f"model.safetensors: {expected}"


NATIVE = f"input_blocks.1.1.transformer_blocks.0.{CROSS}"
PREFIX = "model.diffusion_model."
FP8 = torch.float8_e4m3fn
SD15 = {PREFIX + NATIVE: (320, 768), "first_stage_model.a": (1,)}
SDXL = {f"{PREFIX}input_blocks.4.1.transformer_blocks.0.{CROSS}": (640, 2048), "first_stage_model.a": (1,)}
FLUX = {"double_blocks.0.img_attn.qkv.weight": (9, 3), "guidance_in.in_layer.weight": (3, 3)}
FLUX_DEV = "Flux.1-dev (native layout) diffusion model"
# What a base is beside its family, and what follows its kind.
BASES = {
    "SDXL (native layout) checkpoint, marked v-prediction and zero terminal SNR": SDXL
    | {"v_pred": (0,), "ztsnr": (0,)},
    f"SDXL (native layout) checkpoint, marked v-prediction and zero terminal SNR below `{PREFIX}`, where no checkpoint "
    "loader looks": SDXL | {PREFIX + "v_pred": (0,), PREFIX + "ztsnr": (0,)},
    "SDXL (native layout) checkpoint, marked EDM v-prediction": SDXL
    | {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()},
    "SDXL (native layout) checkpoint, marked EDM (Playground 2.5)": SDXL
    | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)},
    "SD1.5 (native layout) checkpoint, 9 input channels instead of 4: a mask and a masked picture, to inpaint": SD15
    | {PREFIX + "input_blocks.0.0.weight": (320, 9, 3, 3)},
    "SD1.5 (native layout) checkpoint, 8 input channels instead of 4: a picture, to edit": SD15
    | {PREFIX + "input_blocks.0.0.weight": (320, 8, 3, 3)},
    "SDXL (diffusers layout) diffusion model, 9 input channels instead of 4: a mask and a masked picture, to inpaint": {
        f"down_blocks.1.attentions.0.transformer_blocks.0.{CROSS}": (640, 2048),
        "conv_in.weight": (320, 9, 3, 3),
    },
    f"{FLUX_DEV}, 384 input channels instead of 64: a mask and a masked picture, as Flux Fill does": FLUX
    | {"img_in.weight": (3072, 384)},
    f"{FLUX_DEV}, 128 input channels instead of 64: a picture, as Flux Canny and Depth do": FLUX
    | {"img_in.weight": (3072, 128)},
    FLUX_DEV: FLUX | {"img_in.weight": (3072, 64)},
    "SD3 (native layout) diffusion model, 33 input channels instead of 16: more than noisy latents": {
        "joint_blocks.0.context_block.attn.qkv.weight": (9, 3),
        "x_embedder.proj.weight": (1536, 33, 2, 2),
    },
    "SD1.5 (native layout) checkpoint, scaled fp8": SD15
    | {
        PREFIX + NATIVE: [(320, 768), FP8],
        PREFIX + NATIVE[:-6] + "scale_weight": (1,),
        PREFIX + "scaled_fp8": [(0,), FP8],
    },
    f"{FLUX_DEV}, scaled fp8": {
        "double_blocks.0.img_attn.qkv.weight": [(9, 3), FP8],
        "double_blocks.0.img_attn.qkv.weight_scale": [(), torch.float32],
        "double_blocks.0.img_attn.qkv.comfy_quant": [(27,), torch.uint8],
        "guidance_in.in_layer.weight": (3, 3),
    },
    f"{FLUX_DEV}, fp8 without scales": {key: [shape, FP8] for key, shape in FLUX.items()},
    f"{FLUX_DEV}, quantized": {key: [shape, torch.uint8] for key, shape in FLUX.items()},
}
TO_K = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
OLD = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"
TEXT = "text_model_encoder_layers_0_self_attn_q_proj"
ADAPTERS = {
    "DoRA of rank 4 for SDXL (kohya keys), 1 modules, 1 of them with alpha": {
        **{f"{TO_K}.lora_down.weight": (4, 2048), f"{TO_K}.lora_up.weight": (640, 4)},
        **{f"{TO_K}.alpha": (), f"{TO_K}.dora_scale": (1, 2048)},
    },
    "LoHa for SDXL (kohya keys), 1 modules, 1 of them with alpha": {
        **{f"{TO_K}.hada_w1_a": (640, 4), f"{TO_K}.hada_w1_b": (4, 2048), f"{TO_K}.alpha": ()},
        **{f"{TO_K}.hada_w2_a": (640, 4), f"{TO_K}.hada_w2_b": (4, 2048)},
    },
    "LoKr for SDXL (kohya keys), 1 modules, 1 of them with alpha": {
        **{f"{TO_K}.lokr_w1": (8, 8), f"{TO_K}.lokr_w2_a": (80, 4), f"{TO_K}.lokr_w2_b": (4, 256), f"{TO_K}.alpha": ()},
    },
    "OFT for a UNet (kohya keys), 1 modules, 0 of them with alpha": {f"{TO_K}.oft_blocks": (4, 160, 160)},
    "BOFT for a UNet (kohya keys), 1 modules, 0 of them with alpha": {f"{TO_K}.oft_blocks": (2, 4, 160, 160)},
    "LoKr for Flux, Chroma or Flux.2 Klein (kohya keys), 1 modules, 0 of them with alpha": {
        "lora_unet_single_blocks_0_linear1.lokr_w1_a": (8, 2)
    },
    "LoRA of rank 4 for SD1.5 (`unet.` keys, diffusers' PEFT form), 1 modules, 0 of them with alpha": {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 768),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (320, 4),
    },
    "LoRA of rank 4 for SD1.5 (`unet.` keys, diffusers' older form), 1 modules, 0 of them with alpha": {
        f"{OLD}.down.weight": (4, 768),
        f"{OLD}.up.weight": (320, 4),
    },
    "LoRA of rank 4 for SD1.5 (`unet.` keys, diffusers' older form), 2 modules, 0 of them with alpha, "
    "1 of them on text encoders": {
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": (4, 768),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight": (4, 768),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora.up.weight": (320, 4),
    },
    "LoRA of rank 4 for SDXL (kohya keys), 3 modules, 0 of them with alpha, 2 of them on text encoders": {
        f"{TO_K}.lora_down.weight": (4, 2048),
        f"lora_te1_{TEXT}.lora_down.weight": (4, 768),
        f"lora_te2_{TEXT}.lora_down.weight": (4, 1280),
    },
    "LoRA of rank 4 for text encoders alone (kohya keys), 1 modules, 0 of them with alpha, "
    "1 of them on text encoders": {f"lora_te_{TEXT}.lora_down.weight": (4, 768)},
}


@pytest.mark.parametrize("expected", [*BASES, *ADAPTERS])
def test_what_is_not_plain_is_said(tmp_path, expected):
    path = write(tmp_path / "model.safetensors", {**BASES, **ADAPTERS}[expected])
    assert inspection.describe(path)[0] == f"model.safetensors: {expected}"


def gguf(*entries, version=3, tensors=780):
    """The beginning of a GGUF file: keys with text or a whole number of 32 bits."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    data = b"GGUF" + struct.pack("<IQQ", version, tensors, len(entries))
    for key, value in entries:
        data += text(key) + (
            struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
        )
    return data


@pytest.mark.parametrize("name", ["flux1-dev-Q8_0.gguf", "renamed.safetensors"])
def test_a_gguf_file_is_called_one(tmp_path, name):
    (tmp_path / name).write_bytes(gguf(("general.quantization_version", 2), ("general.architecture", "flux")))
    lines = inspection.describe(tmp_path / name)
    assert lines[0] == f"{name}: a GGUF file of flux, version 3, which is no safetensors file"
    assert "780 tensors" in lines[1]
    assert "two GGUF loaders" in lines[2]
    assert "CHATS Apply" in lines[2]
    assert "the trainer does not read it" in lines[3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gguf(), "a GGUF file, version 3"),
        (gguf(("general.architecture", "f"))[:-1], "a GGUF file, version 3"),
        (gguf(("general.name", "n" * 5000), ("general.architecture", "flux")), "a GGUF file, version 3"),
        (gguf(("a", 1))[:30], "a GGUF file, version 3"),
        (gguf(("general.architecture", "f\x1b[2J"), version=2), r"a GGUF file of f\x1b\[2J…, version 2"),
    ],
)
def test_a_damaged_gguf_file_is_told_as_far_as_it_goes(tmp_path, data, said):
    (tmp_path / "m.gguf").write_bytes(data)
    assert inspection.describe(tmp_path / "m.gguf")[0].startswith(f"m.gguf: {said}".replace("\\[", "["))
    (tmp_path / "m.gguf").write_bytes(data[:10])
    with pytest.raises(UserError, match="is a GGUF file that is cut off; download it again"):
        inspection.describe(tmp_path / "m.gguf")


def test_models_with_the_blocks_of_another_are_not_taken_for_it(tmp_path):
    qwen = {"transformer_blocks.0.attn.add_k_proj.weight": (3, 3), "txt_in.weight": (3, 3)}
    radiance = {"double_blocks.0.img_attn.qkv.weight": (9, 3), "distilled_guidance_layer.in_proj.weight": (3, 3)}
    radiance |= {"nerf_blocks.0.norm.scale": (3,)}
    for shapes in (qwen, radiance):
        assert inspection.describe(write(tmp_path / "m.safetensors", shapes))[0].endswith("of a kind not known here")


def test_sizes_and_parts(tmp_path):
    shapes = {
        f"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.{CROSS}": (320, 768),
        "first_stage_model.a": (1500,),
    }
    lines = inspection.describe(write(tmp_path / "m.safetensors", shapes, {"modelspec.title": "t" * 300}))
    # 320 · 768 = 245,760 numbers, and 1,500.
    assert ", 2 tensors, 247 K parameters, F16" in lines[1]
    assert lines[2:5] == [
        "  denoiser: 1 tensors, 246 K parameters",
        "  VAE: 1 tensors, 1.5 K parameters",
        "  no pair metadata",
    ]
    assert lines[5] == f"  modelspec.title: {'t' * 100}… (300 characters)"


def test_a_member_of_a_pair(tmp_path):
    rated = dict(dataset_name="my taste", dataset_pairs=40, base_name="SDXL", held_out_accuracy=0.75)
    metadata = pair.PairMetadata("dispreferred", pair_id="abc", alpha=0.5, guidance_scale=5.0, step=7, **rated)
    pair.write_member(tmp_path / "d.safetensors", {"weight": torch.zeros(1)}, metadata)
    lines = inspection.describe(tmp_path / "d.safetensors")
    assert "  the dispreferred member of the pair abc" in lines
    assert "  sample it with cfg 6 (s = 5), alpha 0.5" in lines
    assert "  trained on 40 rated pairs of my taste, base SDXL, held-out pairs told right: 75%" in lines
    assert "  chats.step: 7" in lines


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for name in ("model.ckpt", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(pair.PairError, match=r"can run code when it is opened|is not a whole safetensors file"):
            inspection.describe(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_texts():
    assert [inspection.bytes_text(size) for size in (0, 999, 1500, 6.94e9, 2e15)] == [
        "0 B",
        "999 B",
        "1.5 KB",
        "6.94 GB",
        "2e+03 TB",
    ]
    assert [inspection.count_text(count) for count in (12, 1500, 860_000_000, 2_567_463_684)] == [
        "12",
        "1.5 K",
        "860 M",
        "2.57 B",
    ]
