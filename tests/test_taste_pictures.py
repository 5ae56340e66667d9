"""Which pictures are there: seen at once where it matters, and the folder is listed no more often than it takes."""

import time

import pytest
from taste_sets import RATER, drawn, ids, rating

from chats.taste import pictures
from chats.taste.dataset import TasteDataset

# What UNSURE_NS is, in seconds, and more.
MOMENT = 0.15


@pytest.fixture
def listed(monkeypatch):
    """The folders of pictures that were listed, one entry each time."""
    found, real = [], pictures.Pictures.read_folder
    monkeypatch.setattr(
        pictures.Pictures, "read_folder", lambda self, asked: found.append(self.folder) or real(self, asked)
    )
    return found


def test_a_vote_right_after_a_picture_does_not_list_the_folder(tmp_path, listed):
    one = drawn(tmp_path / "a", 4)
    first, second, *_ = ids(one)
    time.sleep(MOMENT)
    one.progress(RATER)
    listed.clear()
    name, _ = one.add_candidate(b"more", "prompt 0")
    one.vote(rating(1), first, second, "left", RATER)
    assert one.progress(RATER)["rated"] == 1
    assert not listed
    time.sleep(MOMENT)
    one.vote(rating(2), first, name, "left", RATER)
    assert one.progress(RATER)["rated"] == 2
    assert not listed
    # Once, since something else may have changed while the picture was written.
    for _ in range(3):
        assert one.next_pair(RATER)
        assert one.counts()["candidates"] == 5
    assert len(listed) == 1


def test_what_others_remove_is_seen_also_in_the_moment_of_a_picture(tmp_path, monkeypatch):
    """The folder's time of change tells nothing of what came between."""
    one = drawn(tmp_path / "a", 3)
    gone = one.folder / "images" / f"{ids(one)[0]}.png"
    real = pictures.Pictures.wrote
    monkeypatch.setattr(pictures.Pictures, "wrote", lambda self, name: (gone.unlink(), real(self, name)))
    one.add_candidate(b"more", "prompt 0")
    time.sleep(MOMENT)
    assert one.counts()["candidates"] == 3
    assert gone.stem not in one.candidates()


def test_a_picture_that_was_removed_and_is_drawn_again_is_there_at_once(tmp_path):
    one = TasteDataset(tmp_path / "a")
    name, _ = one.add_candidate(b"a picture", "prompt 0")
    (one.folder / "images" / f"{name}.png").unlink()
    assert one.candidates() == {}
    one.add_candidate(b"a picture", "prompt 0")
    assert list(one.candidates()) == [name]
    time.sleep(MOMENT)
    assert one.counts() == {"candidates": 1, "prompts": 1}
    assert one.alone() == 1
    one.add_candidate(b"another", "prompt 0")
    assert one.alone() == 0


def test_pictures_of_another_process_come_with_their_lines(tmp_path):
    """Twenty times in one moment each, in which the folder's time of change may stand still."""
    one, other = TasteDataset(tmp_path / "a"), TasteDataset(tmp_path / "a")
    for number in range(20):
        name, _ = one.add_candidate(b"%d" % number, "prompt 0")
        assert name in other.candidates()
        assert other.counts()["candidates"] == number + 1
