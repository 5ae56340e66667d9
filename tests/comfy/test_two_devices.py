"""A pair whose members are on two devices, the second of them made for the test: it samples what it samples on one,
side by side in ComfyUI's own threads, and leaves none."""

import functools
import threading

import mini
import pytest
import torch
from conftest import newest_only
from running import guider_of, run
from second_device import SECOND, SecondTensor, make_second_device

pytestmark = newest_only
CFG = 6.0


@pytest.fixture
def second(monkeypatch):
    return make_second_device(monkeypatch)


@pytest.fixture(scope="module")
def elsewhere():
    """Models on the second device by kind and seed, as *Select Model Device* makes them: with weights of their own."""

    @functools.cache
    def elsewhere(kind, seed):
        model = mini.model(kind, seed)
        model.load_device = SECOND
        return model

    return elsewhere


def workers():
    """The threads of ComfyUI's pool that are left."""
    return [thread for thread in threading.enumerate() if "_worker_loop" in thread.name]


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_two_devices_sample_what_one_does(kind, pairs, elsewhere, nodes, second):
    preferred, dispreferred = pairs(kind)
    positive, negative = mini.conditioning(kind, 3), mini.conditioning(kind, 4)
    latent = mini.latent(kind, batch=2)
    one = run(guider_of(nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0], positive, negative, CFG), latent)
    two = run(
        guider_of(nodes["CHATSApply"](preferred, elsewhere(kind, 2), 0.0, 1.0)[0], positive, negative, CFG), latent
    )
    assert type(two) is torch.Tensor
    assert mini.relative_error(two, one) < 1e-6
    assert not workers()
    assert second.count(SECOND) > 0  # its memory is its own
    assert len(SecondTensor.threads) == 1
    assert "_worker_loop" in next(iter(SecondTensor.threads))
