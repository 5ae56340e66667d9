"""Buckets by hand, and what of an image a bucket shows."""

import numpy
import pytest
import torch
from pictures import encoded, picture
from PIL import Image

from chats.buckets import Bucket, make_buckets, pair_bucket, place, size_conditioning
from chats_train.data.images import decode, pixels


def test_buckets_by_hand():
    # Area at most 256² = 65,536, sides multiples of 64 from 128 to 512: 128 × 512 (65,536), 192 × 320 (61,440), 256 ×
    # 256.
    assert make_buckets(256, 64, 128, 512) == ((128, 512), (192, 320), (256, 256), (320, 192), (512, 128))


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (1000, 64), (768, 32), (64, 8), (64, 128)])
def test_buckets_hold_their_promises(resolution, step):
    buckets = make_buckets(resolution, step, resolution // 2, resolution * 2)
    assert len(set(buckets)) == len(buckets) > 0
    for width, height in buckets:
        assert width % step == height % step == 0
        assert width * height <= max(resolution, step) ** 2
        assert Bucket(height, width) in buckets


def test_sdxl_gets_the_sizes_it_was_trained_on():
    # SDXL's own list (arXiv 2307.01952, appendix I) has these among others.
    assert {(1024, 1024), (832, 1216), (896, 1152), (1152, 896), (768, 1344)} <= set(make_buckets(1024, 64, 512, 2048))


def test_a_pair_goes_to_the_bucket_of_its_mean_ratio():
    buckets = make_buckets(256, 64, 128, 512)
    assert pair_bucket(buckets, (1000, 600), (500, 300)) == (320, 192)
    assert pair_bucket(buckets, (600, 1000), (300, 500)) == (192, 320)
    # Ratios 4 and 1/4: their mean in the logarithm is 1.
    assert pair_bucket(buckets, (400, 100), (100, 400)) == (256, 256)
    assert pair_bucket(buckets, (9000, 10), (9000, 10)) == (512, 128)


def test_placement_by_hand():
    # 400 × 200 into 64 × 64: scale 0.32 gives 128 × 64, 32 pixels cut on the left.
    assert place((400, 200), Bucket(64, 64)) == ((128, 64), 32, 0)
    # 10 × 30 into 64 × 64: scale 6.4 gives 64 × 192, 64 cut on the top.
    assert place((10, 30), Bucket(64, 64)) == ((64, 192), 0, 64)
    assert place((64, 64), Bucket(64, 64)) == ((64, 64), 0, 0)


@pytest.mark.parametrize("size", [(999, 1001), (333, 777), (1, 1), (1023, 1025), (7, 4000)])
def test_an_image_always_covers_its_bucket(size):
    bucket = Bucket(832, 1216)
    (width, height), left, top = place(size, bucket)
    assert left >= 0
    assert top >= 0
    assert left + bucket.width <= width
    assert top + bucket.height <= height
    assert width == bucket.width or height == bucket.height


def test_size_conditioning_is_height_first_and_true():
    assert size_conditioning((400, 200), Bucket(64, 32)) == (200, 400, 0, 0, 32, 64)
    assert size_conditioning((400, 200), Bucket(64, 64)) == (200, 400, 0, 32, 64, 64)


def test_pixels_are_the_middle_of_the_image():
    image = picture(0, 48, 32)
    found = pixels(encoded(image), Bucket(32, 32))
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.float32
    for y, x in ((0, 0), (5, 30), (31, 31)):  # 8 columns are cut on the left, none resized
        expected = torch.tensor(image.getpixel((x + 8, y))) / 127.5 - 1
        torch.testing.assert_close(found[:, y, x], expected)


@pytest.mark.parametrize(
    ("size", "bucket"), [((90, 31), Bucket(24, 24)), ((31, 90), Bucket(24, 40)), ((7, 5), Bucket(40, 24))]
)
def test_pixels_are_those_of_the_whole_image_resized_and_cut(size, bucket):
    x, y = numpy.meshgrid(*(numpy.linspace(0, 3, side) for side in size))
    smooth = numpy.stack([numpy.sin(x + y), numpy.cos(2 * x), numpy.sin(x * y)], axis=-1)
    image = Image.fromarray((100 + 90 * smooth).astype(numpy.uint8))
    placement = place(size, bucket)
    whole = numpy.asarray(image.resize(placement.resized, Image.Resampling.LANCZOS)).astype(int)
    expected = whole[placement.top : placement.top + bucket.height, placement.left : placement.left + bucket.width]
    found = ((pixels(encoded(image), bucket) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert numpy.abs(found - expected).max() <= 1


@pytest.mark.parametrize("size", [(2**20, 1), (1, 2**20)])
def test_a_very_long_image_takes_no_memory_to_speak_of(size):
    """Resized as a whole it would have 3 TB."""
    image = Image.new("RGB", size, "white")
    assert pixels(encoded(image), Bucket(1024, 1024)).eq(1.0).all()


def test_pixels_span_minus_one_to_one():
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (0, 0, 8, 4))
    found = pixels(encoded(image), Bucket(8, 8))
    assert found[:, 0].unique().tolist() == [-1.0]
    assert found[:, 7].unique().tolist() == [1.0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(encoded(picture(0).convert(mode), kind)).image.mode == "RGB"


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode(encoded(clear)).image.getpixel((0, 0)) == (255, 255, 255)


def test_broken_bytes_say_why():
    for broken in (
        b"",
        b"nonsense",
        encoded(picture(0))[:200],
        encoded(picture(0), "JPEG")[:-40],
        encoded(picture(0), "WEBP")[:80],
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011  the message is looked at below
            decode(broken)
        assert str(caught.value)
        assert "0x" not in str(caught.value)
