"""Tiny random base models of every family, saved as diffusers folders: random encoders and denoisers, tokenizers of
single letters.

The denoisers are small in every width that only diffusers sees. `comfy=True` gives the widths that real ComfyUI knows a
family by, but for SD1.5's and SDXL's 320 channels, of which 64 are left (`know_narrow` of tests/comfy).
"""

import json
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

# "!" is token 0 in CLIP's vocabulary, which OpenCLIP pads with.
LETTERS = "!abcdefghijklmnopqrstuvwxyz"
CLIP_WIDTHS = {"sd15": (24,), "sdxl": (24, 40), "sd3": (24, 40), "flux": (24,)}
T5_WIDTH = 80
# Of the families under a language model.
LLM_WIDTHS = {"z_image": 48, "qwen_image": 24, "flux2_klein": 8, "krea2": 40}


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Normal weights scaled by fan-in, and no bias or norm left at its default: a swapped or forgotten one must
    show."""
    generator = torch.Generator().manual_seed(seed)
    # Krea 2 adds 1 to its norms' weights.
    mean = 0.0 if isinstance(module, Krea2Transformer2DModel) else 1.0
    for name, value in module.named_parameters():
        noise = torch.empty(value.shape).normal_(generator=generator)
        one = mean if value.ndim <= 1 and "norm" in name and name.endswith("weight") else 0.0
        value.data = noise * 0.1 + one if value.ndim <= 1 else noise / value[0].numel() ** 0.5
    return module.eval()


def save_clip_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> Path:
    """CLIP's tokenizer over single letters, as its vocab.json and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special})
    )
    return folder


CLIP_VOCABULARY = 2 * len(LETTERS) + 2


def save_t5_tokenizer(folder: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_llm_tokenizer(folder: Path) -> None:
    """Single letters, and a language model's marks of who speaks."""
    words = ["<|endoftext|>", "<unk>", " ", "\n", *LETTERS]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=1))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # A template's own last newline is no part of it.
    turn, end = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n", "{{ '\\n' }}"
    end += "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="right",
        chat_template=f"{{% for message in messages %}}{turn}{{% endfor %}}<|im_start|>assistant{end}",
    ).save_pretrained(folder)


LLM_VOCABULARY = 4 + len(LETTERS) + 2


def clip(width: int, projection: bool, seed: int) -> torch.nn.Module:
    config = CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=CLIP_VOCABULARY - 2,
        eos_token_id=CLIP_VOCABULARY - 1,
        pad_token_id=1,
    )
    return randomised((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def t5(width: int, seed: int) -> torch.nn.Module:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=4 + len(LETTERS), feed_forward_proj="gated-gelu", **sizes)
    return randomised(T5EncoderModel(config), seed)


def qwen3(width: int, seed: int, layers: int = 2) -> torch.nn.Module:
    config = Qwen3Config(
        vocab_size=LLM_VOCABULARY,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=None,
        eos_token_id=None,
    )
    return randomised(Qwen3Model(config), seed)


def qwen_vl(width: int, seed: int) -> torch.nn.Module:
    text = dict(vocab_size=LLM_VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=2)
    text |= dict(num_attention_heads=2, num_key_value_heads=1, bos_token_id=None, eos_token_id=None)
    third = width // 12
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [width // 4 - 2 * third, third, third]}
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=1, out_hidden_size=width)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return randomised(Qwen2_5_VLForConditionalGeneration(config), seed)


def qwen3_vl(width: int, seed: int) -> torch.nn.Module:
    """Krea 2 looks into the 35th layer."""
    text = dict(vocab_size=LLM_VOCABULARY, hidden_size=width, intermediate_size=8, num_hidden_layers=36, head_dim=8)
    text |= dict(num_attention_heads=1, num_key_value_heads=1, bos_token_id=None, eos_token_id=None)
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, out_hidden_size=width)
    vision |= dict(deepstack_visual_indexes=[0], num_position_embeddings=4, patch_size=4)
    return randomised(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)), seed)


def vae(family: str, seed: int) -> torch.nn.Module:
    if family in ("qwen_image", "krea2"):
        small = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        return randomised(small, seed)
    if family == "flux2_klein":
        packing = AutoencoderKLFlux2(block_out_channels=[8, 8, 16, 16], layers_per_block=1, norm_num_groups=4)
        generator = torch.Generator().manual_seed(seed)
        packing.bn.running_mean.normal_(generator=generator)
        packing.bn.running_var.uniform_(0.5, 2.0, generator=generator)
        return randomised(packing, seed)
    scale, shift, channels = {
        "sd15": (0.18215, None, 4),
        "sdxl": (0.13025, None, 4),
        "sd3": (1.5305, 0.0609, 16),
        "flux": (0.3611, 0.1159, 16),
        "z_image": (0.3611, 0.1159, 16),
        "chroma": (0.3611, 0.1159, 16),
    }[family]
    blocks = 4
    return randomised(
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
            block_out_channels=[8, 8, 16, 16],
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=channels,
            scaling_factor=scale,
            shift_factor=shift,
            use_quant_conv=channels == 4,
            use_post_quant_conv=channels == 4,
        ),
        seed,
    )


