"""What a launch in shards takes, against sums done by hand."""

import pytest
from test_estimate import SDXL, settings_of

from chats_train.check.cards import Launch, card_bytes, machine_bytes, smallest_launch
from chats_train.runs.opening import open_family
from chats_train.sharding.modules import largest_block

BLOCK = 100_000_000


def test_a_card_holds_its_part_and_two_blocks():
    # 36 bytes a parameter: two members of 4 + 4 + 8, a reference of 4; an eighth of it. Two blocks, gathered in bf16,
    # with gradients that are summed in fp32.
    found = card_bytes(settings_of(), SDXL, BLOCK, "full", "fp32", Launch(8))
    assert found == pytest.approx(2.567e9 * 36 / 8 + 2 * 1e8 * 6)


def test_adapters_are_whole_on_every_card():
    # A quarter of the base in bf16, two adapters with 16 bytes a parameter, two blocks without gradients.
    found = card_bytes(settings_of(), SDXL, BLOCK, "lora", "fp32", Launch(4))
    assert found == pytest.approx(2.567e9 * 2 / 4 + 2 * 23.2e6 * 16 + 2 * 1e8 * 2)


def test_what_is_offloaded_is_in_the_machines_memory():
    # bf16 Adafactor: two members of 2 + 2, a reference of 2.
    settings, launch = settings_of(optimizer="adafactor"), Launch(2, offload=True)
    assert card_bytes(settings, SDXL, BLOCK, "full", "bf16", launch) == 2 * BLOCK * (2 + 4)
    assert machine_bytes(settings, SDXL, "full", "bf16", launch) == pytest.approx(2.567e9 * 10)
    assert machine_bytes(settings, SDXL, "full", "bf16", Launch(2)) == 0


@pytest.mark.parametrize(
    ("card", "machine", "launch"),
    [
        (120e9, 0, Launch(1, sharded=False)),  # 92.4 GB
        (80e9, 0, Launch(2)),  # 46.2 + 1.2
        (24e9, 0, Launch(6)),  # 15.4 + 1.2
        (12e9, 100e9, Launch(1, offload=True)),
        (12e9, 90e9, None),
    ],
)
def test_the_smallest_launch_that_fits(card, machine, launch):
    found = smallest_launch(settings_of(training_method="full"), SDXL, BLOCK, 8, int(card), int(machine))
    assert found == launch


def test_the_largest_block_is_of_the_model_itself(config):
    family = open_family(config("flux"), "cpu")
    denoiser = family.load_denoiser()
    sizes = [
        sum(parameter.numel() for parameter in block.parameters())
        for block in (*denoiser.transformer_blocks, *denoiser.single_transformer_blocks)
    ]
    assert largest_block(family) == max(sizes) > sum(p.numel() for p in denoiser.parameters()) - sum(sizes)
