"""A run of CHATS Distill Pair: what it keeps, how it goes on, what it leaves as it was, what it refuses; on a mini SD3
and its real small VAE."""

import comfy.lora
import comfy.model_management
import comfy.sd
import folder_paths
import mini_architectures
import nodes as comfy_nodes
import pytest
import torch
from conftest import pack_module
from running import guider_of, lora, run
from safetensors.torch import load_file, save_file
from training_runs import SIZE, stop_after

pytest_plugins = ["training_runs"]


@pytest.fixture
def pair(nodes, models, place):
    """A pair of LoRAs on the base, by the stock files' way: MODEL of Apply, and its members."""
    for seed, name in ((11, "good"), (12, "bad")):
        save_file(lora(models[0], seed), place / "loras" / f"{name}.safetensors")
    with torch.inference_mode():
        members = nodes["CHATSLoRAPairLoader"](models[0], "good.safetensors", "bad.safetensors", 1.0, 1.0)
        return nodes["CHATSApply"](*members, 0.0, 1.0)[0], members


@pytest.fixture
def distill(pack, models, pair):
    """Runs the node, as ComfyUI does, in inference mode; settings that are not stated are these."""
    node = pack_module("nodes.training.distill_pair").CHATSDistillPair
    usual = dict(zip(("clip", "vae"), models[1:], strict=True)) | dict(
        model=pair[0],
        dataset="my taste",
        name="lora",
        cfg=3.0,
        alpha=0.5,
        form="auto",
        rank=6,
        layers="all linear",
        steps=4,
        learning_rate=1e-2,
        accumulate=2,
        resolution=SIZE,
        seed=1,
        minutes=0,
    )

    def run(**settings):
        with torch.inference_mode():
            return node.execute(**usual | settings).args

    return run


def state(place, name: str = "lora") -> dict[str, torch.Tensor]:
    return load_file(place / "output" / "chats" / "my taste" / "distilled" / name / "state.safetensors")


def assert_equal_runs(place, name: str, other: str) -> None:
    ours, theirs = state(place, name), state(place, other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    files = [load_file(place / "loras" / f"{each}.safetensors") for each in (name, other)]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def sampled(model, cfg: float = 1.0) -> torch.Tensor:
    prompts = [mini_architectures.conditioning("sd3", seed, 6) for seed in (1, 2)]
    with torch.inference_mode():
        return run(guider_of(model, *prompts, cfg), {"samples": torch.zeros(1, 16, 8, 8)})


def test_the_lora_is_listed_says_what_it_is_and_is_what_the_stock_loader_gives(distill, models, pair, place):
    base, (joined, members) = models[0], pair
    before = [sampled(base, 3.0), *(sampled(each, 3.0) for each in members), sampled(joined, 3.0)]
    distilled, curve = distill()
    after = [sampled(base, 3.0), *(sampled(each, 3.0) for each in members), sampled(joined, 3.0)]
    assert all(torch.equal(*each) for each in zip(before, after, strict=True))
    assert curve.shape[0] == 1
    assert "lora.safetensors" in folder_paths.get_filename_list("loras")
    with torch.inference_mode():
        (loaded,) = comfy_nodes.LoraLoaderModelOnly().load_lora_model_only(base, "lora.safetensors", 1.0)
    assert torch.equal(sampled(distilled), sampled(loaded))
    assert not torch.equal(sampled(distilled), sampled(members[0]))
    # The prompts are of several lengths here, which have no mixture with the null prompt.
    distilled_module, read = pack_module("chats.distilled"), pack_module("chats.pair").read_header
    stated = distilled_module.DistilledMetadata.from_header(read(place / "loras" / "lora.safetensors"))
    assert (stated.cfg, stated.step, stated.form, stated.negative) == (1, 4, "exact", "dispreferred")
    assert (stated.guidance_scale, stated.alpha, stated.base_name) == (2.0, 0.5, "SD3")
    assert stated.prediction_type == "flow"


def test_a_cancelled_run_goes_on_as_if_it_never_stopped(distill, place, monkeypatch):
    distill(name="whole")
    with monkeypatch.context() as cancelled:
        stop_after(2, cancelled)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            distill()
    assert not (place / "loras" / "lora.safetensors").exists()
    distill()
    assert_equal_runs(place, "lora", "whole")
