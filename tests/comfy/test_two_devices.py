"""A pair whose members are on two devices, the second of them made for the test: it samples what it samples on one,
side by side in ComfyUI's own threads, and leaves none."""

import functools
import threading

import comfy.hooks
import comfy.model_management
import comfy.sd
import mini
import mini_architectures
import nodes as comfy_nodes
import pytest
import torch
from conftest import newest_only, pack_module
from running import ResidualControl, guider_of, lora, result, run
from safetensors.torch import save_file
from second_device import SECOND, SecondTensor, make_second_device

pytestmark = newest_only


@pytest.fixture
def second(monkeypatch):
    return make_second_device(monkeypatch)


@pytest.fixture(scope="module")
def elsewhere():
    """The dispreferred models on the second device by kind, as *Select Model Device* makes them: with weights of their
    own."""

    @functools.cache
    def elsewhere(kind):
        model = mini_architectures.model(kind, 2)
        model.load_device = SECOND
        return model

    return elsewhere


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if "_worker_loop" in thread.name]


@pytest.fixture
def sampled(nodes):
    """What a pair draws; ``after`` is put on its MODEL."""

    def sampled(preferred, dispreferred, positive, negative, kind="sd15", after=lambda model: model, **options):
        model = after(nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0])
        return run(guider_of(model, positive, negative, 6.0), mini.latent(kind, batch=2, seed=9), **options)

    return sampled


def prompts(kind="sd15"):
    return mini.conditioning(kind, 3), mini.conditioning(kind, 4)


def test_two_devices_sample_what_one_does(second, pairs, elsewhere, sampled):
    preferred, dispreferred = pairs("sd3")
    one = sampled(preferred, dispreferred, *prompts("sd3"), "sd3")
    assert SECOND not in second
    two = sampled(preferred, elsewhere("sd3"), *prompts("sd3"), "sd3")
    assert type(two) is torch.Tensor
    assert torch.equal(one, two)
    assert SECOND in second  # its memory is counted for itself
    (thread,) = SecondTensor.threads
    assert "_worker_loop" in thread


class CopiedControl(ResidualControl):
    """Of a kind that ComfyUI can have on several devices."""

    def deepclone_multigpu(self, load_device, autoregister=False):
        made = self.copy()
        if autoregister:
            self.multigpu_clones[load_device] = made
        return made


@pytest.mark.parametrize("in_turn", [False, True])
def test_conditioning_and_what_other_nodes_put_on_the_pair(in_turn, second, sampled, tmp_path, monkeypatch):
    """By core's own node and loader; areas, a mask, ControlNet and a weight hook on the negative; a LoRA and an
    attention patch after the two are joined."""
    from comfy_extras.nodes_multigpu import SelectModelDeviceNode

    if in_turn:
        monkeypatch.setattr(pack_module("nodes.sampling.own_device"), "MultiGPUThreadPool", None)
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda *_, **__: [torch.device("cpu"), SECOND])
    preferred, dispreferred = mini.model("sd15", 1), mini.model("sd15", 2)  # of the width that the loader knows
    save_file(mini.weights("sd15", 2), tmp_path / "d.safetensors")
    (moved,) = result(SelectModelDeviceNode, comfy.sd.load_diffusion_model(str(tmp_path / "d.safetensors")), "gpu:1")
    assert moved.load_device == SECOND

    hooks = comfy.hooks.create_hook_lora(lora=lora(preferred, 7), strength_model=0.6, strength_clip=0.0)
    negative = comfy.hooks.set_hooks_for_conditioning(mini.conditioning("sd15", 4), hooks)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :40] = 1.0
    negative += result(comfy_nodes.ConditioningSetMask, mini.conditioning("sd15", 6), mask, "default", 0.9)[0]
    positive = mini.conditioning("sd15", 3, area=(8, 4, 0, 0)) + mini.conditioning("sd15", 5)
    controlled = CopiedControl(1, channels=320), torch.zeros(1, 8, 8, 3), 0.8, 0.0, 1.0
    positive, negative = result(comfy_nodes.ControlNetApplyAdvanced, positive, negative, *controlled)

    def after(model):
        model = comfy.sd.load_lora_for_models(model, None, lora(preferred, 8), 0.5, 0.0)[0]
        model.set_model_attn1_output_patch(lambda out, options: out * 1.1)
        return model

    one = sampled(preferred, dispreferred, positive, negative, after=after)
    two = sampled(preferred, moved, positive, negative, after=after)
    assert mini.relative_error(two, one) < 1e-6
    plain = sampled(preferred, dispreferred, *prompts())
    assert mini.relative_error(plain, one) > 0.01
    assert {"MainThread"} == SecondTensor.threads if in_turn else "MainThread" not in SecondTensor.threads


def wrapped(model, before):
    """The model, with something done before each of its passes."""
    made = model.clone()
    made.set_model_unet_function_wrapper(
        lambda apply, given: (before(), apply(given["input"], given["timestep"], **given["c"]))[1]
    )
    return made


def test_the_passes_run_side_by_side(second, pairs, elsewhere, sampled):
    """Each waits for the other to have begun."""
    both = threading.Barrier(2, timeout=20)
    sampled(wrapped(pairs("sd15")[0], both.wait), wrapped(elsewhere("sd15"), both.wait), *prompts())


class Failed(Exception):
    pass


def test_errors_and_cancel_reach_the_user(second, pairs, elsewhere, sampled):
    preferred, dispreferred = pairs("sd15")[0], elsewhere("sd15")
    begun, ended = threading.Event(), []

    def fail():
        raise Failed

    def cancel():
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    for before, expected in ((fail, Failed), (cancel, comfy.model_management.InterruptProcessingException)):
        with pytest.raises(expected):
            sampled(preferred, wrapped(dispreferred, before), *prompts(), steps=1)

    def fail_beside():
        assert begun.wait(20)
        raise Failed

    def slowly():
        begun.set()
        threading.Event().wait(0.3)
        ended.append(True)

    # What runs beside a pass that fails has ended before the models may go.
    with pytest.raises(Failed):
        sampled(wrapped(preferred, fail_beside), wrapped(dispreferred, slowly), *prompts(), steps=1)
    assert ended == [True]
    assert not comfy.model_management.processing_interrupted()


def test_what_cannot_be_on_two_devices_is_a_sentence(second, pairs, elsewhere, sampled):
    preferred, dispreferred = pairs("sd15")[0], elsewhere("sd15")
    controlled = ResidualControl(1), torch.zeros(1, 8, 8, 3), 0.8, 0.0, 1.0
    both = result(comfy_nodes.ControlNetApplyAdvanced, *prompts(), *controlled)
    with pytest.raises(ValueError, match=r"on privateuseone:0 .*, where ResidualControl cannot follow; load both on"):
        sampled(preferred, dispreferred, *both, steps=1)
    positive, negative = prompts()
    with pytest.raises(ValueError, match="where GLIGEN cannot follow"):
        sampled(preferred, dispreferred, positive, [[negative[0][0], {"gligen": ("position", None, [])}]], steps=1)
    split = dispreferred.clone()
    split.set_additional_models("multigpu", [dispreferred.clone()])
    with pytest.raises(ValueError, match=r"MultiGPU CFG Split is on `dispreferred`, .* put Select Model Device there"):
        sampled(preferred, split, positive, negative)
    patched, kept = dispreferred.clone(), torch.ones(1)
    patched.set_model_attn1_output_patch(lambda out, options: out * kept)
    with pytest.raises(RuntimeError, match=r"something on the models .*same device.* cannot follow; load both on one"):
        sampled(preferred, patched, positive, negative, steps=1)
