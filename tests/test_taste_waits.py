"""What an answer waits for does not grow with the candidates: counted, since a time says little on a busy machine."""

import os
import random
import sys
import threading
import time

import pytest
from taste_sets import RATER, drawn, ids, rating

from chats.taste import derived, plan
from chats.taste.dataset import TasteDataset
from chats.taste.pairing import repeat_for
from chats.taste.records import Vote
from chats.taste.tally import Rater

# Blocks of 32 and one of 8, so that the block that is asked about is as large.
FEW, MANY = 6 * 32 + 8, 62 * 32 + 8
# More than what the folder's time leaves unsure, in seconds.
MOMENT = 0.15


class Counted:
    """A lock; ``steps`` are those of the interpreter that this thread took while it held it, ``held`` how often it
    holds it."""

    def __init__(self, lock) -> None:
        self.lock, self.held, self.steps = lock, 0, 0

    def __enter__(self) -> None:
        self.lock.acquire()
        self.held += 1

    def __exit__(self, *error) -> None:
        self.held -= 1
        self.lock.release()

    def trace(self, frame, event, argument):
        frame.f_trace_opcodes = True
        self.steps += event == "opcode" and self.held > 0
        return self.trace


def half_rated(folder, count: int) -> TasteDataset:
    """Candidates of one prompt, each in one pair that is answered, and everything read and derived."""
    one = drawn(folder, count)
    names, coin = ids(one), random.Random(0)
    one.vote_all(
        Vote(rating(number), left, right, coin.choice(("left", "right")), RATER)
        for number, (left, right) in enumerate(zip(names[::2], names[1::2], strict=True), 10**6)
    )
    one.add_candidate(b"the first of this process", "prompt 0")
    assert one.next_pair(RATER)
    one.derive()
    time.sleep(MOMENT)
    one.counts()
    return one


def steps(one: TasteDataset, lock: Counted) -> int:
    """Of a round of everything that comes while pictures are drawn and rated."""
    lock.steps = 0
    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 tells of none unless some frame asked before
    sys.settrace(lock.trace)
    try:
        name, _ = one.add_candidate(b"one more", "prompt 0")
        shown = one.next_pair(RATER)
        assert one.vote(rating(1), shown.left, shown.right, "left", RATER, 1.0, shown.repeat)
        with one.at_once():
            assert one.progress(RATER)["waiting"]
            assert one.last(RATER) == rating(1)
            assert (one.alone(), one.notes()) == (0, [])
        one.derive()
        one.undo(rating(1), RATER)
    finally:
        sys.settrace(before)
    assert name in one.candidates()
    return lock.steps


def test_what_is_done_under_the_lock_does_not_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "REPEATS", 1.0)  # each time an earlier answer is looked for
    locks, listed, real = [], [], os.scandir

    def scandir(*folder):
        listed.append(folder)
        assert not any(lock.held for lock in locks), "the folder is listed under the lock"
        return real(*folder)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", scandir)
    found = []
    for count in (FEW, MANY):
        one = half_rated(tmp_path / str(count), count)
        locks.append(Counted(one._memory.lock))
        one._memory.lock = locks[-1]
        listed.clear()
        found.append(steps(one, locks[-1]))
        assert listed  # by what is derived, whose lock is another
    assert 0 < found[1] < 1.25 * found[0], found


def test_a_repeat_is_drawn_without_going_through_all_answers():
    found = []
    for count in (100, 10_000):
        rater = Rater()
        for number in range(count):
            vote = Vote(rating(number), f"{number:08x}a", f"{number:08x}b", "left", RATER)
            rater.votes[vote.rating] = rater.first[vote.pair] = vote
            rater.order.append(vote.pair)
        there, lock = {picture for pair in rater.order for picture in pair}, Counted(threading.Lock())
        before = sys.gettrace()
        with lock:
            sys.settrace(lock.trace)
            try:
                assert repeat_for(rater, (), there, random.Random(0)) is not None
            finally:
                sys.settrace(before)
        found.append(lock.steps)
    assert 0 < found[1] < 2 * found[0], found


def test_what_is_derived_again_is_what_changed(tmp_path, monkeypatch):
    one = half_rated(tmp_path / "a", FEW)
    lines, real = [], derived._line
    monkeypatch.setattr(derived, "_line", lambda preferred: lines.append(preferred) or real(preferred))
    shown = one.next_pair(RATER)
    one.vote(rating(1), shown.left, shown.right, "left", RATER, repeat=shown.repeat)
    assert one.derive() == FEW // 2 + 1
    assert lines == [(shown.left, shown.right, "prompt 0")]
    kept = (one.folder / "metadata.jsonl").read_bytes()
    (one.folder / "metadata.jsonl").unlink()
    TasteDataset(one.folder).derive()
    assert (one.folder / "metadata.jsonl").read_bytes() == kept


@pytest.mark.parametrize("back", [False, True])
def test_a_picture_that_was_removed_is_not_shown(tmp_path, back):
    """Though the folder is not listed for it; and one that comes back is asked for again."""
    one = drawn(tmp_path / "a", 2, 2)
    assert one.counts()["candidates"] == 4
    gone = [one.folder / "images" / f"{name}.png" for name in ids(one)]
    for file in gone:
        file.unlink()
    for number in range(20):
        shown = TasteDataset(one.folder).next_pair(RATER) if number % 2 else one.next_pair(RATER)
        assert shown.prompt == "prompt 1"
    one.vote(rating(1), *ids(one, 1), "left", RATER)
    if back:
        for file in gone:
            file.touch()
    shown = one.next_pair(RATER)
    assert (shown and shown.prompt) == ("prompt 0" if back else None)
