"""The model families, held against diffusers' own pipelines on tiny random bases."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import tiny_pipelines
import torch
from transformers import AutoTokenizer

from chats_train.families import SourceError, load_family
from chats_train.families.prompts import MASK, batch_of, rows_of
from chats_train.settings.facts import FAMILIES

PROMPTS = ["a cat", "two dogs on a roof"]
PIPELINES = {
    "sd15": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
    "flux": diffusers.FluxPipeline,
    "z_image": diffusers.ZImagePipeline,
    "qwen_image": diffusers.QwenImagePipeline,
    "chroma": diffusers.ChromaPipeline,
    "flux2_klein": diffusers.Flux2KleinPipeline,
    "krea2": diffusers.Krea2Pipeline,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_pipelines.save_pipeline(name, root / name) for name in FAMILIES}


def pipeline(name: str, folder: Path, scheduler=None):
    """diffusers' pipeline over the parts of a base."""
    family = load_family(name, str(folder))
    parts = {family.facts.denoiser_part: family.load_denoiser(), "vae": family.vae}
    parts |= dict(zip(family.facts.text_parts, family.text_encoders, strict=True))
    parts |= {part.name: AutoTokenizer.from_pretrained(part) for part in folder.glob("tokenizer*")}
    if name == "sd15":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = PIPELINES[name](scheduler=scheduler, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def pipeline_embeddings(name: str, pipe) -> dict[str, torch.Tensor]:
    if name == "sd15":
        return {"tokens": pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]}
    if name == "z_image":
        rows, _ = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
        return batch_of([{"tokens": row, "mask": torch.ones(len(row), dtype=torch.bool)} for row in rows])
    if name == "qwen_image":
        # A number for the published tokenizer, of how many tokens the template has before the prompt.
        before = pipe.prompt_template_encode.split("{}")[0]
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(before).input_ids)
        tokens, mask = pipe.encode_prompt(PROMPTS)
        return {"tokens": tokens, "mask": mask.bool()}
    if name == "krea2":
        # Numbers for the published tokenizer. It pads between the prompt and what comes after it.
        before, after = pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(before).input_ids)
        pipe.prompt_template_encode_num_suffix_tokens = len(pipe.tokenizer(after).input_ids)
        rows = [(row[shown].flatten(1), shown[shown]) for row, shown in zip(*pipe.encode_prompt(PROMPTS), strict=True)]
        return batch_of([{"tokens": row, "mask": shown} for row, shown in rows])
    if name == "flux2_klein":
        return {"tokens": pipe.encode_prompt(PROMPTS)[0]}
    if name == "chroma":
        # It shows the denoiser one token of padding, which is left out here.
        tokens, _, mask, *_ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        rows = [row[: int(shown.sum()) - 1] for row, shown in zip(tokens, mask, strict=True)]
        return batch_of([{"tokens": row, "mask": torch.ones(len(row), dtype=torch.bool)} for row in rows])
    if name == "sdxl":
        tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    elif name == "sd3":
        tokens, _, pooled, _ = pipe.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=77
        )
    else:
        tokens, pooled, _ = pipe.encode_prompt(PROMPTS, None, max_sequence_length=256)
    return {"tokens": tokens, "pooled": pooled}


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_encoded_as_diffusers_encodes_them(bases, name):
    family = load_family(name, str(bases[name]))
    ours, theirs = family.encode_prompt(PROMPTS), pipeline_embeddings(name, pipeline(name, bases[name]))
    assert ours.keys() == theirs.keys()
    # What is padded to one length there is alone here, and summed in another order.
    close = {"rtol": 1e-5, "atol": 1e-5} if MASK in ours else {"rtol": 0, "atol": 0}
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], **close)
        assert not torch.equal(ours[key][0], ours[key][1])


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_an_exclamation_mark_is_a_word_and_no_padding(bases, name):
    # "a!" is start, a, !</w>, end and then padding: the end again for OpenAI's CLIP, 0 for OpenCLIP.
    family = load_family(name, str(bases[name]))
    tokenizer = family.tokenizers[0]
    start, a, mark, end = tokenizer.convert_tokens_to_ids(["<|startoftext|>", "a</w>", "!</w>", "<|endoftext|>"])
    seen = []
    for encoder in family.text_encoders[:2]:
        encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, :6].tolist()))
    family.encode_prompt(["a!"])
    assert seen == [[start, a, mark, end, end, end], [start, a, mark, end, 0, 0]]


