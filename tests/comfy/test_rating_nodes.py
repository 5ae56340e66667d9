"""The two nodes that draw candidates: which line, what is written, what is said and what is refused."""

from __future__ import annotations

import json

import folder_paths
import pytest
import torch
from conftest import pack_module
from PIL import Image

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "my model.safetensors"}},
    "2": {"class_type": "CHATSPromptLines", "inputs": {"text": "a cat\na dog.safetensors\n", "index": 41}},
    "3": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": ["2", 1], "steps": 20, "cfg": 6.0}},
    "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "noise_seed": 2**64 - 1, "latent_image": ["3", 0]}},
    "5": {"class_type": "CHATSSaveCandidates", "inputs": {"images": ["4", 0], "prompt": ["2", 0], "dataset": "a"}},
    "6": {"class_type": "KSampler", "inputs": {"seed": 5}},
    "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "another.safetensors"}},
    "8": {"class_type": "Loop", "inputs": {"seed": ["8", 0], "model": ["8", 1], "bad": None}},
}


@pytest.fixture
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What the nodes show."""
    shown: list[str] = []
    for module in ("prompt_lines", "save_candidates"):
        monkeypatch.setattr(pack_module(f"nodes.rating.{module}"), "show_lines", shown.extend)
    return shown


@pytest.fixture
def save(pack, output):
    """The node as ComfyUI runs it, with what is hidden; its outputs and what it says to the front end."""
    node = pack_module("nodes.rating.save_candidates").CHATSSaveCandidates
    from comfy_api.latest._io import HiddenHolder

    def save(images, prompt="a cat", dataset="a", graph=GRAPH, extra=None):
        class Copy(node):
            hidden = HiddenHolder(unique_id="5", prompt=graph, extra_pnginfo=extra, dynprompt=None,
                                  auth_token_comfy_org=None, api_key_comfy_org=None)  # fmt: skip

        return Copy.execute(images, prompt, dataset)

    return save


def noise(seed: int, batch: int = 1, height: int = 24, width: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def rows(output, dataset="a") -> list[dict]:
    return [json.loads(line) for line in (output / "chats" / dataset / "candidates.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("index", "prompt"), [(0, "a cat"), (1, "猫,  dog"), (2, "a fish"), (3, "a cat"), (2**64 - 1, "a cat")]
)
def test_the_index_walks_through_the_lines_and_goes_on(nodes, lines, index, prompt):
    text = "  a cat \r\n\n猫,  dog\r a fish\n \t\n"
    assert nodes["CHATSPromptLines"](text, index) == (prompt, index, 3)
    assert lines == [f"line {index % 3 + 1} of 3"]


def test_only_ends_of_lines_are_ends_of_prompts(nodes, lines):
    text = "one\u2028line\x0b and\x0c no\x85 more\nanother"
    assert nodes["CHATSPromptLines"](text, 0)[2] == 2
    long = "x" * 500
    assert nodes["CHATSPromptLines"](long, 0)[0] == long
    assert len(lines[-1]) < 80


@pytest.mark.parametrize("text", ["", "\n \r\n\t"])
def test_a_text_without_prompts_is_refused(nodes, text):
    with pytest.raises(ValueError, match="`text` has no line that says something; write one prompt a line"):
        nodes["CHATSPromptLines"](text, 0)


def test_a_batch_becomes_candidates_of_one_prompt(save, output, lines):
    extra = {"workflow": {"nodes": [], "name": "ünï"}}
    images = noise(1, batch=2)
    answer = save(images, "  a cat\nat noon ", extra=extra)
    assert answer.result[0] is images
    saved = answer.ui["images"]
    assert [one["type"] for one in saved] == ["output"] * 2
    assert {one["subfolder"] for one in saved} == {"chats/a/images"}
    assert [f"{row['id']}.png" for row in rows(output)] == [one["filename"] for one in saved]
    for row, image in zip(rows(output), images, strict=True):
        assert row.pop("time") > 1.7e9
        name = row.pop("id")
        assert row == {
            "prompt": "a cat\nat noon",
            "seeds": [41, 2**64 - 1],
            "models": ["my model.safetensors"],
            "width": 16,
            "height": 24,
        }
        with Image.open(output / "chats/a/images" / f"{name}.png") as picture:
            assert json.loads(picture.info["prompt"]) == GRAPH
            assert json.loads(picture.info["workflow"]) == extra["workflow"]
            levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(24, 16, 3)
        assert torch.equal(levels, (image * 255).to(torch.uint8))
    assert lines == ["saved 2, 1 pair waits to be rated"]


def test_the_picture_is_the_one_that_save_image_writes(save, output):
    """Byte for byte, with what is inside."""
    import nodes as comfy_nodes

    images, extra = noise(2) * 1.4 - 0.2, {"workflow": {"a": 1}}
    (one,) = save(images, extra=extra).ui["images"]
    stock = comfy_nodes.SaveImage()
    stock.output_dir = str(output)
    (other,) = stock.save_images(images, prompt=GRAPH, extra_pnginfo=extra)["ui"]["images"]
    ours = (output / one["subfolder"] / one["filename"]).read_bytes()
    assert ours == (output / other["filename"]).read_bytes()


def test_no_metadata_is_written_where_comfyui_is_told_so(save, output, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    (one,) = save(noise(3), extra={"workflow": {}}).ui["images"]
    with Image.open(output / one["subfolder"] / one["filename"]) as picture:
        assert picture.info == {}
    assert rows(output)[0]["seeds"] == [41, 2**64 - 1]  # the log tells it still


def test_the_same_picture_again_is_no_other_candidate(save, output, lines):
    save(noise(4))
    save(noise(4))
    assert len(rows(output)) == 1
    assert lines[-1].startswith("saved 0, 1 there before, no pair yet: it takes two pictures of a prompt; raise batch_")
    with pytest.raises(
        ValueError, match=r"^picture 1 of 1 is not saved: the picture [0-9a-f]{16} is a candidate for anoth"
    ):
        save(noise(4), "a dog")
    save(torch.cat([noise(4), noise(5)]), "a dog")
    assert lines[-1].startswith("⚠ picture 1 of 2 is not saved")
    assert [row["prompt"] for row in rows(output)] == ["a cat", "a dog"]


def test_a_picture_of_no_numbers_is_said_and_the_others_are_saved(save, output, lines):
    images = noise(6, batch=3)
    images[1, 3, 3, 0] = float("nan")
    assert len(save(images).ui["images"]) == 2
    assert lines == [
        "saved 2, 1 pair waits to be rated",
        "⚠ picture 2 of 3 is not saved: it has NaN, as broken models give",
    ]
    images[:] = float("inf")
    with pytest.raises(ValueError, match="picture 3 of 3 is not saved"):
        save(images)
    assert len(rows(output)) == 2


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (noise(0, channels=4), "have 4 channels"),
        (noise(0, channels=1), "have 1 channel,"),
        (noise(0)[0], r"shape \[24, 16, 3\]"),
        (noise(0, batch=0), r"shape \[0, 24, 16, 3\]"),
        (noise(0, height=0), "no batch of pictures"),
        ("a text", "`images` is `a text`"),
        (None, "`images` is `None`"),
    ],
    ids=["alpha", "grey", "one", "empty", "flat", "text", "nothing"],
)
def test_what_is_no_batch_of_pictures_is_refused(save, output, images, match):
    with pytest.raises(ValueError, match=match):
        save(images)
    assert not (output / "chats").exists()


@pytest.mark.parametrize("prompt", ["", "  \n", "\udfff", "x" * 20_001, None, 7, ["a", "b"]])
def test_what_is_no_prompt_is_refused(save, output, prompt):
    with pytest.raises(ValueError, match="`prompt`"):
        save(noise(0), prompt)
    assert not (output / "chats").exists()


@pytest.mark.parametrize("dataset", ["", "../a", "a/b", "a\\b", "con", "a.b", " a", "a ", "x" * 65, "a\0"])
def test_what_is_no_data_set_is_refused(save, output, dataset):
    with pytest.raises(ValueError, match=r"^`dataset` is `.*choose "):
        save(noise(0), dataset=dataset)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("waiting", "alone", "said"),
    [
        (2, 1, "2 pairs wait to be rated"),
        (1, 1, "1 pair waits to be rated"),
        (0, 0, "all pairs are rated"),
        (0, 3, "no pair yet: it takes two pictures of a prompt; raise batch_size, or run again with another seed"),
    ],
)
def test_what_waits_is_said_with_the_way_on(waiting, alone, said):
    assert pack_module("nodes.rating.save_candidates").waiting_text(waiting, alone) == said


def test_a_name_that_differs_by_its_case_is_refused(save, output):
    """Windows and macOS would write both into one folder."""
    save(noise(0), dataset="My taste")
    with pytest.raises(
        ValueError, match=r"^`dataset` is `my Taste`, and there is `My taste`, .*write it as `My taste`"
    ):
        save(noise(1), dataset="my Taste")
    assert [folder.name for folder in (output / "chats").iterdir()] == ["My taste"]
    requested_run = pack_module("nodes.training.requested_run")
    with pytest.raises(ValueError, match="there is `My taste`"):
        requested_run.run_folder("MY TASTE", "a")
    assert requested_run.run_folder("My taste", "a") == output / "chats" / "My taste" / "runs" / "a"
    # Two that are there already, on a disk that tells them apart, are both of use.
    (output / "chats" / "my taste").mkdir()
    save(noise(1), dataset="my taste")
    assert pack_module("nodes.rating.data_sets").names() == ["my taste", "My taste"]


def test_refusals_have_a_type_that_reads_well(save):
    """ComfyUI's error dialog has it for a title, after the path of its module."""
    from execution import full_type_name

    for dataset, prompt in (("../a", "a cat"), ("a", "")):
        with pytest.raises(ValueError, match=r"`(dataset|prompt)`") as refused:
            save(noise(0), prompt, dataset)
        assert full_type_name(refused.type) == "ValueError"


def test_seeds_and_models_are_those_above_the_node():
    origin = pack_module("nodes.rating.origin")
    assert origin.seeds_and_models(GRAPH, "5") == ([41, 2**64 - 1], ["my model.safetensors"])
    assert origin.seeds_and_models(GRAPH, "nowhere")[0] == [5, 41, 2**64 - 1]
    assert origin.seeds_and_models(GRAPH, "8") == ([], [])
    assert origin.seeds_and_models(None, None) == ([], [])
    assert origin.seeds_and_models({"1": {"inputs": None}, "2": {}}, "1") == ([], [])
