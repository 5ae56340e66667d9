"""GenEval: its rules on detections made by hand, its two models on tiny random weights, and what is kept of it."""

import json

import numpy as np
import pytest
import tiny_benchmarks
import torch
from PIL import Image

from chats_train.evaluation.benchmarks import segmenter as segmenting
from chats_train.evaluation.benchmarks.colours import ColourNamer, cut_out
from chats_train.evaluation.benchmarks.folders import find_geneval
from chats_train.evaluation.benchmarks.geneval import (
    CLASSES,
    COLOURS,
    Detection,
    find_faults,
    keep_confident,
    read_task,
    relations,
)
from chats_train.evaluation.benchmarks.segmenter import Segmenter, full_size, resized_pixels
from chats_train.evaluation.prompts import EvaluationPrompt
from chats_train.evaluation.scorers import open_scorers
from chats_train.evaluation.scoring import read_parts, score_pictures
from chats_train.support.errors import UserError


def prompt(tag, include, exclude=(), text="a photo"):
    """A line of evaluation_metadata.jsonl, as it is read."""
    row = {"tag": tag, "include": include, "prompt": text, **({"exclude": exclude} if exclude else {})}
    return EvaluationPrompt(text, tag, json.loads(json.dumps(row)))


def seen(name, confidence=0.95, box=(0, 0, 100, 100), colour="none"):
    """A detection, whose colour the mask's place stands for."""
    return Detection(name, confidence, box, np.full((1, 1), colour))


def faults(asked, *detections):
    task = read_task(asked)
    colours = lambda name, objects: [str(each.mask[0, 0]) for each in objects]  # noqa: E731
    return find_faults(task, keep_confident(detections, task.category), colours)


BENCH, DOG = {"class": "bench", "count": 1}, {"class": "dog", "count": 1}
LEFT, RIGHT, BELOW = (0, 0, 100, 100), (200, 0, 300, 100), (0, 200, 100, 300)


@pytest.mark.parametrize(
    ("asked", "right", "wrong", "fault"),
    [
        (prompt("single_object", [BENCH]), [seen("bench", 0.31)], [seen("bench", 0.3), seen("dog")], "0 of 1 × bench"),
        (prompt("two_object", [BENCH, DOG]), [seen("dog"), seen("bench")], [seen("bench")] * 2, "0 of 1 × dog"),
        (
            prompt("counting", [{"class": "dog", "count": 2}], [{"class": "dog", "count": 3}]),
            # A third of 0.9 is not counted: it takes more.
            [seen("dog", 0.91), seen("dog", 0.95), seen("dog", 0.9)],
            [seen("dog", 0.91), seen("dog", 0.95), seen("dog", 0.92)],
            "3 × dog, where fewer than 3 are asked for",
        ),
        (
            prompt("colors", [{**BENCH, "color": "red"}]),
            # The most confident one is looked at.
            [seen("bench", 0.5, colour="blue"), seen("bench", 0.9, colour="red")],
            [seen("bench", 0.9, colour="blue"), seen("bench", 0.5, colour="red")],
            "bench: blue instead of red",
        ),
        (
            prompt("position", [BENCH, {**DOG, "position": ["right of", 0]}]),
            [seen("bench", box=LEFT), seen("dog", box=RIGHT)],
            [seen("bench", box=RIGHT), seen("dog", box=LEFT)],
            "dog is not right of bench",
        ),
        (
            prompt("color_attr", [{**BENCH, "color": "red"}, {**DOG, "color": "black"}]),
            [seen("bench", colour="red"), seen("dog", colour="black")],
            [seen("bench", colour="black"), seen("dog", colour="red")],
            "bench: black instead of red",
        ),
    ],
    ids=lambda value: value.group if isinstance(value, EvaluationPrompt) else "",
)
def test_a_prompt_of_each_category_right_and_wrong(asked, right, wrong, fault):
    assert faults(asked, *right) == []
    assert fault in faults(asked, *wrong)