OWN_LENGTHS = [name for name, facts in FAMILIES.items() if facts.longest_prompt]


@pytest.mark.parametrize("name", OWN_LENGTHS)
def test_a_prompt_means_the_same_in_every_batch(bases, name):
    """Encoded and seen by the denoiser beside a longer one, as alone."""
    family = load_family(name, str(bases[name]))
    prompts = ["a", "two dogs on a roof " * 3]
    both, null = family.encode_prompt(prompts), family.null_prompt()
    lengths = [len(row["tokens"]) for row in rows_of(both)]
    assert len(null["tokens"][0]) < lengths[0] < lengths[1] == both[MASK].shape[1]
    for prompt, row in zip(prompts, rows_of(both), strict=True):
        (alone,) = rows_of(family.encode_prompt([prompt]))
        assert all(torch.equal(row[key], alone[key]) for key in alone)
    denoiser, timesteps = family.load_denoiser(), torch.tensor([0.3, 0.8])
    noisy = torch.randn(2, family.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = family.predict(denoiser, noisy, timesteps, both)
        for index, row in enumerate(rows_of(both)):
            one = slice(index, index + 1)
            alone = family.predict(denoiser, noisy[one], timesteps[one], batch_of([row]))
            torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)
        shared = family.predict(denoiser, noisy, timesteps, null)
    assert not torch.allclose(shared, together, atol=1e-3)


@pytest.mark.parametrize("name", ["sd3", "flux", "flux2_klein", *OWN_LENGTHS])
def test_one_step_of_a_flow_pipeline_is_our_prediction(bases, name):
    # From σ = 1 to 0 in one step a pipeline gives noise − v, so it shows packing, positions, guidance and time at once.
    pipe = pipeline(name, bases[name], diffusers.FlowMatchEulerDiscreteScheduler())
    family, denoiser = load_family(name, str(bases[name])), pipe.transformer
    shape = (2, 128, 3, 4) if name == "flux2_klein" else (2, 16, 6, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    embeddings = family.encode_prompt(PROMPTS)
    options = {"prompt_embeds": embeddings["tokens"], "pooled_prompt_embeds": embeddings.get("pooled")}
    if name == "z_image":
        rows = [row["tokens"] for row in rows_of(embeddings)]
        options = {"prompt_embeds": rows, "guidance_scale": 0.0, "latents": noise, "output_type": "latent"}
        theirs = pipe(**options, height=48, width=64, num_inference_steps=1).images
    elif name == "qwen_image":
        options = {"prompt_embeds": embeddings["tokens"], "prompt_embeds_mask": embeddings[MASK]}
        options |= {"latents": pipe._pack_latents(noise, 2, 16, 6, 8), "output_type": "latent", "true_cfg_scale": 1.0}
        packed = pipe(**options, height=48, width=64, num_inference_steps=1).images
        theirs = pipe._unpack_latents(packed, 48, 64, 8).squeeze(2)
    elif name == "krea2":
        options = {
            "prompt_embeds": embeddings["tokens"].unflatten(-1, (12, -1)),
            "prompt_embeds_mask": embeddings[MASK],
        }
        options |= {"latents": pipe._pack_latents(noise, 2, 16, 6, 8), "guidance_scale": 0.0, "output_type": "latent"}
        packed = pipe(**options, height=48, width=64, num_inference_steps=1).images
        theirs = pipe._unpack_latents(packed, 48, 64).squeeze(2)
    elif name == "flux2_klein":
        options = {"prompt_embeds": embeddings["tokens"], "latents": noise, "guidance_scale": 1.0}
        latents = pipe(**options, height=48, width=64, num_inference_steps=1, output_type="latent").images
        # Which it gives as its VAE takes them.
        mean, variance = (value.reshape(1, -1, 1, 1) for value in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
        theirs = (pipe._patchify_latents(latents) - mean) / (variance + 1e-4).sqrt()
    elif name == "chroma":
        options = {"prompt_embeds": embeddings["tokens"], "prompt_attention_mask": embeddings[MASK]}
        options |= {"latents": pipe._pack_latents(noise, 2, 16, 6, 8), "output_type": "latent", "guidance_scale": 1.0}
        packed = pipe(**options, height=48, width=64, num_inference_steps=1).images
        theirs = pipe._unpack_latents(packed, 48, 64, 8)
    elif name == "flux":
        latents = pipe._pack_latents(noise, 2, 16, 6, 8)
        packed = pipe(
            **options, latents=latents, height=48, width=64, num_inference_steps=1, output_type="latent"
        ).images
        theirs = pipe._unpack_latents(packed, 48, 64, 8)
    else:
        options |= {"guidance_scale": 1.0}
        theirs = pipe(**options, latents=noise, height=48, width=64, num_inference_steps=1, output_type="latent").images
    with torch.no_grad():
        ours = family.predict(denoiser, noise, torch.ones(2), embeddings)
    torch.testing.assert_close(noise - ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_one_step_of_a_unet_pipeline_is_our_prediction(bases, name):
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = pipeline(name, bases[name], scheduler)
    family = load_family(name, str(bases[name]))
    noise = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    embeddings = family.encode_prompt(PROMPTS)
    options = {"prompt_embeds": embeddings["tokens"], "guidance_scale": 1.0, "height": 48, "width": 64}
    if name == "sdxl":
        options |= {"pooled_prompt_embeds": embeddings["pooled"]}
    theirs = pipe(**options, latents=noise, num_inference_steps=1, output_type="latent").images
    sigma, timestep = scheduler.sigmas[0], scheduler.timesteps[0]
    x = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        ours = family.predict(pipe.unet, x / (sigma**2 + 1).sqrt(), timestep.long().expand(2), embeddings)
    torch.testing.assert_close(x - sigma * ours, theirs, atol=1e-4, rtol=1e-4)


def test_sdxl_is_told_the_true_sizes(bases):
    family = load_family("sdxl", str(bases["sdxl"]))
    denoiser, prompt = family.load_denoiser(), family.encode_prompt(["a cat"])
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])
    uncropped = torch.tensor([[64, 64, 0, 0, 64, 64]])
    cropped = torch.tensor([[100, 64, 18, 0, 64, 64]])
    with torch.no_grad():
        plain, told, other = (
            family.predict(denoiser, noisy, timesteps, prompt, sizes) for sizes in (None, uncropped, cropped)
        )
    assert torch.equal(plain, told)
    assert not torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [("sd15", 0.18215, 0.0), ("sd3", 1.5305, 0.0609), ("flux", 0.3611, 0.1159), ("z_image", 0.3611, 0.1159)],
)
def test_latents_have_the_familys_scale_and_shift(bases, name, scale, shift):
    family = load_family(name, str(bases[name]))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = family.encode_image(pixels)
    raw = family.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, (raw - shift) * scale)
    torch.testing.assert_close(family.decode_image(latents), family.vae.decode(raw).sample, atol=1e-4, rtol=1e-4)


