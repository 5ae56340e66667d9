"""torch.compile after CHATS Apply: each member runs its own weights, whatever was compiled before.

With dynamo itself where code is traced (the backend `eager` runs what it traced), without it where only what a node
puts on the model matters.
"""

import contextlib
import functools
import logging

import comfy.sd
import mini
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel
from conftest import ends_only, is_newest, newest, newest_only
from fitting import with_lora
from running import guider_of, reference_of, result, run

CFG = 6.0
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def forget_what_is_compiled(monkeypatch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep every line of it
    yield
    torch._dynamo.reset()


def one_block(seed: int):
    """An SD3 of one block: dynamo takes a quarter less than for two."""
    return comfy.sd.load_diffusion_model_state_dict(mini.sd3_weights(seed, depth=1))


@pytest.fixture(scope="module")
def pair():
    """A preferred and a dispreferred model; never changed."""
    return one_block(1), one_block(2)


@pytest.fixture
def join(nodes):
    return lambda preferred, dispreferred: nodes["CHATSApply"](preferred, dispreferred, 0.0, 1.0)[0]


def graphs() -> int:
    """How many dynamo has traced."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@contextlib.contextmanager
def nothing_compiled():
    """Where another run takes what was compiled in the one before."""
    before = graphs()
    yield
    assert graphs() == before


def sample(model):
    return run(guider_of(model, *prompts(), CFG), mini.latent("sd3"))


def formula(preferred, dispreferred):
    return run(reference_of(preferred, dispreferred, *prompts(), CFG), mini.latent("sd3"))


def prompts():
    return mini.conditioning("sd3", 3, tokens=16), mini.conditioning("sd3", 4, tokens=16)


def whole(model):
    """Core's node."""
    return result(TorchCompileModel, model, "eager")[0]


def blocks(model):
    """Each block by core's function for it, as nodes of other packs do."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    made = model.clone()
    count = len(made.model.diffusion_model.joint_blocks)
    keys = [f"diffusion_model.joint_blocks.{index}" for index in range(count)]
    set_torch_compile_wrapper(model=made, backend="eager", keys=keys)
    return made


def blocks_as_patches(model):
    """Each block as an object patch, as older nodes do."""
    made = model.clone()
    for index in range(len(model.model.diffusion_model.joint_blocks)):
        name = f"diffusion_model.joint_blocks.{index}"
        made.add_object_patch(name, torch.compile(model.get_model_object(name), backend="eager"))
    return made


def a_forward_as_patch(model):
    """The method of one block, compiled."""
    made = model.clone()
    block = model.get_model_object("diffusion_model.joint_blocks.0")
    made.add_object_patch("diffusion_model.joint_blocks.0.forward", torch.compile(block.forward, backend="eager"))
    return made


# What is compiled, and whether the pair comes first: ten seconds each, in dynamo.
ORDERS = [(whole, True), (blocks, False)] if is_newest() else [(whole, False)]


class TestLoRAs:
    """Two LoRAs on one set of weights, which the stock model has too: hooks on its layers would go unseen."""

    @pytest.mark.parametrize(("compiled", "pair_first"), ORDERS)
    @ends_only
    def test_both_orders(self, compiled, pair_first, join):
        base = one_block(1)
        models = {"stock": base, "pair": join(base, with_lora(base, 42))}
        expected = {name: sample(model) for name, model in models.items()}
        assert mini.relative_error(expected["stock"], expected["pair"]) > 0.05
        made = {name: compiled(model) for name, model in models.items()}
        names = sorted(made, reverse=not pair_first)
        for name in names:
            assert mini.relative_error(sample(made[name]), expected[name]) < TOLERANCE
        assert graphs() > 0
        with nothing_compiled():
            for name in names:
                assert mini.relative_error(sample(made[name]), expected[name]) < TOLERANCE


class TestTwoModels:
    """What was put on the model for the preferred's modules is handed on with the dispreferred's."""

    @newest_only
    def test_each_runs_its_own(self, pair, join):
        self._check(whole, pair, join)
        assert graphs() > 0

    @pytest.mark.parametrize("compiled", [whole, *newest(blocks_as_patches, blocks, a_forward_as_patch)])
    def test_each_has_its_own_parts(self, compiled, pair, join):
        """Without dynamo, which takes ten seconds each: what counts here is whose modules are called."""
        with torch.compiler.set_stance("force_eager"):
            self._check(compiled, pair, join)

    def _check(self, compiled, pair, join):
        stock, expected = sample(pair[0]), formula(*pair)
        paired = compiled(join(*pair))
        assert mini.relative_error(sample(paired), expected) < TOLERANCE
        with nothing_compiled():
            assert mini.relative_error(sample(paired), expected) < TOLERANCE
        assert mini.relative_error(sample(compiled(pair[0])), stock) < TOLERANCE
        assert mini.relative_error(stock, expected) > 0.05


class Runner:
    """A callable that keeps what it calls in an attribute."""

    def __init__(self, network):
        self.parts = {"network": [network]}

    def __call__(self, executor, *args, **kwargs):
        model, saved = executor.class_obj, executor.class_obj.diffusion_model
        model.diffusion_model = self.parts["network"][0]
        try:
            return executor(*args, **kwargs)
        finally:
            model.diffusion_model = saved


class Around(torch.nn.Module):
    """A module around another, with something of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.own = inner, torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Slotted:
    """A callable that cannot be copied attribute by attribute."""

    __slots__ = ("run",)

    def __init__(self, network):
        self.run = Runner(network)

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


def closing_over(runner):
    return lambda *args, **kwargs: runner(*args, **kwargs)


def wrapped(make):
    def patch(model):
        made = model.clone()
        made.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other", make(model.model.diffusion_model))
        return made

    return patch


def around_a_block(model):
    made = model.clone()
    name = "diffusion_model.joint_blocks.0"
    made.add_object_patch(name, Around(model.get_model_object(name)))
    return made


def a_method(model):
    """The method of a layer, put where it is."""
    made = model.clone()
    made.add_object_patch("diffusion_model.x_embedder.forward", model.model.diffusion_model.x_embedder.forward)
    return made


HOLDERS = {
    "an attribute": wrapped(Runner),
    "a partial": wrapped(lambda network: functools.partial(Runner.__call__, Runner(network))),
    "a closure": wrapped(lambda network: closing_over(Runner(network))),
    "a method": a_method,
    "a module around a block": around_a_block,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_whatever_holds_a_module_is_made_for_each(holder, pair, join):
    assert mini.relative_error(sample(HOLDERS[holder](join(*pair))), formula(*pair)) < TOLERANCE
    assert mini.relative_error(sample(HOLDERS[holder](pair[0])), sample(pair[0])) < TOLERANCE


def test_what_cannot_be_made_for_each_is_refused(pair, join):
    with pytest.raises(ValueError, match="put that node before CHATS Apply, on each of the two models") as error:
        sample(wrapped(Slotted)(join(*pair)))
    assert "transformer_options.wrappers.apply_model.other" in str(error.value)
    assert mini.relative_error(sample(wrapped(Slotted)(pair[0])), sample(pair[0])) < TOLERANCE