def denoiser(family: str, seed: int = 0, comfy: bool = False) -> torch.nn.Module:
    """A random denoiser; with ``comfy`` one that ComfyUI detects in the tests."""
    make = {
        "sd15": _sd15,
        "sdxl": _sdxl,
        "sd3": _sd3,
        "flux": _flux,
        "z_image": _z_image,
        "qwen_image": _qwen_image,
        "chroma": _chroma,
        "flux2_klein": _flux2_klein,
        "krea2": _krea2,
    }[family]
    return randomised(make(comfy), seed)


def _sd15(comfy: bool, width: int = 64) -> torch.nn.Module:
    """ComfyUI knows SD1.5 by its widths; one level will do."""
    return UNet2DConditionModel(
        block_out_channels=(width,) if comfy else (16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) if comfy else ("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D",) if comfy else ("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768 if comfy else CLIP_WIDTHS["sd15"][0],
        attention_head_dim=8,
        norm_num_groups=32 if comfy else 8,
    )


def _sdxl(comfy: bool, width: int = 64) -> torch.nn.Module:
    """ComfyUI knows SDXL by its depths 1, 2, 10 on the way down and its first width; the others may be that too."""
    channels, pooled = (width,) * 3 if comfy else (16, 32, 32), 1280 if comfy else CLIP_WIDTHS["sdxl"][1]
    return UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048 if comfy else sum(CLIP_WIDTHS["sdxl"]),
        transformer_layers_per_block=[1, 2, 10] if comfy else [1, 1, 2],
        reverse_transformer_layers_per_block=[1, 1, 1] if comfy else None,
        attention_head_dim=[channel // (64 if comfy else 8) for channel in channels],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256 if comfy else 8,
        projection_class_embeddings_input_dim=pooled + 6 * (256 if comfy else 8),
        norm_num_groups=32 if comfy else 8,
    )


def _sd3(comfy: bool) -> torch.nn.Module:
    """ComfyUI takes SD3's number of heads for its depth, so two heads need two blocks there."""
    return SD3Transformer2DModel(
        sample_size=32,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=64,
        caption_projection_dim=128,
        joint_attention_dim=4096 if comfy else T5_WIDTH,
        pooled_projection_dim=2048 if comfy else sum(CLIP_WIDTHS["sd3"]),
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def _flux(comfy: bool) -> torch.nn.Module:
    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=1,
        attention_head_dim=128,
        joint_attention_dim=4096 if comfy else T5_WIDTH,
        pooled_projection_dim=768 if comfy else CLIP_WIDTHS["flux"][0],
        guidance_embeds=True,
    )


def _z_image(comfy: bool) -> torch.nn.Module:
    """ComfyUI knows Z-Image by its width of 3840, which is too much; with ``comfy`` there are at least as many of its
    blocks as ComfyUI takes for granted."""
    # ComfyUI rounds the width between two layers up, but not that of 384.
    heads = 3 if comfy else 1
    model = ZImageTransformer2DModel(
        dim=128 * heads,
        n_layers=2 if comfy else 1,
        n_refiner_layers=2 if comfy else 1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=2560 if comfy else LLM_WIDTHS["z_image"],
    )
    if comfy:
        # Which in ComfyUI is no wider than the model.
        model.t_embedder = TimestepEmbedder(256, mid_size=128 * heads)
    return model


def _qwen_image(comfy: bool) -> torch.nn.Module:
    return QwenImageTransformer2DModel(
        num_layers=2,
        num_attention_heads=2 if comfy else 1,
        joint_attention_dim=3584 if comfy else LLM_WIDTHS["qwen_image"],
    )


def _chroma(comfy: bool) -> torch.nn.Module:
    """ComfyUI makes 344 modulations for every Chroma: 12 for each double block, 3 for each single one, 2 at the end."""
    return ChromaTransformer2DModel(
        num_layers=28 if comfy else 1,
        num_single_layers=2,
        num_attention_heads=1,
        attention_head_dim=128,
        joint_attention_dim=4096 if comfy else T5_WIDTH,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )


def _flux2_klein(comfy: bool) -> torch.nn.Module:
    return Flux2Transformer2DModel(
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=1,
        joint_attention_dim=7680 if comfy else 3 * LLM_WIDTHS["flux2_klein"],
        guidance_embeds=False,
    )


def _krea2(comfy: bool) -> torch.nn.Module:
    """Of the widths between two layers that ComfyUI takes for granted."""
    return Krea2Transformer2DModel(
        num_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=384,
        text_hidden_dim=LLM_WIDTHS["krea2"],
        text_intermediate_size=128,
    )


def published(family: str) -> torch.nn.Module:
    """A denoiser of the published widths, of two blocks of each kind; for the meta device. Of SD1.5 and SDXL what
    ComfyUI knows them by."""
    return {
        "sd15": lambda: _sd15(True, 320),
        "sdxl": lambda: _sdxl(True, 320),
        "z_image": lambda: ZImageTransformer2DModel(n_layers=2),
        "qwen_image": lambda: QwenImageTransformer2DModel(num_layers=2),
        "chroma": lambda: ChromaTransformer2DModel(num_layers=2, num_single_layers=2),
        "krea2": lambda: Krea2Transformer2DModel(num_layers=2),
        "flux2_klein": lambda: Flux2Transformer2DModel(
            num_layers=2, num_single_layers=2, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ),
    }[family]()


def save_pipeline(
    family: str, folder: Path, prediction_type: str = "epsilon", zero_terminal_snr: bool = False, seed: int = 0
) -> Path:
    """A whole tiny base in diffusers' arrangement."""
    part = "unet" if family in ("sd15", "sdxl") else "transformer"
    denoiser(family, seed).save_pretrained(folder / part)
    vae(family, seed + 1).save_pretrained(folder / "vae")
    for index, width in enumerate(CLIP_WIDTHS.get(family, ())):
        suffix = f"_{index + 1}" if index else ""
        projection = family == "sd3" or index == 1
        clip(width, projection, seed + 2 + index).save_pretrained(folder / f"text_encoder{suffix}")
        save_clip_tokenizer(folder / f"tokenizer{suffix}", pad_token="!" if index else "<|endoftext|>")
    if family in LLM_WIDTHS:
        # Flux.2 Klein looks into the 27th layer.
        make = {"qwen_image": qwen_vl, "flux2_klein": partial(qwen3, layers=28), "krea2": qwen3_vl}.get(family, qwen3)
        make(LLM_WIDTHS[family], seed + 2).save_pretrained(folder / "text_encoder")
        save_llm_tokenizer(folder / "tokenizer")
    if family in ("sd3", "flux", "chroma"):
        clips = len(CLIP_WIDTHS.get(family, ()))
        suffix = f"_{clips + 1}" if clips else ""
        t5(T5_WIDTH, seed + 5).save_pretrained(folder / f"text_encoder{suffix}")
        save_t5_tokenizer(folder / f"tokenizer{suffix}")
    if part == "transformer":
        FlowMatchEulerDiscreteScheduler(shift=6.0 if family == "z_image" else 3.0).save_pretrained(folder / "scheduler")
    else:
        DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            rescale_betas_zero_snr=zero_terminal_snr,
        ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Tiny"}))
    return folder


def native_checkpoint(family: str, root: Path) -> dict[str, torch.Tensor]:
    """A tiny base as one SD1.5 or SDXL checkpoint: VAE and CLIP renamed here, by hand, as the published files name
    them."""
    from chats_train.layouts.places import to_native
    from chats_train.layouts.unet import unet_layout

    unet = UNet2DConditionModel.from_pretrained(root / "unet").state_dict()
    tensors = {f"model.diffusion_model.{key}": value for key, value in to_native(unet, unet_layout(unet)).items()}
    vae_state = AutoencoderKL.from_pretrained(root / "vae").state_dict()
    tensors |= {
        f"first_stage_model.{_native_vae_key(key)}": _native_vae_value(key, value) for key, value in vae_state.items()
    }
    first = CLIPTextModel.from_pretrained(root / "text_encoder").state_dict()
    prefix = "cond_stage_model" if family == "sd15" else "conditioner.embedders.0"
    tensors |= {
        f"{prefix}.transformer.text_model.{key.removeprefix('text_model.')}": value for key, value in first.items()
    }
    if family == "sdxl":
        second = CLIPTextModelWithProjection.from_pretrained(root / "text_encoder_2").state_dict()
        tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in _open_clip(second).items()}
    return {key: value.contiguous().clone() for key, value in tensors.items()}


