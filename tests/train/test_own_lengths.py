"""Prompts of their own lengths, apart from any model: padded and cut, kept, mixed with nothing; and what is known of
the families that have them."""

import math
from types import SimpleNamespace

import pytest
import tiny_pipelines
import torch

from chats_train.encodings.cache import CachedEncodings, fill_cache
from chats_train.evaluation.evaluate import EvaluationSettings, _forms, _header, _refuse_a_probe_of_nothing
from chats_train.families import SourceError, adapter_of, load_family
from chats_train.families.prompts import batch_of, rows_of, same_length, zeroed
from chats_train.layouts.formats import file_format, lora_names
from chats_train.layouts.recognition import denoiser_kind, lora_title
from chats_train.sampling.sampler import known_form
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.settings.facts import FAMILIES
from chats_train.support.errors import UserError


def row(length: int) -> dict[str, torch.Tensor]:
    tokens = torch.arange(1.0, 2 * length + 1).reshape(length, 2)
    return {"tokens": tokens, "mask": torch.ones(length, dtype=torch.bool), "pooled": torch.tensor([length, 0.5])}


def test_rows_are_padded_and_cut_again():
    batch = batch_of([row(1), row(3)])
    assert batch["tokens"].tolist() == [[[1, 2], [0, 0], [0, 0]], [[1, 2], [3, 4], [5, 6]]]
    assert batch["mask"].tolist() == [[True, False, False], [True, True, True]]
    assert batch["pooled"].tolist() == [[1, 0.5], [3, 0.5]]
    for found, given in zip(rows_of(batch), (row(1), row(3)), strict=True):
        assert all(torch.equal(found[name], given[name]) for name in given)
    longer, null = same_length(batch_of([row(1)]), batch_of([row(2)]))
    assert longer["tokens"].tolist() == [[[1, 2], [0, 0]]]
    assert longer["mask"].tolist() == [[True, False]]
    assert null["mask"].shape == (1, 2)
    assert longer["pooled"].shape == (1, 2)


def test_zeros_are_as_long_as_the_text():
    zeros = zeroed(batch_of([row(2)]))
    assert zeros["tokens"].count_nonzero() == zeros["pooled"].count_nonzero() == 0
    assert zeros["mask"].all()


def test_prompts_of_one_length_stay_as_they_are():
    batch = {"tokens": torch.randn(2, 3, 4), "pooled": torch.randn(2, 5)}
    again = batch_of(rows_of(batch))
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert same_length(batch, batch) == [batch, batch]


class Spelled:
    """Encoders of a token a letter."""

    fingerprint = "f"

    def encode_prompt(self, prompts):
        return batch_of([row(len(prompt) + 1) for prompt in prompts])


def test_the_cache_keeps_no_padding(tmp_path):
    fill_cache(tmp_path, [], Spelled(), ["a", "a longer one"], progress=False)
    cached = CachedEncodings(tmp_path, "f")
    assert [len(cached.prompt(text)["tokens"]) for text in ("", "a", "a longer one")] == [1, 2, 13]
    (file,) = tmp_path.glob("shard-*.safetensors")
    assert file.stat().st_size < 16 * (2 * 4 + 1) + 2000, "sixteen tokens, and a header"


OWN = [name for name, facts in FAMILIES.items() if facts.longest_prompt]


@pytest.mark.parametrize("name", OWN)
def test_no_proxy_is_made_up(name):
    facts, config = FAMILIES[name], parse_config({"version": 1, "family": name, **PLACEHOLDERS})
    assert known_form(facts, None, 0.5) == "exact"
    assert known_form(facts, None, 0.0) == "proxy", "which is the null prompt then"
    with pytest.raises(UserError, match=f"`form` is proxy, but {facts.title}'s prompts have lengths of their own"):
        known_form(facts, "proxy", 0.5)
    asked = EvaluationSettings((), forms=("proxy", "exact"), probe=True)
    assert _forms(config, asked) == ["exact"]
    assert f"the proxy form is left out: {facts.title}'s prompts" in "\n".join(_header("", config, asked, 1, 0, True))
    with pytest.raises(UserError, match=r"`--probe` needs .* no proxy prompt is defined; leave it out"):
        _refuse_a_probe_of_nothing(config, asked, True, (0.5,))


@pytest.mark.parametrize("name", [*OWN, "flux2_klein"])
def test_their_files_are_recognised(name):
    weights = tiny_pipelines.denoiser(name).state_dict()
    native = {place.key: SimpleNamespace(shape=()) for place in file_format(name).layout(weights).values()}
    for tensors in (native, {key: SimpleNamespace(shape=()) for key in weights}):
        assert denoiser_kind(tensors).family == name
    layers = {f"{layer}.lora_A.weight": SimpleNamespace(shape=(4, 4)) for layer in lora_names(name, weights).values()}
    assert lora_title(layers) == FAMILIES[name].title


def test_an_older_diffusers_is_named(monkeypatch, tmp_path):
    def missing():
        raise ImportError("cannot import name 'ZImageTransformer2DModel' from 'diffusers'")

    monkeypatch.setattr(adapter_of(FAMILIES["z_image"]), "part_classes", staticmethod(missing))
    with pytest.raises(SourceError, match=r"`family` is z_image, whose classes are not .*--upgrade diffusers"):
        load_family("z_image", str(tmp_path))


def test_qwen_image_is_trained_with_the_shift_of_its_scheduler():
    """Tokens are patches of 2 × 2 latents: e^0.5 at 256, e^0.9 at 8192, on a line between; or as the base says."""
    for noise, (few, many) in (({}, (0.5, 0.9)), ({"base_shift": 0.0, "max_shift": 1.0}, (0.0, 1.0))):
        family = object.__new__(adapter_of(FAMILIES["qwen_image"]))
        family.source = SimpleNamespace(noise=noise)
        family.schedule = family._make_schedule(None)
        sizes = {(32, 32): few, (128, 256): many, (128, 132): (few + many) / 2}
        for size, mu in sizes.items():
            assert family.schedule_for(size).training_shift == pytest.approx(math.exp(mu))
            assert family.schedule_for(size).sigmas is family.schedule.sigmas, "sampled as ever"


def test_the_distilled_z_image_is_named():
    family = object.__new__(adapter_of(FAMILIES["z_image"]))
    family.source = SimpleNamespace(
        notes=[], noise={"shift": 3.0}, where=lambda part: part, config=lambda part: {"latents_mean": None}
    )
    assert "as Z-Image-Turbo states it" in family.notes[0]
    family.source.noise = {"shift": 6.0}
    assert family.notes == []
