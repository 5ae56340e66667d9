"""A run of the training node: what it keeps, how it goes on, what it refuses; on a mini SD3 and its real small VAE."""

import logging
import shutil

import comfy.model_management
import comfy.sd
import folder_paths
import mini_architectures
import nodes as comfy_nodes
import pytest
import torch
from conftest import newest_only, pack_module
from running import lora
from training_runs import Clip, assert_equal_pairs, assert_equal_runs, files, rate, state_file, stop_after

pytest_plugins = ["training_runs"]


def test_a_finished_pair_is_in_loras_and_is_what_the_loader_gives(train, nodes, models, place, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(pack_module("nodes.loading.loaders"), "show", lambda text, node_id: said.append(text))
    network = models[0].model.diffusion_model
    before = {key: value.clone() for key, value in network.state_dict().items()}
    preferred, dispreferred, curve = train()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert curve.shape[0] == 1
    assert curve.shape[-1] == 3
    assert folder_paths.get_filename_list("loras") == ["pair_dispreferred.safetensors", "pair_preferred.safetensors"]
    names = ("pair_preferred.safetensors", "pair_dispreferred.safetensors")
    loaded = nodes["CHATSLoRAPairLoader"](models[0], *names, 1.0, 1.0)
    for ours, theirs in zip((preferred, dispreferred), loaded, strict=True):
        assert ours.patches.keys() == theirs.patches.keys()
        for key, patches in ours.patches.items():
            weights = [patch[0][1].weights[:2] for patch in (patches, theirs.patches[key])]
            assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    assert said[0].split("\n")[1] == "trained on 5 rated pairs of my taste, base SD3"
    (metadata, _), _ = pack_module("chats.pair").check_files(*(place / "loras" / name for name in names)), None
    assert (metadata.step, metadata.null_prompt, metadata.prediction_type) == (4, "encoded_empty", "flow")
    assert (metadata.dataset_name, metadata.dataset_pairs, metadata.base_name) == ("my taste", 5, "SD3")


@newest_only
def test_a_finished_run_trains_nothing_when_it_is_queued_again(train, place):
    train()
    written, state = files(place), state_file(place).stat().st_mtime_ns
    (place / "loras" / "pair_preferred.safetensors").unlink()
    train()
    assert files(place) == written
    assert state_file(place).stat().st_mtime_ns == state


def test_a_cancelled_run_goes_on_as_if_it_never_stopped(train, place, monkeypatch):
    train(name="whole")
    with monkeypatch.context() as cancelled:
        stop_after(2, cancelled)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train()
    assert not list((place / "loras").glob("pair_*"))
    train()
    assert_equal_runs(place, "pair", "whole")
    assert_equal_pairs(place, "pair", "whole")


@newest_only
def test_more_steps_go_on_and_time_ends_a_go(train, place, monkeypatch):
    train(name="whole")
    session = pack_module("nodes.training.session")
    ticks = iter(range(0, 10**6, 61))
    with monkeypatch.context() as hurried:
        hurried.setattr(session.time, "monotonic", lambda: float(next(ticks)))
        preferred, *_ = train(minutes=1)
    assert not list((place / "loras").glob("pair_*"))
    assert preferred.patches
    train(steps=2)
    train()
    assert_equal_runs(place, "pair", "whole")


@newest_only
def test_encodings_are_made_once(train, models):
    clip = models[1]
    train(steps=1)
    made = len(clip.encoded)
    train(steps=1, name="another")
    assert len(clip.encoded) == made


@newest_only
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(rank=3), "`rank` is 3, and it was begun with 2"),
        (dict(null=mini_architectures.conditioning("sd3", 5, 4)), "the null prompt is another one"),
        (dict(model=mini_architectures.model("sd3", 2)), "another `model` is connected"),
    ],
    ids=["rank", "null", "model"],
)
def test_another_run_under_the_same_name_is_refused(train, place, change, sentence):
    train(steps=1)
    before = state_file(place).read_bytes()
    with pytest.raises(ValueError, match=sentence):
        train(**change)
    assert state_file(place).read_bytes() == before