def test_latents_of_flux2_are_packed_as_diffusers_packs_them(bases):
    pipe, family = pipeline("flux2_klein", bases["flux2_klein"]), load_family("flux2_klein", str(bases["flux2_klein"]))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = family.encode_image(pixels)
    assert latents.shape == (1, family.latent_channels, 32 // family.vae_scale_factor, 48 // family.vae_scale_factor)
    with torch.no_grad():
        torch.testing.assert_close(latents, pipe._encode_vae_image(pixels, None))
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(family.decode_image(latents), decoded, atol=1e-4, rtol=1e-4)


def test_a_distilled_model_is_no_base(bases, tmp_path):
    copy = shutil.copytree(bases["flux2_klein"], tmp_path / "copy")
    (copy / "model_index.json").write_text(json.dumps({"is_distilled": True}))
    with pytest.raises(SourceError, match=r"model_index.json: `is_distilled` is `true`, so it was distilled for a few"):
        load_family("flux2_klein", str(copy))


def test_the_null_prompt_follows_the_base(bases, tmp_path):
    sd15 = load_family("sd15", str(bases["sd15"]))
    assert sd15.null_prompt_kind == "encoded_empty"
    assert torch.equal(sd15.null_prompt()["tokens"], sd15.encode_prompt([""])["tokens"])
    sdxl = load_family("sdxl", str(bases["sdxl"]))
    assert sdxl.null_prompt_kind == "zeros"
    assert {key: (tuple(value.shape), value.count_nonzero().item()) for key, value in sdxl.null_prompt().items()} == {
        "tokens": ((1, 77, 64), 0),
        "pooled": ((1, 40), 0),
    }
    assert (
        load_family("sdxl", str(bases["sdxl"]), null_prompt="encoded_empty").null_prompt()["tokens"].count_nonzero() > 0
    )
    unforced = shutil.copytree(bases["sdxl"], tmp_path / "unforced")
    (unforced / "model_index.json").write_text(json.dumps({"force_zeros_for_empty_prompt": False}))
    assert load_family("sdxl", str(unforced)).null_prompt_kind == "encoded_empty"


def test_the_prediction_type_is_the_bases_or_the_users(bases, tmp_path):
    v = tiny_pipelines.save_pipeline("sdxl", tmp_path / "v", prediction_type="v_prediction", zero_terminal_snr=True)
    family = load_family("sdxl", str(v))
    assert (family.prediction_type, family.schedule.zero_terminal_snr) == ("v_prediction", True)
    assert load_family("sdxl", str(v), prediction_type="epsilon").prediction_type == "epsilon"
    assert load_family("sd15", str(bases["sd15"])).prediction_type == "epsilon"
    assert load_family("sd3", str(bases["sd3"])).prediction_type == "flow"
    with pytest.raises(SourceError, match="`prediction_type` is `flow`"):
        load_family("sd15", str(bases["sd15"]), prediction_type="flow")
    with pytest.raises(ValueError, match="leave it out"):
        load_family("flux", str(bases["flux"]), prediction_type="epsilon")


@pytest.mark.parametrize("changed", ["vae", "text_encoder", "text_encoder_2", "tokenizer"])
def test_a_changed_encoder_changes_the_fingerprint(bases, tmp_path, changed):
    copy = shutil.copytree(bases["sdxl"], tmp_path / "copy")
    before = load_family("sdxl", str(bases["sdxl"])).fingerprint
    assert load_family("sdxl", str(copy)).fingerprint == before
    file = next((copy / changed).glob("*.safetensors"), copy / changed / "vocab.json")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert load_family("sdxl", str(copy)).fingerprint != before


def test_the_fingerprint_knows_the_precision_and_ignores_the_denoiser(bases, tmp_path):
    copy = shutil.copytree(bases["sd15"], tmp_path / "copy")
    tiny_pipelines.denoiser("sd15", seed=9).save_pretrained(copy / "unet")
    ours, theirs = load_family("sd15", str(bases["sd15"])), load_family("sd15", str(copy))
    assert ours.fingerprint == theirs.fingerprint
    assert ours.base_sha256 != theirs.base_sha256
    assert load_family("sd15", str(copy), encoder_dtype=torch.bfloat16).fingerprint != ours.fingerprint


def test_parameters_are_counted_from_headers(bases):
    for name, folder in bases.items():
        family = load_family(name, str(folder))
        counts = family.parameter_counts()
        # SD3's table of positions is stored with the weights.
        buffers = sum(buffer.numel() for key, buffer in family.load_denoiser().named_buffers() if "pos_embed" in key)
        assert (
            counts[family.facts.denoiser_part] == sum(p.numel() for p in family.load_denoiser().parameters()) + buffers
        )
        assert counts["vae"] == sum(value.numel() for value in family.vae.state_dict().values())


def test_encoders_are_released_and_come_back(bases):
    family = load_family("sd15", str(bases["sd15"]))
    before = family.null_prompt()["tokens"]
    family.release_encoders()
    assert not {"vae", "text_encoders"} & family.__dict__.keys()
    assert torch.equal(family.null_prompt()["tokens"], before)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_weight_of_the_denoiser(bases, name):
    family = load_family(name, str(bases[name]))
    denoiser = family.load_denoiser()
    latents = torch.randn(1, family.latent_channels, 8, 8)
    timesteps = family.sample_timesteps(torch.tensor([0.4]), (8, 8))
    noise = torch.randn_like(latents)
    prediction = family.predict(
        denoiser, family.add_noise(latents, noise, timesteps), timesteps, family.encode_prompt(["a"])
    )
    (prediction - family.target(latents, noise, timesteps)).square().mean().backward()
    idle = [
        key for key, weight in denoiser.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0
    ]
    # The last block of SD3 and Qwen-Image asks nothing of its text any more, so what becomes of that leads nowhere.
    last = {"sd3": ("attn.add_q_proj", "attn.norm_added_q")}
    last["qwen_image"] = (*last["sd3"], "attn.to_add_out", "txt_mlp")
    dead = tuple(f"transformer_blocks.1.{module}" for module in last.get(name, ()))
    assert [key for key in idle if not key.startswith(dead)] == []
