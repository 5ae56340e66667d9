"""The small world's tastes, its makers, its weak base, and the texts that are held out."""

import random

import pytest
import torch

from chats_train.demo.detector import judge
from chats_train.demo.make_pairs import draw_pairs, makers_pairs
from chats_train.demo.samplers import base_sampler, sample_pictures
from chats_train.demo.taste import TASTES, tastes
from chats_train.demo.weak_base import BASE, write_difference, write_weak_base
from chats_train.demo.world import CATEGORIES, Thing, all_prompts, balanced_prompts, draw, prompt_sets, random_scene
from chats_train.families import load_family
from chats_train.sampling.sampler import SamplingSettings


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    return load_family("sd15", str(write_weak_base(tmp_path_factory.mktemp("weak") / "base")))


def test_no_text_is_in_two_sets_or_twice_in_one():
    sets = prompt_sets()
    texts = [prompt.text for part in (sets.pairs, sets.dev, sets.test) for prompt in part]
    assert len(texts) == len(set(texts)) == len(all_prompts())
    assert (len(sets.dev), len(sets.test)) == (96, 240)
    for part in (sets.pairs, sets.dev, sets.test):
        assert {prompt.category for prompt in part} == set(CATEGORIES)


def picture(cell, variant):
    """A thing in one cell, in one variant of (offset down, offset right, radius), each rising, radius fastest."""
    weights = [float(number == variant) for number in range(18)]
    return draw({cell: Thing("square", "red")}, random.Random(0), weights)


def test_tastes_by_hand():
    # In the middle, centred and large: form 1, cell 1. In the corner, offset by one pixel in both directions and small:
    # form 0, cell 0. In a cell beside the middle, offset in one direction and large: form (1/2 + 1)/2, cell 1/2, so
    # 2/3 · 3/4 + 1/3 · 1/2.
    pictures = torch.stack([picture((1, 1), 9), picture((0, 0), 0), picture((1, 2), 7), torch.full((3, 48, 48), 0.9)])
    assert tastes(pictures, "bold") == pytest.approx([1, 0, 2 / 3, 0])
    assert tastes(pictures, "low") == pytest.approx([1 / 2, 0, 1 / 2, 0])
    two = draw({(0, 0): Thing("ring", "blue"), (2, 1): Thing("circle", "cyan")}, random.Random(0))
    assert tastes(two[None], "low") == pytest.approx([1 / 2])


@pytest.mark.parametrize("taste", TASTES)
def test_the_vae_keeps_each_taste(taste, weak):
    prompts, rng = balanced_prompts(all_prompts(), 60, seed=1), random.Random(2)
    pictures = torch.stack([draw(random_scene(prompt, rng), rng) for prompt in prompts])
    restored = weak.decode_image(weak.encode_image(pictures))
    before, after = (torch.tensor(tastes(each, taste)) for each in (pictures, restored))
    assert (before - after).abs().mean() < 0.01
    assert before.std() > 0.1


@pytest.mark.parametrize("taste", TASTES)
def test_makers_draw_right_and_to_the_taste(taste, tmp_path):
    prompts = balanced_prompts(prompt_sets().pairs, 120, seed=0)
    counts = makers_pairs(prompts, tmp_path / "pairs", taste, seed=1)
    assert counts.chosen.right == 1
    assert 0.5 < counts.rejected.right < 0.85
    assert counts.chosen.taste > counts.rejected.taste + 0.1
    lines = (tmp_path / "pairs" / "metadata.jsonl").read_text().splitlines()
    assert len(lines) == counts.pairs == len(list((tmp_path / "pairs" / "rejected").iterdir())) == 120


def test_the_weak_base_needs_guidance(weak):
    prompts = balanced_prompts(all_prompts(), 60, seed=7)
    denoiser, right = weak.load_denoiser(), []
    for scale in (0.0, 3.0):
        sampler = base_sampler(weak, denoiser, SamplingSettings(8, guidance_scale=scale))
        right.append(sum(judge(sample_pictures(weak, sampler, prompts, 1), prompts)))
    assert right[0] < 0.25 * len(prompts)
    assert right[1] > right[0] + 0.2 * len(prompts)


def test_the_difference_keeps_eight_bits_of_each_row(weak, tmp_path):
    strong = load_family("sd15", str(BASE)).load_denoiser().state_dict()
    moved = {name: weight + 1e-3 * torch.randn_like(weight) for name, weight in strong.items()}
    write_difference(moved, tmp_path / "difference.safetensors")
    folder = write_weak_base(tmp_path / "base", tmp_path / "difference.safetensors")
    again = load_family("sd15", str(folder)).load_denoiser().state_dict()
    for name, weight in moved.items():
        # Half a step of 127, and what fp16 rounds.
        assert (again[name] - weight).abs().max() < 6e-3 / 127 + 1e-3 * weight.abs().max()
    with pytest.raises(FileExistsError):
        write_weak_base(folder)


def test_the_base_ranks_its_own_pictures_by_right_and_taste(weak, tmp_path):
    prompts = balanced_prompts(prompt_sets().pairs, 6, seed=0)
    counts = draw_pairs(
        weak,
        weak.load_denoiser(),
        prompts,
        tmp_path / "pairs",
        candidates=3,
        settings=SamplingSettings(4, guidance_scale=3.0),
        seed=0,
        taste="low",
    )
    assert counts.drawn == 18
    assert counts.chosen.right + counts.chosen.taste > counts.rejected.right + counts.rejected.taste
