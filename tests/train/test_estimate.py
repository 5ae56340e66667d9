"""Estimates against sums done by hand."""

import pytest

from chats_train.check import estimate
from chats_train.data import Bucket, PairDataset, PairSample
from chats_train.data.pairs import PairImage
from chats_train.settings.config_file import PLACEHOLDERS, parse_config

# SDXL's UNet has 2,567,463,684 parameters; rounded for sums by hand.
SDXL = estimate.ModelSize(denoiser=2_567_000_000, adapter=23_200_000, latent_channels=4, pixels_per_latent=8)


def config(**settings):
    return parse_config({"version": 1, "family": "sdxl", **PLACEHOLDERS, **settings})


def test_full_in_fp32_with_8_bit_adamw():
    # Two members: 2 · 4 · 2.567 G weights, as much of gradients, 2 · 2 · 2.567 G of moments, and a reference in bf16, 2
    # · 2.567 G.
    found = estimate.memory_bytes(config(optimizer="adamw8bit"), SDXL, "full", "fp32")
    assert found == pytest.approx(20.536e9 + 20.536e9 + 10.268e9 + 5.134e9)


def test_full_in_bf16_with_adafactor():
    # 2 · 2 · 2.567 G weights, as much of gradients, a reference of 2 · 2.567 G.
    found = estimate.memory_bytes(config(optimizer="adafactor"), SDXL, "full", "bf16")
    assert found == pytest.approx(10.268e9 * 2 + 5.134e9)


def test_lora_is_a_base_and_two_small_adapters():
    # 2 · 2.567 G of base in bf16; two adapters of 23.2 M with 4 + 4 + 8 bytes.
    assert estimate.memory_bytes(config(), SDXL, "lora", "fp32") == pytest.approx(5.134e9 + 2 * 23.2e6 * 16)


def test_one_model_without_reference_takes_less():
    # 2.567 G parameters with 4 + 4 + 8 bytes, and 4 for the average.
    found = estimate.memory_bytes(config(objective="supervised_chosen", ema_decay=0.999), SDXL, "full", "fp32")
    assert found == pytest.approx(2.567e9 * 20)


def test_checkpoints_hold_no_gradients():
    # Two adapters: 4 bytes of weight, 8 of moments.
    assert estimate.checkpoint_bytes(config(), SDXL) == 2 * 23_200_000 * 12


def test_adapter_parameters():
    shapes = {"a.to_q.weight": (320, 768), "a.to_q.bias": (320,), "b.conv.weight": (8, 4, 3, 3), "c.ff.weight": (9, 9)}
    # 16 · (320 + 768), and 2 · (8 + 4·3·3).
    assert estimate.adapter_parameters(shapes, ("to_q",), 16) == 17408
    assert estimate.adapter_parameters(shapes, ("conv",), 2) == 88


def test_cache_counts_each_image_and_prompt_once():
    images = [PairImage(None, digest, 64, 64) for digest in "abc"]
    samples = [PairSample(str(i), "", "same", images[0], images[i], Bucket(64, 32)) for i in (1, 2)]
    found = estimate.cache_bytes(config(), SDXL, PairDataset("d", tuple(samples), (), 0))
    # Three images of 8 × 4 latents, 4 channels, 4 bytes; two prompts (with the null one) of 77 · 2048 + 1280 numbers in
    # bf16.
    assert found == 3 * 32 * 4 * 4 + 2 * (77 * 2048 + 1280) * 2


def test_disk_of_a_folder_to_be_made(tmp_path):
    assert estimate.disk_of(tmp_path / "a" / "b") == (
        tmp_path.stat().st_dev,
        pytest.approx(estimate.disk_of(tmp_path)[1], rel=0.1),
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").write_bytes(b"12345")
    assert estimate.folder_bytes(tmp_path) == 5
    assert estimate.folder_bytes(tmp_path / "none") == 0
