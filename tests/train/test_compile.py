"""`compile: true`: blocks that torch traces and differentiates, with the steps that they take without.

What follows, inductor's code, takes half a minute of a processor for a single block; here the traced graphs are run as
they are.
"""

from functools import partialmethod

import pytest
import torch
from tiny_runs import trainer_of

from chats_train.families.sd15 import SD15
from chats_train.support.errors import UserError
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


def test_a_compiled_step_is_the_plain_one(one_block, config, monkeypatch):
    """With two adapters in one pass and their activations computed anew, where most could go wrong."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    settings = dict(training_method="lora", gradient_checkpointing=True, beta=10.0, gradient_accumulation_steps=1)
    torch._dynamo.utils.counters.clear()
    plain, compiled = (trainer_of(config(compile=each, **settings)) for each in (False, True))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in plain.parameters.items():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            compiled.parameters[name].copy_(parameter)
    reports = [trainer.train_step().metrics for trainer in (plain, compiled)]
    assert reports[1] == pytest.approx(reports[0], rel=1e-5)
    gradients = [torch.cat([p.grad.flatten() for p in each.parameters.values()]) for each in (plain, compiled)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * gradients[0].abs().max().item())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # with a graph and without
    assert not torch._dynamo.utils.counters["graph_break"]


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