def test_too_few_are_wrong_and_too_many_of_one_class_are_not_counted():
    four = prompt("counting", [{"class": "dog", "count": 4}], [{"class": "dog", "count": 5}])
    assert faults(four, *[seen("dog")] * 3) == ["3 of 4 × dog"]
    assert faults(four, *[seen("dog")] * 4) == []
    many = prompt("counting", [{"class": "dog", "count": 1}], [{"class": "dog", "count": 17}])
    assert faults(many, *[seen("dog")] * 40) == []  # 16 of a class at most


def test_a_position_wants_a_target_that_is_right_itself():
    asked = prompt("position", [BENCH, {**DOG, "position": ["below", 0]}])
    assert faults(asked, seen("dog", box=BELOW)) == ["0 of 1 × bench", "nothing that dog could be below"]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        # Two boxes of 100 × 100: the margin is 0.1 · 200 = 20.
        ((90, 0), {"right of"}),  # 70 / 90 = 0.78
        ((-90, 0), {"left of"}),
        ((0, -90), {"above"}),
        ((0, 90), {"below"}),
        ((30, 0), set()),  # 10 / 30 = 0.33
        ((41, 0), {"right of"}),  # 21 / 41 = 0.51
        ((39, 0), set()),  # 19 / 39 = 0.49
        ((60, 60), set()),  # 40 / 84.9 = 0.47
        ((100, 100), {"right of", "below"}),  # 80 / 141.4 = 0.57
        ((0, 0), set()),
    ],
)
def test_positions_by_centres(offset, expected):
    x, y = offset
    assert relations((x, y, x + 100, y + 100), (0, 0, 100, 100)) == expected


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (prompt("sizes", [BENCH]), "the category 'sizes'"),
        (prompt("single_object", [{"class": "unicorn", "count": 1}]), "the class 'unicorn'"),
        (prompt("colors", [{**BENCH, "color": "teal"}]), "the colour 'teal'"),
        (prompt("position", [{**DOG, "position": ["above", 0]}]), "a position to object 0"),
        (prompt("single_object", [{"class": "bench"}]), "'count'"),
        (prompt("single_object", []), "no object"),
    ],
)
def test_prompts_of_another_making_are_refused(asked, problem):
    with pytest.raises(UserError, match=r"GenEval's prompt 'a photo' cannot be scored .*evaluation_metadata") as error:
        read_task(asked)
    assert problem in str(error.value)


def test_prompts_of_other_files_are_not_its_own():
    assert read_task(EvaluationPrompt("a cat", "prompts")) is None
    assert read_task(EvaluationPrompt("a cat", "dpg", {"item_id": "1"})) is None


LABELS = {number: {"tv": "tvmonitor", "tv remote": "remote"}.get(name, name) for number, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory):
    pytest.importorskip("scipy", reason="transformers' Mask2Former wants scipy")
    return tiny_benchmarks.save_segmenter(tmp_path_factory.mktemp("segmenter"), LABELS, "tvmonitor")


@pytest.fixture
def small(monkeypatch):
    """Pictures go through the network at a size that takes no time."""
    monkeypatch.setattr(segmenting, "SHORT_SIDE", 64)


def noise(seed, size=(40, 30)):
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def test_detections_are_the_networks_queries(segmenter_folder, small):
    segmenter, image = Segmenter(str(segmenter_folder), "cpu"), noise(0)
    found = sorted(segmenter.detect(image), key=lambda each: each.confidence)
    pixels, size = resized_pixels(image)
    assert (size, pixels.shape) == ((64, 85), (3, 64, 96))
    with torch.no_grad():
        output = segmenter.model(pixel_values=pixels[None])
    sure = output.class_queries_logits[0].softmax(-1)[:, CLASSES.index("tv")]
    expected = []
    for query in range(3):
        logits = full_size(output.masks_queries_logits[0, query], (64, 96), (64, 85), (30, 40)).numpy()
        values = [1 / (1 + np.exp(-value)) for value in logits.flatten().tolist() if value > 0]
        ys, xs = np.nonzero(logits > 0)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        expected.append((float(sure[query]) * np.mean(values), tuple(map(int, box)), logits > 0))
    assert len(found) == 3
    for one, (confidence, box, mask) in zip(found, sorted(expected, key=lambda each: each[0]), strict=True):
        assert one.name == "tv"
        assert one.confidence == pytest.approx(confidence, rel=1e-4)
        assert one.box == box
        assert (one.mask == mask).all()