@newest_only
def test_a_data_set_that_changed_is_said_and_another_name_trains_on_it(train, place):
    train(steps=1)
    rate(place / "output" / "chats" / "my taste", prompts=1, first=9)
    with pytest.raises(ValueError, match="the data set has changed since"):
        train(steps=2)
    train(steps=1, name="another")


@newest_only
def test_somebody_elses_file_is_not_written_over(train, place):
    theirs = place / "loras" / "pair_preferred.safetensors"
    theirs.write_bytes(b"theirs")
    with pytest.raises(ValueError, match="made by something else than this run"):
        train()
    assert theirs.read_bytes() == b"theirs"
    assert not state_file(place).exists()


@newest_only
def test_an_identical_data_set_does_not_write_over_the_files_of_the_first(train, place):
    train(steps=3)
    written = files(place)
    sets = place / "output" / "chats"
    shutil.copytree(sets / "my taste", sets / "copy", ignore=shutil.ignore_patterns("runs"))
    with pytest.raises(ValueError, match="made by something else than this run; choose another `name`"):
        train(dataset="copy", steps=4)
    # As in another ComfyUI whose `loras` are the same: a data set of that name, without the run.
    shutil.rmtree(sets / "my taste" / "runs" / "pair")
    with pytest.raises(ValueError, match=r"pair of step 2, and .*pair_preferred.* is of step 3 .*set `steps` to 3"):
        train(steps=2)
    assert files(place) == written
    train(steps=3)
    assert files(place) == written


@newest_only
def test_files_that_somebody_made_while_it_trained_stay(train, place, monkeypatch):
    theirs = place / "loras" / "pair_preferred.safetensors"
    steps = pack_module("nodes.training.steps").Steps
    take = steps.take
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(steps, "take", lambda self: (theirs.write_bytes(b"theirs"), take(self))[1])
        with pytest.raises(ValueError, match="made by something else"):
            train(steps=1)
    assert theirs.read_bytes() == b"theirs"
    theirs.unlink()
    train(steps=1)
    assert len(files(place)) == 2


@newest_only
def test_fewer_steps_than_were_taken_give_the_pair_as_it_is_and_say_so(train, place, caplog):
    train(steps=3)
    written, state = files(place), state_file(place).read_bytes()
    with caplog.at_level(logging.WARNING):
        preferred, *_ = train(steps=2)
    assert "`steps` is 2, and the run `pair` is at step 3 already: nothing was trained" in caplog.text
    assert (files(place), state_file(place).read_bytes()) == (written, state)
    assert preferred.attachments["chats_pair"].step == 3


@newest_only
def test_a_run_is_trained_by_one_at_a_time(train, place):
    with (
        pack_module("chats.locks").locked(state_file(place).with_name(".lock")),
        pytest.raises(ValueError, match=r"`name` is pair, and that run is being trained now.*another `name`"),
    ):
        train(steps=1)
    assert not state_file(place).exists()
    train(steps=1)
    assert state_file(place).exists()


@newest_only
def test_a_damaged_state_is_said(train, place):
    train(steps=1)
    content = bytearray(state_file(place).read_bytes())
    content[-3] ^= 1
    state_file(place).write_bytes(content)
    with pytest.raises(ValueError, match="not as it was written"):
        train(steps=2)


@newest_only
def test_an_error_in_a_step_loses_no_step_and_leaves_nothing_on_the_model(train, models, place, monkeypatch):
    train(name="whole")
    steps = pack_module("nodes.training.steps").Steps
    take = steps.take

    def fails(self):
        if self.step == 2:
            raise comfy.model_management.OOM_EXCEPTION("no room")
        return take(self)

    with monkeypatch.context() as failing:
        failing.setattr(steps, "take", fails)
        with pytest.raises(ValueError, match="Lower `resolution`"):
            train()
    network = models[0].model.diffusion_model
    assert not any(module._forward_hooks or "forward" in vars(module) for module in network.modules())
    train()
    assert_equal_pairs(place, "pair", "whole")


