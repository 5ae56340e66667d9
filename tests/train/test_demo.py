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
from chats_train.demo.before_after import (
    FRAME,
    RIGHT_COLOUR,
    SIDE,
    TILE,
    WRONG_COLOUR,
    Half,
    before_and_after,
    shares_by_row,
)
from chats_train.demo.demo import BASE_NAME, CONFIG, PAIRS, DemoSettings, demo, write_config
from chats_train.demo.detector import judge, log_likelihoods, read
from chats_train.demo.make_pairs import draw_pairs
from chats_train.demo.measure import Count, best, result_table, verdicts
from chats_train.demo.samplers import base_sampler, sample_pictures
from chats_train.demo.taste import tastes
from chats_train.demo.weak_base import BASE
from chats_train.demo.world import (
    CATEGORIES,
    Thing,
    all_prompts,
    balanced_prompts,
    draw,
    prompt_sets,
    random_scene,
    related,
    shows,
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


def test_balanced_prompts_have_each_category_as_often():
    assert len({prompt.text for prompt in all_prompts()}) == len(all_prompts()) == 750
    held_out = prompt_sets().test
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
    dev_prompts=4,
    test_prompts=10,
    guidance_scales=(2.0,),
    shown_prompts=6,
    sample_steps=4,
)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_pairs_are_a_data_set_of_the_trainer(family, tmp_path, two_threads):
    config = write_config(tmp_path / "run", QUICK)
    prompts = balanced_prompts(prompt_sets().pairs, 12, seed=0)
    sampling = SamplingSettings(steps=4, guidance_scale=2.0)
    options = {"candidates": 4, "settings": sampling, "seed": 3, "workers": 2}
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
    # Pictures do not depend on the cores there are.
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    draw_pairs(family, family.load_denoiser(), prompts, tmp_path / "again", **options)
    for row in rows:
        assert (config.data.path / row["chosen_file_name"]).read_bytes() == (
            tmp_path / "again" / row["chosen_file_name"]
        ).read_bytes()


def test_the_demo_from_end_to_end(tmp_path, capsys):
    folder = tmp_path / "show"
    demo(folder, QUICK)
    printed = capsys.readouterr()
    for line in (
        "the base draws 4 pictures for each of 12 prompts",
        "trained 2 steps",
        "right most often for 4 held-out prompts",
        "picture of each of 10 other prompts that no pair had",
        "pair, CHATS (proxy, alpha 0.5)",
        "right: ",
        "taste: ",
        "with your own model",
    ):
        assert line in printed.out
    # What lasts long shows a bar.
    assert "drawing: 100%" in printed.err
    assert printed.err.count("counting: 100%") >= 2
    metadata, warnings = check_files(folder / "show_preferred.safetensors", folder / "show_dispreferred.safetensors")
    assert (metadata.step, metadata.resolution, warnings) == (2, 48, [])
    for name in ("loss.png", "side_by_side.png", "previews/step-00000002.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 192
    counts = json.loads((folder / "counts.json").read_text())
    assert [len(counts[part]["prompts"]) for part in ("dev", "test")] == [4, 10]
    assert len(counts["test"]["pair"][0]["taste"]) == 10
    config = load_config(folder / CONFIG)
    assert (config.max_train_steps, config.pretrained_model) == (2, str(folder / BASE_NAME))
    rows = [json.loads(line) for line in (folder / PAIRS / "metadata.jsonl").read_text().splitlines()]
    assert len(list((folder / PAIRS / "chosen").iterdir())) == len(rows)
    assert {row["prompt"] for row in rows} <= {prompt.text for prompt in prompt_sets().pairs}


def test_the_demo_never_writes_over_anything(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert cli.main(["demo", "--output", str(tmp_path / "mine")]) == 2
    assert "which is there already; remove it or choose another folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def counted(scale, right, taste, pictures=None):
    pictures = torch.full((len(right), 3, 48, 48), 0.9) if pictures is None else pictures
    return Count.of(scale, pictures, [str(number) for number in range(len(right))], right, taste)


def test_right_and_taste_are_counted_apart_and_prompt_by_prompt():
    # 16 prompts. Right: the pair alone on 8, both on 4, neither on 4: mean difference 0.5, deviations ±0.5, so variance
    # 16 · 0.25 / 15, and the standard error √(4 / 15) / √16 = 0.129. Taste: 0.1 less on every one.
    base = counted(5.0, [1] * 4 + [0] * 12, [0.5] * 16)
    pair = counted(2.0, [1] * 12 + [0] * 4, [0.4] * 16)
    table = result_table(base, pair, ("base", "pair"))
    assert table[1].split() == ["base", "5", "25.0", "±", "11.2", "%", "0.50", "±", "0.00"]
    assert table[3].split() == ["difference", "+50.0", "±", "12.9", "%", "-0.10", "±", "0.00"]
    said = verdicts(base, pair)
    assert said[0].startswith("right: the pair draws what was asked for more often (p = 0.0")
    assert said[1].startswith("taste: the pair is LESS to the taste (p = 0.000")
    said = verdicts(pair, base)
    assert "LESS often" in said[0]
    assert "is more to the taste" in said[1]
    assert verdicts(base, base) == ["right: no clear difference (p = 1)", "taste: no clear difference (p = 1)"]
    assert best([base, pair]) is pair


def test_the_picture_frames_what_is_right_and_says_where_things_stand():
    prompts = balanced_prompts(all_prompts(), 5, seed=0)
    at_the_foot = torch.stack([draw({(2, column): Thing("ring", "red")}, random.Random(0)) for column in (0, 1, 2, 0)])
    spread = torch.stack([*at_the_foot, draw({(0, 0): Thing("ring", "red")}, random.Random(0))])
    base = counted(5.0, [0] * 5, [0.0] * 5)
    pair = counted(2.0, [1, 1, 0, 0, 1], [1.0] * 5, spread)
    assert shares_by_row(base) == [0, 0, 0]
    assert shares_by_row(pair) == pytest.approx([0.2, 0, 0.8])
    sheet = before_and_after((Half("a", "b", base), Half("c", "d", pair)), prompts, [4, 0, 2], "title")
    found = [tuple(pixel) for pixel in numpy.asarray(sheet).reshape(-1, 3).tolist()]
    frame = TILE**2 - SIDE**2
    assert TILE == SIDE + 2 * FRAME
    assert found.count(ImageColor.getrgb(RIGHT_COLOUR)) == 2 * frame  # prompts 4 and 0
    assert found.count(ImageColor.getrgb(WRONG_COLOUR)) >= 4 * frame  # the letters' edges have that grey too