def test_pictures_and_masks_are_resized_as_mmdet_does_it():
    assert resized_pixels(Image.new("RGB", (512, 512)))[1] == (800, 800)
    # 800 / 1024 would make the longer side 1600: it may have 1333, and 667 and 1333 are filled up to multiples of 32.
    pixels, size = resized_pixels(Image.new("RGB", (2048, 1024), (255, 0, 0)))
    assert (size, pixels.shape) == ((667, 1333), (3, 672, 1344))
    assert pixels[:, 0, 0].tolist() == pytest.approx([(255 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375])
    assert pixels[:, -1, -1].tolist() == pytest.approx([4.325 / 58.395, 11.72 / 57.12, 24.47 / 57.375])
    # A mask's left half, in the quarter of 64 × 96 of which 64 × 80 are the picture: 40 of those are its half.
    logits = torch.where(torch.arange(24) < 10, 1.0, -1.0).expand(16, 24)
    mask = full_size(logits, (64, 96), (64, 80), (32, 40)) > 0
    assert mask.shape == (32, 40)
    assert mask[:, :20].all()
    assert not mask[:, 20:].any()


def test_segmenters_that_cannot_be_used_are_sentences(segmenter_folder, clip, tmp_path):
    def refused(source):
        with pytest.raises(UserError) as error:
            open_scorers([f"geneval={source}"], "cpu")
        return str(error.value)

    assert "names one thing of two; give geneval=SEGMENTER,CLIP" in refused(segmenter_folder)
    assert "geneval's segmenter is `/nowhere`, which is not there" in refused(f"/nowhere,{clip}")
    assert "geneval's CLIP is `/nowhere`, which is not there" in refused(f"{segmenter_folder},/nowhere")
    assert "config.json says `model_type` clip; give a Mask2Former" in refused(f"{clip},{clip}")
    assert "geneval's CLIP is" in (said := refused(f"{segmenter_folder},{segmenter_folder}"))
    assert "no tokenizer_config.json; give a CLIPModel" in said
    config = json.loads((segmenter_folder / "config.json").read_text())
    config["id2label"]["13"] = "banc"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "labels in config.json lack bench (1 of COCO's 80 classes)" in refused(f"{tmp_path},{clip}")
    (tmp_path / "config.json").write_bytes((segmenter_folder / "config.json").read_bytes())
    assert "has no .safetensors file; pickled weights are never opened" in refused(f"{tmp_path},{clip}")


def test_an_object_is_cut_out_on_grey():
    image = Image.new("RGB", (6, 4), "red")
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5], mask[1, 2] = True, False
    cut = cut_out(image, Detection("dog", 1.0, (2, 1, 5, 3), mask))
    assert np.asarray(cut).tolist() == [
        [[153] * 3, [255, 0, 0], [255, 0, 0]],
        [[255, 0, 0]] * 3,
    ]


