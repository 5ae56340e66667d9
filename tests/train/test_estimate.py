"""Estimates against sums done by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from chats_train.check import estimate
from chats_train.check.readiness import model_size
from chats_train.data import Bucket, PairDataset, PairSample, open_dataset
from chats_train.data.pair_columns import ColumnsMaker
from chats_train.data.pairs import FileImage, PairImage
from chats_train.encodings.cache import fill_cache
from chats_train.families import adapter_of
from chats_train.runs.opening import open_family
from chats_train.runs.whole_members import make_members
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.settings.facts import FAMILIES

# SDXL's UNet has 2,567,463,684 parameters; rounded for sums by hand.
SDXL = estimate.ModelSize(
    denoiser=2_567_000_000,
    blocks=2_200_000_000,
    adapter=23_200_000,
    latent_channels=4,
    pixels_per_latent=8,
    prompt_numbers=77 * 2048 + 1280,
)


def settings_of(**settings):
    return parse_config({"version": 1, "family": "sdxl", **PLACEHOLDERS, **settings})


def test_full_in_fp32_with_8_bit_adamw():
    # Two members: 2 · 4 · 2.567 G weights, as much of gradients, 2 · 2 · 2.567 G of moments, and a reference in their
    # precision, 4 · 2.567 G.
    found = estimate.memory_bytes(settings_of(optimizer="adamw8bit"), SDXL, "full", "fp32")
    assert found == pytest.approx(20.536e9 + 20.536e9 + 10.268e9 + 10.268e9)


def test_full_in_bf16_with_adafactor():
    # 2 · 2 · 2.567 G weights, as much of gradients, a reference of 2 · 2.567 G.
    found = estimate.memory_bytes(settings_of(optimizer="adafactor"), SDXL, "full", "bf16")
    assert found == pytest.approx(10.268e9 * 2 + 5.134e9)


def test_lora_is_a_base_and_two_small_adapters():
    # 2 · 2.567 G of base in bf16; two adapters of 23.2 M with 4 + 4 + 8 bytes.
    assert estimate.memory_bytes(settings_of(), SDXL, "lora", "fp32") == pytest.approx(5.134e9 + 2 * 23.2e6 * 16)


def test_one_model_without_reference_takes_less():
    # 2.567 G parameters with 4 + 4 + 8 bytes, and 4 for the average.
    found = estimate.memory_bytes(settings_of(objective="supervised_chosen", ema_decay=0.999), SDXL, "full", "fp32")
    assert found == pytest.approx(2.567e9 * 20)


def test_checkpoints_hold_no_gradients():
    # Two adapters: 4 bytes of weight, 8 of moments.
    assert estimate.checkpoint_bytes(settings_of(), SDXL) == 2 * 23_200_000 * 12


def test_adapter_parameters():
    shapes = {"a.to_q.weight": (320, 768), "a.to_q.bias": (320,), "b.conv.weight": (8, 4, 3, 3), "c.ff.weight": (9, 9)}
    # 16 · (320 + 768), and 2 · (8 + 4·3·3).
    assert estimate.adapter_parameters(shapes, ("to_q",), 16) == 17408
    assert estimate.adapter_parameters(shapes, ("conv",), 2) == 88


def test_cache_counts_each_image_and_prompt_once():
    images = [PairImage(FileImage(digest), digest * 64, 64, 64) for digest in "abc"]
    maker = ColumnsMaker()
    for i in (1, 2):
        maker.add(PairSample(f"{i:064}", "", "same", images[0], images[i], Bucket(64, 32)))
    found = estimate.cache_bytes(settings_of(), SDXL, PairDataset("d", maker.columns(FileImage), (), 0))
    # Three images of 8 × 4 latents, 4 channels, 4 bytes; two prompts (with the null one) of 77 · 2048 + 1280 numbers in
    # bf16.
    assert found == 3 * 32 * 4 * 4 + 2 * (77 * 2048 + 1280) * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_is_what_a_cache_takes(family, config, bases):
    """The files' bytes but for their headers, of each family on a tiny base."""
    run = config(family, mixed_precision="bf16")
    adapter, dataset = open_family(run, "cpu"), open_dataset(run, progress=False)
    fill_cache(run.cache_dir, dataset.samples, adapter, progress=False)
    found = sum(bytes_of_tensors(file) for file in run.cache_dir.glob("*.safetensors"))
    size = model_size(run, adapter)
    if size.own_lengths is not None:
        # The tiny tokenizer spells all that is around a caption too, so a token is a byte of text indeed.
        around = adapter.null_prompt()["mask"].shape[1]
        size = replace(size, own_lengths=(size.own_lengths[0], around))
    assert found == estimate.cache_bytes(run, size, dataset) > 0


def bytes_of_tensors(file):
    """Of a safetensors file: what follows its header, whose length its first 8 bytes state."""
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")


def test_prompts_of_the_published_models():
    """Numbers in one prompt's embeddings by the published configurations, and what 7,459 prompts take for Flux."""
    clip_l = {"hidden_size": 768, "max_position_embeddings": 77, "projection_dim": 768}
    clip_g = {"hidden_size": 1280, "max_position_embeddings": 77, "projection_dim": 1280}
    t5 = {"d_model": 4096}
    encoders = {
        "sd15": ({"text_encoder": clip_l}, 77 * 768),
        "sdxl": ({"text_encoder": clip_l, "text_encoder_2": clip_g}, 77 * 2048 + 1280),
        "sd3": ({"text_encoder": clip_l, "text_encoder_2": clip_g, "text_encoder_3": t5}, (77 + 77) * 4096 + 2048),
        "flux": ({"text_encoder": clip_l, "text_encoder_2": t5}, 256 * 4096 + 768),
        "z_image": ({"text_encoder": {"hidden_size": 2560}}, 512 * 2560 + 512),
        "qwen_image": ({"text_encoder": {"hidden_size": 3584}}, 1024 * 3584 + 1024),
        "krea2": ({"text_encoder": {"text_config": {"hidden_size": 2560}}}, 512 * 12 * 2560 + 512),
        "flux2_klein": ({"text_encoder": {"hidden_size": 2560}}, 512 * 3 * 2560),
        "chroma": ({"text_encoder": t5}, 512 * 4096 + 512),
    }
    assert encoders.keys() == FAMILIES.keys()
    for name, (configs, numbers) in encoders.items():
        adapter = object.__new__(adapter_of(FAMILIES[name]))
        adapter.source = SimpleNamespace(config=configs.__getitem__)
        assert sum(math.prod(shape) for shape in adapter.prompt_shapes().values()) == numbers
    # bf16, as mixed_precision is by default: 15.7 GB, where 512 tokens of T5 would take 31.3.
    assert encoders["flux"][1] * 2 * 7459 == pytest.approx(15.7e9, rel=0.01)


def test_the_reference_is_held_in_the_members_precision(config):
    """As the estimate counts it, also where passes are in bf16."""
    for weight_dtype, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        run = config(training_method="full", weight_dtype=weight_dtype, mixed_precision="bf16", output=weight_dtype)
        members = make_members(run, open_family(run, "cpu"), 2, True, torch.device("cpu"))
        assert {parameter.dtype for parameter in members.reference().parameters()} == {dtype}


def test_disk_of_a_folder_to_be_made(tmp_path):
    assert estimate.disk_of(tmp_path / "a" / "b") == (
        tmp_path.stat().st_dev,
        pytest.approx(estimate.disk_of(tmp_path)[1], rel=0.1),
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").write_bytes(b"12345")
    assert estimate.folder_bytes(tmp_path) == 5
    assert estimate.folder_bytes(tmp_path / "none") == 0
