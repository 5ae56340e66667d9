"""A run of CHATS Distill Pair: what it keeps, how it goes on, what it leaves as it was, what it refuses; on a mini SD3
and its real small VAE."""

import re

import comfy.lora
import comfy.model_management
import comfy.sd
import folder_paths
import mini_architectures
import nodes as comfy_nodes
import pytest
import torch
from conftest import newest_only, pack_module
from running import guider_of, lora, run
from safetensors.torch import load_file, save_file
from training_runs import SIZE, rate, stop_after

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


@newest_only
def test_a_cancelled_run_goes_on_as_if_it_never_stopped(distill, place, monkeypatch):
    distill(name="whole")
    with monkeypatch.context() as cancelled:
        stop_after(2, cancelled)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            distill()
    assert not (place / "loras" / "lora.safetensors").exists()
    distill()
    assert_equal_runs(place, "lora", "whole")


def with_lora(model, seed: int):
    state = lora(model, seed)
    places = {key.removesuffix(".weight"): key for key in model.model.state_dict()}
    patched = model.clone()
    assert patched.add_patches(comfy.lora.load_lora(state, places), 1.0)
    return patched


@newest_only
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda models, pair: pair[1][0], "`model` is no pair; connect the MODEL of CHATS Apply"),
        (lambda models, pair: with_lora(pair[0], 3), "`model` has a LoRA that was put on it after CHATS Apply"),
        (lambda models, pair: "model.safetensors", "which is no model"),
    ],
    ids=["no pair", "LoRA on top", "no link"],
)
def test_what_cannot_be_a_teacher_is_one_sentence(distill, models, pair, place, change, sentence):
    with torch.inference_mode():
        model = change(models, pair)
    with pytest.raises(ValueError, match=sentence) as refused:
        distill(model=model)
    assert "\n" not in str(refused.value)
    assert not (place / "output" / "chats" / "my taste" / "distilled").exists()


@newest_only
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(cfg=4.0), r"`cfg` is 4\.0, and it was begun with 3\.0"),
        (dict(steps=5), "`steps` is 5, and it was begun with 1"),
        (dict(interval=(0.0, 0.5)), "is guided in another part of the noise schedule"),
        (dict(swapped=True), "another pair is connected in `model`"),
    ],
    ids=["cfg", "steps", "interval", "another pair"],
)
def test_another_run_under_the_same_name_is_refused(distill, nodes, pair, change, sentence):
    distill(steps=1)
    members, change = pair[1], dict(change)
    with torch.inference_mode():
        if change.pop("swapped", False):
            change["model"] = nodes["CHATSApply"](*reversed(members), 0.0, 1.0)[0]
        if interval := change.pop("interval", None):
            change["model"] = nodes["CHATSApply"](*members, *interval)[0]
    with pytest.raises(ValueError, match=sentence):
        distill(**dict(steps=1) | change)


@newest_only
def test_somebody_elses_file_stays_and_a_finished_run_writes_its_own_again(distill, place):
    file = place / "loras" / "lora.safetensors"
    file.write_bytes(b"theirs")
    with pytest.raises(ValueError, match="made by something else than this run"):
        distill(steps=1)
    assert file.read_bytes() == b"theirs"
    file.unlink()
    distill(steps=1)
    written = file.read_bytes()
    file.unlink()
    distill(steps=1)
    assert file.read_bytes() == written


@newest_only
def test_two_models_are_distilled_onto_the_preferred_one(distill, nodes, models):
    with torch.inference_mode():
        other = mini_architectures.model("sd3", 2)
        (joined,) = nodes["CHATSApply"](models[0], other, 0.0, 1.0)
    distilled, _ = distill(model=joined, steps=1)
    assert distilled.model is models[0].model
    assert not torch.equal(sampled(distilled), sampled(models[0]))


@newest_only
def test_it_learns_what_the_guidance_adds(distill, place, monkeypatch):
    """On held-out pictures; the teacher is asked in turns, which changes nothing, and a preview neither."""
    rate(place / "output" / "chats" / "my taste", prompts=6, first=20)
    said: list[str] = []
    monkeypatch.setattr(pack_module("nodes.training.reports"), "show", lambda text, node_id: said.append(text))
    settings = dict(steps=16, accumulate=4, learning_rate=4e-3)
    distill(name="whole", **settings)
    monkeypatch.setattr(pack_module("nodes.training.taught"), "ASKED_AHEAD", 20)
    distill(preview_every=8, **settings)
    assert_equal_runs(place, "lora", "whole")
    share = re.search(r"learned \(held-out\): (-?\d+)%", said[-1])
    assert int(share[1]) > 5
    assert "asking the pair about 20 pictures" in said


@newest_only
def test_apply_says_that_a_distilled_model_is_no_member(distill, nodes, pair):
    distilled, _ = distill(steps=1)
    with torch.inference_mode():
        (joined,) = nodes["CHATSApply"](distilled, pair[1][1], 0.0, 1.0)
    (line,) = joined.attachments[pack_module("nodes.advice").DISTILLED]
    assert "cfg 1, no pair needed" in line


@newest_only
def test_the_stopwatch_shows_the_steps_of_each_run_and_changes_nothing(nodes, models, monkeypatch):
    stopwatch, shown = pack_module("nodes.sampling.stopwatch"), []
    monkeypatch.setattr(stopwatch, "show", lambda text, node_id: shown.append(text))
    expected = sampled(models[0], 3.0)
    (timed,) = nodes["CHATSStopwatch"](models[0])
    assert torch.equal(sampled(timed, 3.0), expected)
    (text,) = shown
    assert re.fullmatch(r"2 steps in \d+\.\d s,\n[\d.e-]+ s a step", text)
