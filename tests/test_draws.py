"""The random numbers of a step follow from seed, epoch and pair alone."""

from dataclasses import dataclass

import torch

from chats.draws import draw, held_out, step_pairs


@dataclass(frozen=True)
class Sample:
    id: str


def samples(count):
    return [Sample(f"pair {index}") for index in range(count)]


def test_draws_follow_from_seed_epoch_and_pair_alone():
    shape = torch.Size((4, 8, 8))
    one, again = draw(1, 2, "a", shape), draw(1, 2, "a", shape)
    assert torch.equal(one.noise, again.noise)
    assert (one.timestep, one.coin) == (again.timestep, again.coin)
    others = [draw(2, 2, "a", shape), draw(1, 3, "a", shape), draw(1, 2, "b", shape)]
    assert all(not torch.equal(one.noise, other.noise) for other in others)
    coins = torch.tensor([draw(0, 0, str(i), torch.Size((1,))).coin for i in range(2000)])
    assert abs((coins < 0.5).double().mean().item() - 0.5) < 0.05


def test_every_epoch_has_every_pair_once_and_held_out_ones_never():
    pairs = samples(12)
    kept, held = held_out(pairs, 0, 4)
    assert len(held) == 4
    assert not {sample.id for sample in kept} & {sample.id for sample in held}
    steps = [item for step in range(8) for item in step_pairs(kept, 0, step, 3)]
    for epoch in range(3):
        seen = [sample.id for e, sample in steps if e == epoch]
        assert sorted(seen) == sorted(sample.id for sample in kept)
    orders = [[sample.id for e, sample in steps if e == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert held_out(tuple(reversed(pairs)), 0, 4) == (kept, held)
