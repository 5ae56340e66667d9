"""The random numbers of a step follow from seed, epoch and pair alone."""

import hashlib
from dataclasses import dataclass

import pytest
import torch

from chats import draws
from chats.draws import VALIDATION_EPOCH, Order, draw, held_out, shuffled, shuffled_rows, step_pairs


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


def ids(pairs):
    return [int(pair.id.removeprefix("pair ")) for pair in pairs]


def test_a_run_goes_on_after_an_update_with_the_numbers_it_began_with():
    """The numbers of version 0.1.0. Others would be as random, but a run that was begun with them would see some pairs
    twice and others never, and measure on pairs that it has trained on."""
    drawn = draw(7, 3, "pair 0", torch.Size((1, 1, 3)))
    torch.testing.assert_close(drawn.noise, torch.tensor([[[0.7671, 1.4570, -0.6755]]]), rtol=0, atol=1e-4)
    assert drawn.timestep == pytest.approx(0.7158886178422997, rel=1e-15)
    assert drawn.coin == pytest.approx(0.013568629928199405, rel=1e-15)
    assert (type(drawn.timestep), type(drawn.coin)) == (float, float)  # a batch gathers them into one tensor
    assert ids(shuffled(samples(6), 7, 0)) == [3, 5, 2, 4, 0, 1]
    assert ids(shuffled(samples(6), 7, 1)) == [1, 4, 0, 5, 2, 3]
    assert tuple(map(ids, held_out(samples(6), 7, 2))) == ([5, 2, 4, 1], [0, 3])


def test_what_is_held_out_is_no_epochs_beginning():
    """Epochs count from 0. Were the held-out pairs chosen by the order of one of them, they would not be random beside
    it."""
    assert VALIDATION_EPOCH < 0


def test_at_most_half_of_the_pairs_are_held_out():
    # Of 5 pairs half are 2; there is always more to train on than to measure on.
    assert [len(side) for side in held_out(samples(5), 0, 99)] == [3, 2]
    assert [len(side) for side in held_out(samples(5), 0, 1)] == [4, 1]
    assert [len(side) for side in held_out(samples(5), 0, 0)] == [5, 0]


def test_a_step_reaches_into_the_next_epoch():
    # 5 pairs, 3 a step: the second step (positions 3, 4, 5) has the last two of epoch 0 and the first of epoch 1.
    pairs = samples(5)
    first, second = step_pairs(pairs, 7, 0, 3), step_pairs(pairs, 7, 1, 3)
    assert [epoch for epoch, _ in first] == [0, 0, 0]
    assert [epoch for epoch, _ in second] == [0, 0, 1]
    orders = [shuffled(pairs, 7, epoch) for epoch in (0, 1)]
    assert [pair for _, pair in first + second] == orders[0] + orders[1][:1]


def test_parts_of_a_seed_do_not_run_into_each_other():
    # Joined without anything in between, (1, 12) and (11, 2) would be one text and one draw.
    shape = torch.Size((1,))
    assert draw(1, 12, "a", shape).coin != draw(11, 2, "a", shape).coin


def sorted_at_every_step(ids, seed, epoch):
    """The order by its formula, as version 0.1.0 sorted."""

    def number(*parts):
        return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big") >> 1

    return sorted(range(len(ids)), key=lambda row: (number(seed, epoch, "order", ids[row]), ids[row]))


def test_the_order_of_an_epoch_is_that_of_the_formula():
    ids = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(500)]
    for seed, epoch in ((0, 0), (7, 3), (-5, VALIDATION_EPOCH)):
        assert shuffled_rows(ids, seed, epoch) == sorted_at_every_step(ids, seed, epoch)


def test_pairs_of_one_number_are_in_the_order_of_their_ids(monkeypatch):
    monkeypatch.setattr(draws, "_all_leading", lambda digests: torch.tensor([digest[0] % 2 for digest in digests]))
    ids = [f"pair {index}" for index in (3, 1, 4, 0, 5, 9, 2, 6)]
    halves = [hashlib.sha256(f"0\x000\0order\0{each}".encode()).digest()[0] % 2 for each in ids]
    assert len(set(halves)) == 2
    expected = sorted(range(len(ids)), key=lambda row: (halves[row], ids[row]))
    assert shuffled_rows(ids, 0, 0) == expected


def test_an_epoch_is_sorted_once(monkeypatch):
    """A step that begins the next one sorts that too; a run that goes back gets the earlier ones again."""
    sorts = []
    monkeypatch.setattr(draws, "shuffled_rows", lambda *args: sorts.append(args[2]) or shuffled_rows(*args))
    pairs = samples(10)
    order = Order([pair.id for pair in pairs], 7)
    for step in range(10):
        rows = order.step(step, 3)
        assert [(epoch, pairs[row]) for epoch, row in rows] == step_pairs_of_the_formula(pairs, 7, step, 3)
    assert sorts == [0, 1, 2]
    assert order.step(0, 3) == Order([pair.id for pair in pairs], 7).step(0, 3)


def step_pairs_of_the_formula(pairs, seed, step, size):
    picked = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(pairs))
        picked.append((epoch, pairs[sorted_at_every_step([pair.id for pair in pairs], seed, epoch)[index]]))
    return picked
