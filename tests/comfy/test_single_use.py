"""A pair in nodes that take one model's weights: it is said that only the preferred's come."""

import logging

import comfy.sd
import mini
import mini_architectures
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from running import guider_of, lora, result, run

MERGED = "of the pair only the preferred member is merged here: put this node before CHATS Apply"
SAVED = "of the pair only the preferred member is saved here: put this node before CHATS Apply"


@pytest.fixture
def joined(nodes, pairs):
    return nodes["CHATSApply"](*pairs("sd15"), 0.0, 1.0)[0]


@pytest.fixture
def said(caplog):
    def lines(action):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            action()
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("CHATS: ")]

    return lines


def sample(model):
    conds = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    return run(guider_of(model, *conds, 6.0), mini.latent("sd15"), steps=1)


def test_a_pair_as_the_model_that_is_merged_in(joined, pairs, said):
    (line,) = said(lambda: result(ModelMergeSimple, pairs("sd15")[1], joined.clone(), 0.5))
    assert MERGED in line
    assert said(lambda: result(ModelMergeSimple, *pairs("sd15"), 0.5)) == []


def test_a_pair_that_is_saved(joined, pairs, said, tmp_path):
    lines = said(lambda: comfy.sd.save_checkpoint(str(tmp_path / "pair.safetensors"), joined.clone()))
    assert len(lines) == 1
    assert SAVED in lines[0]
    assert said(lambda: comfy.sd.save_checkpoint(str(tmp_path / "one.safetensors"), pairs("sd15")[0])) == []


def test_a_pair_that_a_lora_is_made_of(joined, pairs, said, tmp_path, monkeypatch):
    import folder_paths
    from comfy_extras.nodes_lora_extract import LoraSave

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    lines = said(lambda: result(LoraSave, "lora", 8, "full_diff", False, joined.clone()))
    assert lines
    assert all(SAVED in line for line in lines)
    assert said(lambda: result(LoraSave, "lora", 8, "full_diff", False, pairs("sd15")[0])) == []


def test_sampling_says_nothing_of_it(joined, said):
    assert said(lambda: sample(joined)) == []


def test_a_model_merged_into_a_pair_is_merged_into_both(nodes, pairs, joined, said):
    """As any patch of weights after CHATS Apply."""
    other = mini_architectures.model("sd15", 5)
    merged, members = [], [result(ModelMergeSimple, model, other, 0.5)[0] for model in pairs("sd15")]
    assert said(lambda: merged.extend(result(ModelMergeSimple, joined, other, 0.5))) == []
    expected = sample(nodes["CHATSApply"](*members, 0.0, 1.0)[0])
    assert mini.relative_error(sample(merged[0]), expected) < 1e-5


def test_weight_hooks_say_nothing_of_it(joined, pairs, said):
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora(pairs("sd15")[0], 9), 1.0, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(mini.conditioning("sd15", 3), hooks)
    guider = guider_of(joined, positive, mini.conditioning("sd15", 4), 6.0)
    assert said(lambda: run(guider, mini.latent("sd15"), steps=1)) == []
    assert torch.isfinite(sample(joined)).all()