def test_colours_are_the_nearest_of_clips_texts(clip):
    colours = ColourNamer(str(clip), "cpu")
    image, model, objects = Image.new("RGB", (40, 30)), colours.clip.model, []
    for number, colour in enumerate(COLOURS):
        box = (4 * number, 2, 4 * number + 4, 28)
        image.paste(colour, box)
        mask = np.zeros((30, 40), dtype=bool)
        mask[2:28, 4 * number : 4 * number + 3] = True
        objects.append(Detection("dog", 1.0, box, mask))
    forms = ("a photo of a {} dog", "a photo of a {}-colored dog", "a photo of a {} object")
    texts = [form.format(colour) for colour in COLOURS for form in forms]
    tokens = colours.clip.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = torch.stack([colours.clip.pixels(cut_out(image, one)) for one in objects])
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
    means = [output.text_embeds[3 * number : 3 * number + 3].mean(0) for number in range(len(COLOURS))]
    scores = [[float(one @ mean / mean.norm()) for mean in means] for one in output.image_embeds]
    expected = [COLOURS[int(np.argmax(own))] for own in scores]
    assert colours.name(image, "dog", objects) == expected
    assert len(set(expected)) > 1


class Drawn:
    """A picture on the disk."""

    def __init__(self, folder, number, prompt):
        self.key, self.path, self.prompt = str(number), folder / f"{number}.png", prompt
        noise(number).save(self.path)


def test_judgements_are_kept_by_what_was_asked_for(segmenter_folder, clip, small, tmp_path, monkeypatch):
    (scorer,) = open_scorers([f"geneval={segmenter_folder},{clip}"], "cpu")
    judged = []
    judge = type(scorer).judge
    monkeypatch.setattr(type(scorer), "judge", lambda self, *each: judged.append(len(each[0])) or judge(self, *each))
    tv, dog = prompt("single_object", [{"class": "tv", "count": 1}]), prompt("two_object", [BENCH, DOG])
    pictures = [
        Drawn(tmp_path, 0, tv),
        Drawn(tmp_path, 1, dog),
        Drawn(tmp_path, 2, EvaluationPrompt("of another file", "prompts")),
    ]
    assert score_pictures(scorer, pictures, tmp_path) == {"0": 1.0, "1": 0.0}
    first, second = {"single_object": (1.0, 1.0)}, {"two_object": (0.0, 1.0)}
    assert read_parts(scorer, pictures, tmp_path) == {"0": first, "1": second}
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert rows[1]["evidence"]["faults"] == ["0 of 1 × bench", "0 of 1 × dog"]
    assert list(rows[0]["evidence"]["objects"]) == ["tv"]
    assert score_pictures(scorer, pictures, tmp_path) == {"0": 1.0, "1": 0.0}
    assert judged == [2]
    # The same picture and text, but something else is asked for.
    pictures[0].prompt = prompt("counting", [{"class": "tv", "count": 9}], [{"class": "tv", "count": 10}])
    assert score_pictures(scorer, pictures, tmp_path) == {"0": 0.0, "1": 0.0}
    assert read_parts(scorer, pictures, tmp_path)["0"] == {"counting": (0.0, 1.0)}
    # What a picture is judged with does not matter.
    assert scorer.judge([noise(1)], [dog])[0].evidence == rows[1]["evidence"]


def test_pictures_in_the_benchmarks_own_folders(tmp_path):
    for number, (tag, include) in enumerate({"single_object": [BENCH], "two_object": [DOG]}.items()):
        samples = tmp_path / f"{number:05}" / "samples"
        samples.mkdir(parents=True)
        row = {"tag": tag, "include": include, "prompt": f"a photo {number}"}
        (samples.parent / "metadata.jsonl").write_text(json.dumps(row))
        (samples.parent / "grid.png").touch()
        for seed in range(2):
            noise(2 * number + seed).save(samples / f"{seed:05}.png")
    found = list(find_geneval(tmp_path))
    assert [(each.prompt.text, each.prompt.group, each.seed, each.path.parts[-3:]) for each in found] == [
        ("a photo 0", "single_object", 0, ("00000", "samples", "00000.png")),
        ("a photo 0", "single_object", 1, ("00000", "samples", "00001.png")),
        ("a photo 1", "two_object", 0, ("00001", "samples", "00000.png")),
        ("a photo 1", "two_object", 1, ("00001", "samples", "00001.png")),
    ]
    assert len({each.key for each in found}) == 4