def _native_vae_key(key: str) -> str:
    blocks = 4
    for i in range(blocks):
        key = key.replace(f"encoder.down_blocks.{i}.resnets.", f"encoder.down.{i}.block.")
        key = key.replace(f"encoder.down_blocks.{i}.downsamplers.0.", f"encoder.down.{i}.downsample.")
        key = key.replace(f"decoder.up_blocks.{i}.resnets.", f"decoder.up.{blocks - 1 - i}.block.")
        key = key.replace(f"decoder.up_blocks.{i}.upsamplers.0.", f"decoder.up.{blocks - 1 - i}.upsample.")
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        key = key.replace(ours, theirs)
    return key


def _native_vae_value(key: str, value: torch.Tensor) -> torch.Tensor:
    return value[:, :, None, None] if "attentions" in key and value.ndim == 2 else value


def _open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    native = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    for layer in range(3):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            native[f"{theirs}.attn.in_proj_{end}"] = torch.cat(
                [state[f"{ours}.self_attn.{p}_proj.{end}"] for p in "qkv"]
            )
            native[f"{theirs}.attn.out_proj.{end}"] = state[f"{ours}.self_attn.out_proj.{end}"]
            native[f"{theirs}.mlp.c_fc.{end}"] = state[f"{ours}.mlp.fc1.{end}"]
            native[f"{theirs}.mlp.c_proj.{end}"] = state[f"{ours}.mlp.fc2.{end}"]
            native[f"{theirs}.ln_1.{end}"] = state[f"{ours}.layer_norm1.{end}"]
            native[f"{theirs}.ln_2.{end}"] = state[f"{ours}.layer_norm2.{end}"]
    return native