@newest_only
@pytest.mark.parametrize("stage", ["picture", "prompt", "check"])
def test_out_of_memory_names_the_setting_wherever_it_is(train, models, stage, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory: a gradient does not fit")

    if stage == "check":  # which takes torch's other errors for those of a model without gradients
        monkeypatch.setattr(pack_module("nodes.training.errors").Errors, "error", full)
    else:
        encoder, method = {"picture": (models[2], "encode"), "prompt": (models[1], "encode_from_tokens_scheduled")}[
            stage
        ]
        monkeypatch.setattr(encoder, method, full)
    with pytest.raises(ValueError, match=r"memory does not hold .*Lower `resolution`"):
        train()


@newest_only
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(dataset="nothing here"), "`dataset` is nothing here, which is not in .*chats; there are? "),
        (dict(dataset="../up"), "`dataset` is `../up`; choose"),
        (dict(name="a/b"), "`name` is `a/b`; choose"),
        (dict(clip="text"), "`clip` is `text`"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(train, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(**settings)


@newest_only
def test_a_full_disk_keeps_what_is_there_and_goes_on_once_there_is_room(train, place):
    resource = pytest.importorskip("resource")  # Windows has no such limits
    train(name="whole")
    train(steps=1)
    before = state_file(place).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1000, limits[1]))
    try:
        with pytest.raises(ValueError, match="make room"):
            train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state_file(place).read_bytes() == before
    train()
    assert_equal_pairs(place, "pair", "whole")
    assert sorted(file.name for file in state_file(place).parent.iterdir()) == [".lock", "state.safetensors"]


@newest_only
def test_a_pair_is_no_base(train, models, nodes):
    (joined,) = nodes["CHATSApply"](models[0], mini_architectures.model("sd3", 2), 0.0, 1.0)
    with pytest.raises(ValueError, match="connect the base that it was made of"):
        train(model=joined)


@newest_only
def test_the_node_is_asked_again_where_ratings_came_in_or_the_run_went_on(train, place):
    node = pack_module("nodes.training.train_lora_pair").CHATSTrainLoRAPair
    seen = [node.fingerprint_inputs(dataset="my taste", name="pair")]
    train(steps=1)
    seen.append(node.fingerprint_inputs(dataset="my taste", name="pair", steps=1))
    rate(place / "output" / "chats" / "my taste", prompts=1, first=9)
    seen.append(node.fingerprint_inputs(dataset="my taste", name="pair"))
    (place / "loras" / "pair_preferred.safetensors").unlink()
    seen.append(node.fingerprint_inputs(dataset="my taste", name="pair"))
    assert len(set(seen)) == 4
    assert node.fingerprint_inputs(dataset="../up", name="pair") == ""


@newest_only
def test_beta_is_the_papers_by_default_and_the_seed_stays_as_it_is(pack):
    info = pack_module("nodes.training.train_lora_pair").CHATSTrainLoRAPair.GET_NODE_INFO_V1()["input"]["required"]
    assert info["beta"][1]["default"] == pack_module("chats.objective").DEFAULT_BETA
    assert info["seed"][1]["control_after_generate"] is False


def drawn(model, clip) -> torch.Tensor:
    """By the stock KSampler."""
    node = comfy_nodes.KSampler()
    prompts = [clip.encode_from_tokens_scheduled(text) for text in ("a prompt", "")]
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        return node.sample(model, 5, 2, 3.0, "euler", "simple", *prompts, latent)[0]["samples"].clone()


def test_the_base_is_afterwards_what_it_was_and_trains_alike(train, place, monkeypatch):
    model, clip = mini_architectures.model("sd3"), Clip()
    patched = comfy.sd.load_lora_for_models(model, None, lora(model, 3), 1.0, 0.0)[0]
    before = [drawn(each, clip) for each in (model, patched)]
    assert not torch.equal(*before)

    def assert_as_before():
        for each, expected in zip((model, patched), before, strict=True):
            assert torch.equal(drawn(each, clip), expected)

    # With the LoRA in the weights when it begins, as a sampler leaves it.
    train(model=model, steps=2, preview_every=1)
    assert_as_before()
    comfy.model_management.unload_all_models()
    assert_as_before()
    train(model=model, steps=2, name="again")
    assert_equal_pairs(place, "again", "pair")
    with monkeypatch.context() as failing:
        failing.setattr(pack_module("nodes.training.steps").Steps, "take", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model=model, steps=2, name="fails")
    assert_as_before()
    with torch.inference_mode():
        train(model=patched, steps=1, name="patched")
    assert_as_before()
