"""The demo: its world and detector, the bundled base, the pairs it draws, and a short run from end to end."""

import json
import random

import numpy
import pytest
import torch
from PIL import Image, ImageColor

from chats.pair import check_files
from chats_train import cli
from chats_train.data import open_dataset
from chats_train.data.images import pixels
from chats_train.demo.base_parts import MAX_TOKENS
from chats_train.demo.demo import BASE, CONFIG, PAIRS, DemoSettings, demo, write_config
from chats_train.demo.detector import judge, log_likelihoods, read, score
from chats_train.demo.make_pairs import draw_pairs
from chats_train.demo.measure import RIGHT_COLOUR, WRONG_COLOUR, Count, difference, side_by_side, verdict
from chats_train.demo.samplers import base_sampler, sample_pictures
from chats_train.demo.taste import tastes
from chats_train.demo.world import (
    CATEGORIES,
    Thing,
    all_prompts,
    balanced_prompts,
    draw,
    random_scene,
    related,
    shows,
    split_prompts,
)
from chats_train.families import load_family
from chats_train.sampling.sampler import SamplingSettings
from chats_train.settings.config_file import load_config

MEGABYTE = 10**6


def drawn(prompts, seed=0):
    rng = random.Random(seed)
    return torch.stack([draw(random_scene(prompt, rng), rng) for prompt in prompts])


@pytest.fixture(scope="module")
def family():
    return load_family("sd15", str(BASE))


# The world.


def test_prompts_are_of_six_categories_and_some_of_each_are_held_out():
    pairs, held_out = split_prompts()
    assert {prompt.category for prompt in pairs} == {prompt.category for prompt in held_out} == set(CATEGORIES)
    assert not set(pairs) & set(held_out)
    assert set(pairs) | set(held_out) == set(all_prompts())
    assert len({prompt.text for prompt in all_prompts()}) == len(all_prompts()) == 750
    again = balanced_prompts(held_out, 60, seed=4)
    assert again == balanced_prompts(held_out, 60, seed=4) != balanced_prompts(held_out, 60, seed=5)
    assert [sum(prompt.category == category for prompt in again) for category in CATEGORIES] == [10] * 6


def test_what_a_scene_shows():
    by_text = {prompt.text: prompt for prompt in all_prompts()}
    red_circle, blue_ring = Thing("circle", "red"), Thing("ring", "blue")
    scene = {(0, 0): red_circle, (1, 2): blue_ring}  # two columns apart, one row: the columns decide
    for text in ("a circle and a ring", "a ring and a circle", "a circle left of a ring", "a ring right of a circle"):
        assert shows(scene, by_text[text])
    assert shows(scene, by_text["a red circle and a blue ring"])
    for text in (
        "a circle",
        "a circle above a ring",
        "a ring left of a circle",
        "a blue circle and a red ring",
        "two circles",
    ):
        assert not shows(scene, by_text[text])
    assert not any(related((0, 0), (1, 1), relation) for relation in ("left of", "right of", "above", "below"))
    assert shows({(0, 0): red_circle, (2, 2): red_circle}, by_text["two circles"])
    assert not shows(scene | {(2, 2): red_circle}, by_text["a circle and a ring"])  # one too many


# The detector.


def test_the_detector_knows_true_pictures_and_no_others():
    prompts = balanced_prompts(all_prompts(), 600, seed=1)
    pictures = drawn(prompts)
    assert sum(judge(pictures, prompts)) >= 0.99 * len(prompts)
    # Some other prompt is right by chance: "a ring" is what "a red ring" shows. What chance gives is counted on the
    # scenes themselves.
    others = prompts[:]
    random.Random(2).shuffle(others)
    rng = random.Random(0)
    scenes = []
    for prompt in prompts:
        scenes.append(random_scene(prompt, rng))
        draw(scenes[-1], rng)  # as the pictures above were drawn
    chance = sum(map(shows, scenes, others))
    assert sum(judge(pictures, others)) == chance < 0.06 * len(prompts)
    assert [read(likelihoods) for likelihoods in log_likelihoods(pictures[:50])] == scenes[:50]


def test_what_is_no_shape_of_the_world_is_not_recognised():
    picture = torch.full((1, 3, 48, 48), 0.9)
    assert read(log_likelihoods(picture)[0]) == {}
    picture[:, :, :16, :8] = -1.0  # half a cell in black
    assert read(log_likelihoods(picture)[0]) is None


def test_scores_rank_pictures():
    prompts = balanced_prompts(all_prompts(), 120, seed=3)
    true, blurred = drawn(prompts), drawn(prompts)
    blurred = torch.nn.functional.avg_pool2d(blurred, 3, stride=1, padding=1, count_include_pad=False)
    others = drawn(prompts[1:] + prompts[:1])
    scores = [torch.tensor(score(pictures, prompts)) for pictures in (true, blurred, others)]
    assert (scores[0] > scores[1]).float().mean() > 0.99
    assert (scores[0] > scores[2]).float().mean() > 0.97
    assert len(set(scores[1].tolist())) > 110  # ties are rare


# The base.


