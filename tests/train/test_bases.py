"""Bases that are not what they seem: refused in a sentence as they are opened, or read as what they are.

Each of these was once trained without a word.
"""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file, save_file

from chats_train import cli
from chats_train.families import SourceError, load_family
from chats_train.settings.facts import FAMILIES

SCHEDULER, UNET, VAE = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"
TRANSFORMER = "transformer/config.json"


@pytest.fixture
def edited(bases, tmp_path):
    """A tiny base with other values in one of its configurations."""

    def edit(family: str, file: str, **values: object) -> Path:
        copy = tmp_path / family
        if not copy.exists():
            shutil.copytree(bases(family), copy)
        path = copy / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return copy

    return edit


REFUSED = [
    # Noise.
    ("sd15", SCHEDULER, {"beta_schedule": "linear"}, "`beta_schedule` is `linear`, where SD1.5 has scaled_linear"),
    ("sdxl", SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "`beta_schedule` is `squaredcos_cap_v2`"),
    ("sd15", SCHEDULER, {"beta_start": 0.0001}, "`beta_start` is `0.0001`, where SD1.5 has 0.00085"),
    ("sd15", SCHEDULER, {"beta_end": 0.02}, "`beta_end` is `0.02`"),
    ("sd15", SCHEDULER, {"trained_betas": [0.1, 0.2]}, "`trained_betas` is `[0.1, 0.2]`"),
    ("sd15", SCHEDULER, {"num_train_timesteps": 4000}, "`num_train_timesteps` is `4000`"),
    ("sd15", SCHEDULER, {"prediction_type": "sample"}, "`prediction_type` is `sample`, which predicts the picture"),
    ("sdxl", SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "`EDMEulerScheduler`, whose noise is EDM's"),
    ("sdxl", SCHEDULER, {"_class_name": "EDMDPMSolverMultistepScheduler"}, "whose noise is EDM's"),
    ("sd15", SCHEDULER, {"_class_name": "LCMScheduler"}, "distilled for a few steps"),
    ("sdxl", SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "`_class_name` is `FlowMatchEuler"),
    ("sdxl", SCHEDULER, {"use_flow_sigmas": True}, "`use_flow_sigmas` is `true`"),
    ("sdxl", SCHEDULER, {"timestep_type": "continuous"}, "`timestep_type` is `continuous`"),
    ("sdxl", SCHEDULER, {"sigma_data": 0.5}, "`sigma_data` is `0.5`, which is not known here"),
    ("sd3", SCHEDULER, {"shift": 1.0}, "`shift` is `1.0`, where SD3 has 3.0"),
    ("sd3", SCHEDULER, {"use_dynamic_shifting": True}, "`use_dynamic_shifting` is `true`"),
    ("flux", SCHEDULER, {"invert_sigmas": True}, "`invert_sigmas` is `true`"),
    ("flux", SCHEDULER, {"_class_name": "DDIMScheduler"}, "`_class_name` is `DDIMScheduler`"),
    # UNets.
    ("sd15", UNET, {"in_channels": 9}, "`in_channels` is `9`, so it takes more: a mask and a masked picture"),
    ("sd15", UNET, {"in_channels": 8}, "so it takes more: a picture, to edit"),
    ("sdxl", UNET, {"in_channels": 5}, "`in_channels` is `5`"),
    ("sd15", UNET, {"out_channels": 8}, "`out_channels` is `8`, where SD1.5 has 4"),
    ("sd15", UNET, {"time_cond_proj_dim": 256}, "`time_cond_proj_dim` is `256`, so it was distilled"),
    ("sd15", UNET, {"class_embed_type": "projection"}, "`class_embed_type` is `projection`"),
    ("sd15", UNET, {"num_class_embeds": 10}, "`num_class_embeds` is `10`"),
    ("sd15", UNET, {"addition_embed_type": "text"}, "`addition_embed_type` is `text`, where SD1.5 has null"),
    ("sdxl", UNET, {"addition_embed_type": "text_image"}, "`addition_embed_type` is `text_image`"),
    ("sdxl", UNET, {"addition_embed_type": None}, "`addition_embed_type` is `null`, where SDXL has text_time"),
    ("sd15", UNET, {"encoder_hid_dim_type": "text_proj"}, "`encoder_hid_dim_type` is `text_proj`"),
    ("sd15", UNET, {"center_input_sample": True}, "`center_input_sample` is `true`"),
    ("sd15", UNET, {"attention_type": "gated"}, "`attention_type` is `gated`"),
    ("sd15", UNET, {"resnet_time_scale_shift": "scale_shift"}, "`resnet_time_scale_shift` is `scale_shift`"),
    ("sd15", UNET, {"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "`down_block_types` is"),
    ("sd15", UNET, {"block_out_channels": [16]}, "makes no UNet2DConditionModel (Must provide the same number of"),
    ("sdxl", SCHEDULER, {"_class_name": "utils"}, "`_class_name` is `utils`"),
    ("sd15", UNET, {"a_new_switch": 2}, "`a_new_switch` is `2`, which is not known here"),
    ("sd15", UNET, {"quantization_config": {"quant_method": "bitsandbytes"}}, "so its weights are quantized"),
    ("sd15", UNET, {"cross_attention_dim": 32}, "`cross_attention_dim` is 32, and the text encoders give 24"),
    # Transformers.
    (
        "flux",
        TRANSFORMER,
        {"in_channels": 384},
        "`in_channels` is `384`, so it takes more: a mask and a masked picture",
    ),
    ("flux", TRANSFORMER, {"in_channels": 128}, "as Flux Canny and Depth do"),
    ("flux", TRANSFORMER, {"axes_dims_rope": [32, 48, 48]}, "`axes_dims_rope` is `[32, 48, 48]`"),
    ("sd3", TRANSFORMER, {"in_channels": 33}, "`in_channels` is `33`"),
    ("sd3", TRANSFORMER, {"qk_norm": "layer_norm"}, "`qk_norm` is `layer_norm`"),
    (
        "sd3",
        TRANSFORMER,
        {"pooled_projection_dim": 2048},
        "`pooled_projection_dim` is 2048, and the text encoders give 64",
    ),
    # VAEs.
    (
        "sd15",
        VAE,
        {"_class_name": "AutoencoderTiny"},
        "has a AutoencoderTiny as its vae, `family` sd15 needs a AutoencoderKL",
    ),
    (
        "sdxl",
        VAE,
        {"latents_mean": [0.0] * 4},
        "`latents_mean` is `[0.0, 0.0, 0.0, 0.0]`, and ends up with one of the two",
    ),
    ("sdxl", VAE, {"latents_mean": [0.0], "latents_std": [1.0]}, "is not one number for each of 4 channels"),
    ("sd15", VAE, {"latent_channels": 16}, "`latent_channels` is `16`, where SD1.5 has 4"),
    ("sd15", VAE, {"act_fn": "gelu"}, "`act_fn` is `gelu`"),
    # Text encoders.
    ("sd15", "text_encoder/config.json", {"model_type": "clip"}, "`model_type` is `clip`"),
    ("sd15", "text_encoder/config.json", {"quantization_config": {"load_in_8bit": True}}, "weights are quantized"),
]


@pytest.mark.parametrize(("family", "file", "values", "sentence"), REFUSED)
def test_a_configuration_that_is_not_honoured_is_refused(edited, family, file, values, sentence):
    base = edited(family, file, **values)
    with pytest.raises(SourceError) as caught:
        load_family(family, str(base))
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert said.startswith(f"`pretrained_model` {base / file}")
    assert "; " in said


def test_check_and_train_refuse_it_alike(edited, config, capsys, tmp_path):
    base = edited("sd15", UNET, in_channels=9)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config(pretrained_model=str(base)).model_dump(mode="json")))
    for command in ("check", "train"):
        assert cli.main([command, str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: `pretrained_model` {base / UNET}: `in_channels` is `9`, so it takes more")
        assert said.count("\n") == 1


HARMLESS = [
    ("sd15", SCHEDULER, {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "timestep_spacing": "trailing"}),
    ("sdxl", SCHEDULER, {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "steps_offset": 1}),
    ("sdxl", SCHEDULER, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("flux", SCHEDULER, {"shift": 1.0, "use_dynamic_shifting": False, "max_shift": 1.2}),
    ("sd15", UNET, {"sample_size": 999, "upcast_attention": True, "dropout": 0.1, "a_new_switch": None, "_note": "x"}),
    ("sd15", VAE, {"force_upcast": False, "sample_size": 1, "scaling_factor": 0.5}),
]


@pytest.mark.parametrize(("family", "file", "values"), HARMLESS)
def test_what_changes_no_arithmetic_is_no_matter(edited, family, file, values):
    assert load_family(family, str(edited(family, file, **values))).notes == []


def test_a_prediction_that_the_config_states_stands_over_the_scheduler(edited):
    base = edited("sd15", SCHEDULER, prediction_type="sample")
    assert load_family("sd15", str(base), prediction_type="epsilon").prediction_type == "epsilon"


def test_every_key_of_diffusers_classes_is_one_or_the_other():
    """Honoured, built, or without a part in the arithmetic: a key of a new diffusers must be looked at."""
    import inspect

    from chats_train.families import adapter_of
    from chats_train.families.config_keys import DIFFUSION_SCHEDULERS, FLOW_SCHEDULERS

    def keys(cls):
        return set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}

    for facts in FAMILIES.values():
        adapter = adapter_of(facts)
        assert keys(adapter.part_classes()[facts.denoiser_part]) <= adapter.denoiser_keys.names
        assert keys(adapter.part_classes()["vae"]) <= adapter.autoencoder.keys.names
        schedulers = FLOW_SCHEDULERS if "flow" in facts.prediction_types else DIFFUSION_SCHEDULERS
        for name in schedulers.split():
            # Those of torchsde are stand-ins where it is missing.
            assert keys(getattr(diffusers, name)) <= adapter.noise_keys.names, name


def test_sizes_that_no_weight_shows_are_those_of_comfyui(bases, tmp_path, monkeypatch):
    """At ComfyUI's widths, heads and groups must be what it takes for granted."""
    monkeypatch.setitem(tiny_pipelines.CLIP_WIDTHS, "sd15", (768,))
    base = tiny_pipelines.save_pipeline("sd15", tmp_path / "base")
    tiny_pipelines.denoiser("sd15", 1, comfy=True).save_pretrained(base / "unet")
    load_family("sd15", str(base))
    for file, key, value in (
        (UNET, "attention_head_dim", 4),
        (UNET, "attention_head_dim", [2]),
        (UNET, "norm_num_groups", 16),
        (UNET, "norm_eps", 1e-6),
        (VAE, "scaling_factor", 0.13025),
        (VAE, "shift_factor", 0.1),
    ):
        path = base / file
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(SourceError, match=f"`{key}` is "):
            load_family("sd15", str(base))
        path.write_text(before)


# Latents by the base's own statistics.

MEAN, DEVIATION = [-1.6, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2]


def test_latents_are_scaled_by_their_statistics(bases, edited):
    plain = load_family("sdxl", str(bases("sdxl")))
    family = load_family("sdxl", str(edited("sdxl", VAE, scaling_factor=0.5, latents_mean=MEAN, latents_std=DEVIATION)))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = family.vae.encode(pixels).latent_dist.mean
    mean, deviation = (torch.tensor(values).reshape(1, 4, 1, 1) for values in (MEAN, DEVIATION))
    latents = family.encode_image(pixels)
    # As StableDiffusionXLPipeline decodes and its image-to-image form encodes.
    torch.testing.assert_close(latents, (raw - mean) * 0.5 / deviation)
    torch.testing.assert_close(family.decode_image(latents), family.vae.decode(raw).sample, atol=1e-4, rtol=1e-4)
    assert family.fingerprint != plain.fingerprint
    assert [note.startswith(f"`pretrained_model` {family.source.root / VAE}") for note in family.notes] == [True]


def test_latents_are_those_of_diffusers_pipeline(edited):
    folder = edited("sdxl", VAE, latents_mean=MEAN, latents_std=DEVIATION)
    family = load_family("sdxl", str(folder))
    noise = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    pipe = diffusers.StableDiffusionXLPipeline(
        **{part: None for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")},
        vae=family.vae,
        unet=family.load_denoiser(),
        scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    prompt = family.null_prompt()
    options = {
        "prompt_embeds": prompt["tokens"],
        "pooled_prompt_embeds": prompt["pooled"],
        "guidance_scale": 1.0,
        "height": 48,
        "width": 64,
        "latents": noise,
        "num_inference_steps": 1,
    }
    latents = pipe(**options, output_type="latent").images
    pictures = pipe(**options, output_type="pt").images
    torch.testing.assert_close((family.decode_image(latents) / 2 + 0.5).clamp(0, 1), pictures, atol=1e-4, rtol=1e-4)


# Weights of folders.


def save_in_shards(family: str, folder: Path, part: str, variant: str | None = "fp16") -> None:
    (folder / part / "diffusion_pytorch_model.safetensors").unlink()
    tiny_pipelines.denoiser(family, seed=3).save_pretrained(folder / part, variant=variant, max_shard_size="40KB")


@pytest.mark.parametrize("variant", ["fp16", None])
def test_shards_are_read_whole(bases, tmp_path, variant):
    copy = shutil.copytree(bases("sd15"), tmp_path / "copy")
    save_in_shards("sd15", copy, "unet", variant)
    shards = sorted(copy.glob("unet/*-of-*.safetensors"))
    assert len(shards) > 1
    family, expected = load_family("sd15", str(copy)), tiny_pipelines.denoiser("sd15", seed=3).state_dict()
    assert family.source.shapes("unet") == {key: tuple(value.shape) for key, value in expected.items()}
    assert family.parameter_counts()["unet"] == sum(value.numel() for value in expected.values())
    loaded = family.load_denoiser().state_dict()
    assert [key for key in expected if not torch.equal(loaded[key], expected[key])] == []
    before = family.base_sha256
    changed = load_file(shards[-1])
    save_file({key: value + 1 for key, value in changed.items()}, shards[-1])
    assert load_family("sd15", str(copy)).base_sha256 != before


def test_shards_of_a_text_encoder_are_read_whole(bases, tmp_path):
    copy = shutil.copytree(bases("flux"), tmp_path / "copy")
    encoder = load_family("flux", str(copy)).text_encoders[1]
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    encoder.save_pretrained(copy / "text_encoder_2", variant="fp16", max_shard_size="20KB")
    assert len(list(copy.glob("text_encoder_2/model.fp16-*.safetensors"))) > 1
    ours, theirs = load_family("flux", str(copy)), load_family("flux", str(bases("flux")))
    assert ours.parameter_counts() == theirs.parameter_counts()
    assert torch.equal(ours.null_prompt()["tokens"], theirs.null_prompt()["tokens"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda unet: sorted(unet.glob("*-of-*"))[0].unlink(), "files, of which 1 are missing, the first is "),
        (lambda unet: next(unet.glob("*.index.fp16.json")).unlink(), "which lists its shards; download it again"),
        (lambda unet: next(unet.glob("*.index.fp16.json")).write_text("{"), "cannot be read"),
        (lambda unet: save_file({"x": torch.zeros(1)}, sorted(unet.glob("*-of-*"))[0]), "which its files do not hold"),
    ],
)
def test_shards_that_are_not_all_there_are_refused(bases, tmp_path, damage, sentence):
    copy = shutil.copytree(bases("sd15"), tmp_path / "copy")
    save_in_shards("sd15", copy, "unet")
    damage(copy / "unet")
    with pytest.raises(SourceError, match=sentence):
        load_family("sd15", str(copy))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop("conv_out.bias"), r"`conv_out.bias` \(none instead of \[4\]\)"),
        (lambda tensors: tensors.update({"more.weight": torch.zeros(2)}), r"`more.weight` \(\[2\] instead of none\)"),
        (lambda tensors: tensors.update({"conv_out.bias": torch.zeros(3)}), r"\(\[3\] instead of \[4\]\)"),
        (
            lambda tensors: tensors.update({"conv_in.scale_weight": torch.ones(1)}),
            "has scaled fp8 weights, which are read from single files only",
        ),
        (
            lambda tensors: tensors.update({"conv_in.weight": torch.zeros(5, dtype=torch.uint8)}),
            r"`conv_in.weight` is quantized \(U8\)",
        ),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(bases, tmp_path, change, sentence):
    copy = shutil.copytree(bases("sd15"), tmp_path / "copy")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(SourceError, match=sentence):
        load_family("sd15", str(copy))


@pytest.mark.parametrize(("part", "file"), [("vae", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_an_encoder_that_lacks_weights_is_refused(bases, tmp_path, part, file):
    copy = shutil.copytree(bases("sd15"), tmp_path / "copy")
    path = copy / part / f"{file}.safetensors"
    tensors = load_file(path)
    dropped = next(key for key in tensors if "conv_in.weight" in key or "final_layer_norm.weight" in key)
    save_file({key: value for key, value in tensors.items() if key != dropped}, path, {"format": "pt"})
    family = load_family("sd15", str(copy))
    attribute = "vae" if part == "vae" else "text_encoders"
    with pytest.raises(SourceError, match="lacks 1 weights, the first is "):
        getattr(family, attribute)


def test_fp8_without_scales_is_taken_as_it_is(bases, tmp_path):
    copy = shutil.copytree(bases("sd15"), tmp_path / "copy")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {key: value.to(torch.float8_e4m3fn) for key, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    family = load_family("sd15", str(copy))
    loaded = family.load_denoiser().state_dict()
    assert [key for key, value in tensors.items() if not torch.equal(loaded[key], value.float())] == []
    assert family.notes == ["unet has fp8 weights, which are taken as they are, as there are no scales"]
