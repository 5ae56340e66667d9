"""`compile: true`: blocks that torch traces and differentiates, with the steps that they take without.

What follows, Inductor's code, takes half a minute of a processor for a single block (benchmarks/compiled.py measures
it). Here the traced graphs are run, of the operations that Inductor takes them apart into.
"""

from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from tiny_runs import trainer_of

from chats.draws import draw
from chats_train.families.sd15 import SD15
from chats_train.support.errors import UserError
from chats_train.training.gradients import make_batch
from chats_train.training.loop import run_steps


@pytest.fixture
def one_block(monkeypatch):
    """SD1.5's UNet with a single transformer block: compiling takes seconds for each shape of one."""
    load = SD15.load_denoiser

    def load_small(family):
        config = load(family).config
        changes = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D",) * 2}
        torch.manual_seed(1)
        widths = config["block_out_channels"][:2]
        kind = SD15.part_classes()["unet"]
        return kind.from_config(
            config, **changes, block_out_channels=widths, layers_per_block=1, mid_block_type=None
        ).eval()

    monkeypatch.setattr(SD15, "load_denoiser", load_small)


def test_compiled_steps_are_the_plain_ones(one_block, config, monkeypatch):
    """Each step's gradient, and how the weights have moved after four; with two adapters in one pass and their
    activations computed anew, where most could go wrong."""
    backend = "aot_eager_decomp_partition"
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    settings = dict(training_method="lora", gradient_checkpointing=True, beta=10.0, gradient_accumulation_steps=1)
    torch._dynamo.utils.counters.clear()
    plain, compiled = (trainer_of(config(compile=each, **settings)) for each in (False, True))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in plain.parameters.items():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            compiled.parameters[name].copy_(parameter)
    first = flat(plain.parameters.values())
    for _ in range(4):
        # Some are differences of errors, which are about 1.
        reports = [trainer.train_step().metrics for trainer in (plain, compiled)]
        assert reports[1] == pytest.approx(reports[0], rel=1e-5, abs=1e-5)
        gradients = [flat(p.grad for p in each.parameters.values()) for each in (plain, compiled)]
        assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()
    weights = [flat(each.parameters.values()) for each in (plain, compiled)]
    # AdamW moves a number whose gradient is next to nothing by the rate, whichever way its rounding points.
    assert (weights[1] - weights[0]).norm() < 1e-4 * (weights[0] - first).norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # with a graph and without
    assert not torch._dynamo.utils.counters["graph_break"]


def test_nine_sizes_of_pictures_take_the_graphs_of_two(one_block, config, monkeypatch):
    """From the second size on torch's graphs are for any: a run of many buckets does not reach the number of graphs at
    which torch stops compiling."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    torch._dynamo.utils.counters.clear()
    trainer = trainer_of(config(training_method="lora", compile=True))
    pair, graphs = trainer.encodings.pair(trainer.samples[0]), []
    for size in [(8, 8), (6, 10), (10, 6), (4, 16), (16, 4), (6, 12), (12, 6), (8, 10), (10, 8)]:
        sized = replace(pair, chosen=torch.ones(4, *size), rejected=torch.ones(4, *size))
        drawn = [draw(0, 0, pair.id, sized.chosen.shape)]
        batch = make_batch(trainer.family, [sized], drawn, trainer.null, 0.5, trainer.device)
        trainer.gradients.backward(batch, 1.0)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1:] == [graphs[1]] * 8
    assert graphs[1] <= 4  # with a graph and without, for the first size and for any


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_the_first_step_is_timed_and_what_cannot_be_compiled_is_said(one_block, config, monkeypatch, capsys):
    compile_with = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_with, backend="eager"))
    settings = dict(training_method="full", compile=True, gradient_accumulation_steps=1, max_train_steps=1)
    assert run_steps(trainer_of(config(**settings)))
    assert "compiled: the first step took " in capsys.readouterr().out

    def no_compiler(*_):
        raise RuntimeError("no g++ was found")

    torch._dynamo.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_with, backend=no_compiler))
    with pytest.raises(
        UserError, match=r"`compile` is true, but torch could not compile \(.*no g\+\+ .*`compile: false`"
    ):
        run_steps(trainer_of(config(output="other", **settings)))
    # Without it, an error of torch is what it is.
    monkeypatch.setattr(torch.optim.AdamW, "step", no_compiler)
    with pytest.raises(RuntimeError, match=r"^no g"):
        run_steps(trainer_of(config(output="plain", **settings | {"compile": False})))