def test_the_base_is_small_and_opens_like_any_other(family):
    files = [file for file in BASE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10 * MEGABYTE
    assert {file.suffix for file in files} == {".json", ".txt", ".safetensors"}
    assert family.prediction_type == "epsilon"
    assert family.null_prompt_kind == "encoded_empty"
    assert family.parameter_counts()["unet"] < 4_000_000


def test_every_word_is_a_token_and_every_prompt_fits(family):
    (tokenizer,) = family.tokenizers
    for prompt in all_prompts():
        ids = tokenizer(prompt.text).input_ids
        assert len(ids) == len(prompt.text.split()) + 2 <= MAX_TOKENS
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt.text


def test_the_vae_restores_pictures(family):
    prompts = balanced_prompts(all_prompts(), 120, seed=6)
    restored = family.decode_image(family.encode_image(drawn(prompts)))
    assert sum(judge(restored, prompts)) >= 0.97 * len(prompts)


def test_the_base_draws_most_prompts_right_but_not_all(family):
    prompts = balanced_prompts(all_prompts(), 90, seed=7)
    sampler = base_sampler(family, family.load_denoiser(), SamplingSettings(steps=10, guidance_scale=1.0))
    right = sum(judge(sample_pictures(family, sampler, prompts, seed=1), prompts)) / len(prompts)
    assert 0.65 < right < 0.95


# Pairs and the demo.

QUICK = DemoSettings(
    pair_prompts=12,
    candidates=4,
    pair_steps=4,
    train_steps=2,
    train_batch_size=4,
    validation_pairs=2,
    counted_prompts=12,
    guidance_scales=(2.0,),
    sample_steps=4,
)


def test_pairs_are_a_data_set_of_the_trainer(family, tmp_path):
    config = write_config(tmp_path / "run", QUICK)
    prompts = balanced_prompts(split_prompts()[0], 12, seed=0)
    sampling = SamplingSettings(steps=4, guidance_scale=2.0)
    options = {"candidates": 4, "settings": sampling, "seed": 3}
    counts = draw_pairs(family, family.load_denoiser(), prompts, config.data.path, **options)
    dataset = open_dataset(config, progress=False)
    assert dataset.problems == ()
    assert {(sample.bucket.width, sample.bucket.height) for sample in dataset.samples} == {(48, 48)}
    rows = [json.loads(line) for line in (config.data.path / "metadata.jsonl").read_text().splitlines()]
    by_text = {prompt.text: prompt for prompt in prompts}
    for sample in dataset.samples:
        pictures = torch.stack([pixels(side.read(), sample.bucket) for side in (sample.chosen, sample.rejected)])
        right, liked = judge(pictures, [by_text[sample.prompt]] * 2), tastes(pictures, "bold")
        assert right[0] + liked[0] > right[1] + liked[1]
    assert (counts.drawn, counts.pairs) == (48, len(rows)) == (48, len(dataset.samples))
    assert 10 <= counts.pairs <= 12
    assert counts.chosen.right > counts.source.right > counts.rejected.right
    assert counts.chosen.taste > counts.rejected.taste
    draw_pairs(family, family.load_denoiser(), prompts, tmp_path / "again", **options)
    for row in rows:
        assert (config.data.path / row["chosen_file_name"]).read_bytes() == (
            tmp_path / "again" / row["chosen_file_name"]
        ).read_bytes()


def test_the_demo_from_end_to_end(tmp_path, capsys):
    folder = tmp_path / "show"
    demo(folder, QUICK)
    said = capsys.readouterr().out
    for line in (
        "the base draws 48 pictures for 12 prompts",
        "trained 2 steps",
        "12 pictures a side",
        "(proxy, alpha 0.5)",
        "each at its best",
    ):
        assert line in said
    metadata, warnings = check_files(folder / "show_preferred.safetensors", folder / "show_dispreferred.safetensors")
    assert (metadata.step, metadata.resolution, warnings) == (2, 48, [])
    for name in ("loss.png", "side_by_side.png", "previews/step-00000002.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 192
    assert load_config(folder / CONFIG).max_train_steps == 2
    assert len(list((folder / PAIRS / "chosen").iterdir())) == len(
        (folder / PAIRS / "metadata.jsonl").read_text().splitlines()
    )


def test_the_demo_never_writes_over_anything(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert cli.main(["demo", "--output", str(tmp_path / "mine")]) == 2
    assert "which is there already; remove it or choose another folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_differences_are_counted_prompt_by_prompt():
    # 8 prompts: both right on 2, the pair alone on 4, neither on 2. Mean 0.5; deviations ±0.5, so variance 8 · 0.25 /
    # 7, and the standard error is √(2/7) / √8 = 0.18898.
    pictures = torch.zeros(8, 3, 48, 48)
    base, pair = (
        Count(2.0, pictures, torch.tensor(right)) for right in ([True] * 2 + [False] * 6, [True] * 6 + [False] * 2)
    )
    assert difference(base, pair) == pytest.approx((0.5, 0.18898), abs=1e-5)
    assert "CHATS draws more prompts right" in verdict(base, pair)
    assert "CHATS draws FEWER prompts right" in verdict(pair, base)
    assert "no clear difference" in verdict(base, base)


def test_frames_say_which_pictures_are_right():
    prompts = balanced_prompts(all_prompts(), 4, seed=0)
    base, pair = (
        Count(2.0, torch.zeros(4, 3, 48, 48), torch.tensor(right))
        for right in ([False] * 4, [True, True, False, False])
    )
    sheet = side_by_side(base, pair, prompts, ("base", "pair"))
    pixels = [tuple(pixel) for pixel in numpy.asarray(sheet).reshape(-1, 3).tolist()]
    frame = 200 * 200 - 192 * 192
    assert pixels.count(ImageColor.getrgb(RIGHT_COLOUR)) == 2 * frame
    assert pixels.count(ImageColor.getrgb(WRONG_COLOUR)) >= 6 * frame  # the letters' edges have that grey too
