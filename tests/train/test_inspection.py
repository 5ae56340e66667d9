"""What `inspect` says of files, told from key names and shapes that real ones have."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from chats import pair
from chats_train import inspection


def write(path, shapes, metadata=None):
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, path, metadata)
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
    "LoRA of rank 4 for SDXL (kohya keys), 2 modules, 1 of them with alpha": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": (640, 4),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.alpha": (),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 640),
    },
    "LoRA of rank 8 for Flux (`transformer.` keys), 1 modules, 0 of them with alpha": {
        "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (8, 3072)
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
    "LoRA for Flux (`transformer.` keys), 0 modules, 0 of them with alpha, 1 plain differences": {
        "transformer.single_transformer_blocks.0.attn.norm_q.diff": (128,)
    },
    "a safetensors file of a kind not known here": {"weight": (1,)},
}


@pytest.mark.parametrize("expected", KINDS)
def test_kinds(tmp_path, expected):
    path = write(tmp_path / "model.safetensors", KINDS[expected])
    assert inspection.describe(path)[0] == f"model.safetensors: {expected}"


def test_models_with_the_blocks_of_another_are_not_taken_for_it(tmp_path):
    qwen = {"transformer_blocks.0.attn.add_k_proj.weight": (3, 3), "txt_in.weight": (3, 3)}
    chroma = {"double_blocks.0.img_attn.qkv.weight": (9, 3), "distilled_guidance_layer.in_proj.weight": (3, 3)}
    for shapes in (qwen, chroma):
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
    metadata = pair.PairMetadata("dispreferred", pair_id="abc", alpha=0.5, guidance_scale=5.0, step=7)
    pair.write_member(tmp_path / "d.safetensors", {"weight": torch.zeros(1)}, metadata)
    lines = inspection.describe(tmp_path / "d.safetensors")
    assert "  the dispreferred member of the pair abc" in lines
    assert "  sample it with cfg 6 (s = 5), alpha 0.5" in lines
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
