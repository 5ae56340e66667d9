"""The cache: what is read is what was encoded, nothing stale is ever read, and a kill costs nothing that was
written."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pictures import encoded, picture, png

from chats_train.data.pairs import FileImage, PairImage, PairSample
from chats_train.encodings import cache, shards
from chats_train.encodings.cache import CachedEncodings, LiveEncodings, fill_cache
from chats_train.support.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Pooling:
    """Encoders that compute something: latents are pixels pooled by 8, embeddings follow from the caption's hash."""

    def __init__(self, fingerprint="f", seconds=0.0, null=0.0):
        self.fingerprint, self.seconds, self.null = fingerprint, seconds, null
        self.images, self.prompts = 0, []

    def encode_image(self, pixels):
        time.sleep(self.seconds)
        self.images += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8) + self.null

    def encode_prompt(self, prompts):
        self.prompts += prompts
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in prompts]
        rows = [torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return {"tokens": torch.stack(rows), "pooled": torch.stack([row.mean(0) for row in rows]).bfloat16()}


def image_of(path, data):
    path.write_bytes(data)
    return PairImage(FileImage(path), hashlib.sha256(data).hexdigest(), 48, 32)


def make_samples(folder, count):
    folder.mkdir(exist_ok=True)
    samples = []
    for number in range(count):
        images = [
            image_of(folder / f"{number}{side}.png", png(number + offset)) for side, offset in (("c", 0), ("r", 1000))
        ]
        bucket = cache.Bucket(32 if number % 2 else 48, 32)  # two buckets in turn
        samples.append(PairSample(str(number), str(number), f"prompt {number}", *images, bucket))
    return samples


@pytest.fixture
def samples(tmp_path):
    return make_samples(tmp_path / "images", 5)


def assert_equal(one, other):
    for name in ("chosen", "rejected"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.prompt.keys() == other.prompt.keys()
    for name, tensor in one.prompt.items():
        assert torch.equal(tensor, other.prompt[name])
        assert tensor.dtype == other.prompt[name].dtype
    assert (one.id, one.chosen_sizes, one.rejected_sizes) == (other.id, other.chosen_sizes, other.rejected_sizes)


def test_cached_and_live_encodings_are_the_same(samples, tmp_path):
    fill_cache(tmp_path / "cache", samples, Pooling(), progress=False)
    cached, live = CachedEncodings(tmp_path / "cache", "f"), LiveEncodings(Pooling())
    for sample in samples:
        assert_equal(cached.pair(sample), live.pair(sample))
    pair = cached.pair(samples[1])
    assert pair.chosen.shape == (3, 4, 4)
    assert pair.prompt["tokens"].shape == (5, 3)
    assert pair.chosen_sizes == (32, 48, 0, 8, 32, 32), "height and width as they were, 8 columns cut on the left"
    assert torch.equal(cached.prompt("")["tokens"], live.prompt("")["tokens"]), "the null prompt is always there"


def test_latents_are_those_of_the_image(tmp_path):
    # A white image is +1 everywhere, a black one −1.
    images = [
        image_of(tmp_path / f"{value}.png", encoded(picture(0).point(lambda _, v=value: v))) for value in (255, 0)
    ]
    sample = PairSample("i", "n", "p", *images, cache.Bucket(48, 32))
    fill_cache(tmp_path / "cache", [sample], Pooling(), progress=False)
    pair = CachedEncodings(tmp_path / "cache", "f").pair(sample)
    assert pair.chosen.unique().tolist() == [1.0]
    assert pair.rejected.unique().tolist() == [-1.0]
    assert pair.chosen.shape == (3, 4, 6)


def test_nothing_is_encoded_twice(samples, tmp_path):
    first, again = Pooling(), Pooling()
    shared = [*samples, PairSample("x", "x", "prompt 0", samples[0].rejected, samples[0].chosen, samples[0].bucket)]
    fill_cache(tmp_path / "cache", shared, first, extra_prompts=["prompt 1", "preview"], progress=False)
    assert first.images == 10, "a picture in two pairs is encoded once"
    assert sorted(first.prompts) == sorted(["", "preview", *(f"prompt {number}" for number in range(5))])
    fill_cache(tmp_path / "cache", shared, again, progress=False)
    assert (again.images, again.prompts) == (0, [])


@pytest.mark.parametrize("change", ["fingerprint", "image", "bucket"])
def test_latents_of_another_input_are_never_read(samples, tmp_path, change):
    fill_cache(tmp_path / "cache", samples, Pooling(), progress=False)
    image, bucket = samples[0].chosen, samples[0].bucket
    cached = CachedEncodings(tmp_path / "cache", "another VAE" if change == "fingerprint" else "f")
    if change == "image":
        image = image_of(tmp_path / "images" / "0c.png", png(77))
    if change == "bucket":
        bucket = cache.Bucket(32, 48)
    with pytest.raises(UserError, match=r"lacks .* run `python -m chats_train cache`"):
        cached.latents(image, bucket)


@pytest.mark.parametrize(("text", "fingerprint"), [("prompt 0.", "f"), ("prompt 0", "another encoder")])
def test_embeddings_of_another_input_are_never_read(samples, tmp_path, text, fingerprint):
    fill_cache(tmp_path / "cache", samples, Pooling(), progress=False)
    with pytest.raises(UserError, match="lacks the caption"):
        CachedEncodings(tmp_path / "cache", fingerprint).prompt(text)


def test_keys_do_not_run_together():
    assert cache._digest("ab", "c") != cache._digest("a", "bc")
    assert cache.prompt_key("1:x", "f") != cache.prompt_key("x", "f1:")


def test_an_image_that_changed_since_it_was_checked_stops(samples, tmp_path):
    samples[2].chosen.source.path.write_bytes(png(99))
    with pytest.raises(UserError, match=r"2c\.png changed since it was looked at"):
        fill_cache(tmp_path / "cache", samples, Pooling(), progress=False)


def test_nan_is_never_cached(samples, tmp_path):
    with pytest.raises(UserError, match="the VAE gives NaN or infinity for"):
        fill_cache(tmp_path / "cache", samples, Pooling(null=float("nan")), progress=False)
    good = Pooling()
    fill_cache(tmp_path / "cache", samples, good, progress=False)
    assert good.images == 10
    assert good.prompts == [], "what was encoded before the error was kept"


def test_several_processes_share_the_work(samples, tmp_path):
    shares = [Pooling(), Pooling()]
    for index, encoders in enumerate(shares):
        fill_cache(tmp_path / "cache", samples, encoders, process_index=index, num_processes=2, progress=False)
    assert sum(encoders.images for encoders in shares) == 10
    assert all(encoders.images for encoders in shares)
    cached, live = CachedEncodings(tmp_path / "cache", "f"), LiveEncodings(Pooling())
    for sample in samples:
        assert_equal(cached.pair(sample), live.pair(sample))


def test_refresh_sees_what_others_wrote(tmp_path):
    mine, theirs = shards.ShardStore(tmp_path), shards.ShardStore(tmp_path)
    theirs.add({"k": {"a": torch.ones(2)}})
    theirs.flush()
    assert "k" not in mine
    mine.refresh()
    assert torch.equal(mine.read("k")["a"], torch.ones(2))


def test_a_damaged_shard_is_made_anew(samples, tmp_path):
    fill_cache(tmp_path / "cache", samples, Pooling(), progress=False)
    (shard,) = (tmp_path / "cache").glob("shard-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-10])
    encoders = Pooling()
    fill_cache(tmp_path / "cache", samples, encoders, progress=False)
    assert encoders.images == 10


def test_shards_are_cut_by_size(samples, tmp_path, monkeypatch):
    # 6 prompts of 66 bytes, then batches of 2 images, three of 2 · 288 and two of 2 · 192 bytes: 396 + 576, 576 + 576,
    # 384 + 384.
    monkeypatch.setattr(shards, "SHARD_BYTES", 600)
    fill_cache(tmp_path / "cache", samples, Pooling(), progress=False)
    assert len(list((tmp_path / "cache").glob("shard-*"))) == 3
    assert len(CachedEncodings(tmp_path / "cache", "f").store) == 16


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    store = shards.ShardStore(tmp_path)
    store.add({"k": {"a": torch.ones(2)}})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*make room, or set `cache_dir`"):
        store.flush()
    assert list(tmp_path.iterdir()) == []


def test_only_abandoned_temporary_files_are_removed(tmp_path):
    for name, age in (("old", 7200), ("new", 0)):
        path = tmp_path / f".shard-{name}.safetensors.1.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    shards.ShardStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".shard-new.safetensors.1.tmp"]


SLOW_RUN = """
import sys
from pathlib import Path
from chats_train.encodings import shards
from chats_train.encodings.cache import fill_cache
sys.path.insert(0, "tests/train")
from test_cache import Pooling, make_samples
shards.SHARD_SECONDS = 0.0
folder = Path(sys.argv[1])
fill_cache(folder / "cache", make_samples(folder / "images", 12), Pooling(seconds=0.05), progress=False)
"""


def test_a_killed_run_goes_on_and_ends_equal(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path)], cwd=ROOT)
    while process.poll() is None and len(list((tmp_path / "cache").glob("shard-*"))) < 4:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed in the middle, not ended"
    samples, rest = make_samples(tmp_path / "images", 12), Pooling()
    fill_cache(tmp_path / "cache", samples, rest, progress=False)
    assert 0 < rest.images <= 20, "what was written before the kill was kept"
    assert rest.prompts == []
    fill_cache(tmp_path / "whole", samples, Pooling(), progress=False)
    resumed, whole = CachedEncodings(tmp_path / "cache", "f"), CachedEncodings(tmp_path / "whole", "f")
    for sample in samples:
        assert_equal(resumed.pair(sample), whole.pair(sample))
