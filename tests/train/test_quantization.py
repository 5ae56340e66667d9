"""LoRAs on a base in 4 or 8 bits. What needs bitsandbytes is skipped where it is missing."""

import pytest
import torch
from tiny_runs import trainer_of

from chats_train.check.readiness import model_size
from chats_train.runs.opening import open_family
from chats_train.runs.quantization import IN_BLOCKS, QUANTIZED_BYTES
from chats_train.support.errors import UserError


def test_what_is_quantized_lies_in_blocks():
    inside = ("layers.3.feed_forward.w1", "transformer_blocks.0.attn.to_out.0", "mid_block.attentions.0.proj_in")
    ends = ("cap_embedder.1", "all_final_layer.2-1.linear", "t_embedder.mlp.0", "img_in", "norm_out.linear")
    assert all(IN_BLOCKS.fullmatch(name) for name in inside)
    assert not any(IN_BLOCKS.fullmatch(name) for name in ends)


def test_a_missing_bitsandbytes_is_a_sentence(config, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="`base_quantization` is nf4, which needs bitsandbytes; `pip install"):
        trainer_of(config("z_image", training_method="lora", base_quantization="nf4"))


@pytest.mark.parametrize("kind", QUANTIZED_BYTES)
def test_loras_train_on_a_quantized_base(kind, config):
    """The blocks take the bytes that `check` counts, predict nearly what they did, and the adapters on them learn."""
    pytest.importorskip("bitsandbytes", reason="`pip install bitsandbytes` tests quantized bases")
    settings = dict(training_method="lora", gradient_checkpointing=True, network_rank=4)
    plain = trainer_of(config("z_image", "plain", **settings))
    trainer = trainer_of(config("z_image", "quantized", **settings, base_quantization=kind))
    size = model_size(trainer.config, open_family(trainer.config, "cpu"))
    held = {
        name: layer.weight
        for name, layer in trainer.members.module.named_modules()
        if type(layer).__name__ in ("Linear4bit", "Linear8bitLt") and layer.weight.dtype in (torch.uint8, torch.int8)
    }
    codes = sum(weight.numel() * weight.element_size() for weight in held.values())
    assert codes == size.blocks * (0.5 if kind == "nf4" else 1)
    loss = trainer.train_step().metrics["loss"]
    assert loss == pytest.approx(plain.train_step().metrics["loss"], rel=0.05)
    before = {name: value.clone() for name, value in trainer.members.state().items()}
    trainer.train_step()
    moved = [name for name, value in trainer.members.state().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in moved} == {"preferred", "dispreferred"}
