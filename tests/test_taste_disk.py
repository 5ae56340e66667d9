"""A rated data set on a real disk: several processes, kills, lines that are cut off, a full and a read-only disk."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from taste_sets import RATER, answer_all, drawn, ids, rating

from chats.taste.dataset import TasteDataset
from chats.taste.log import Log
from chats.taste.names import NotWritten

ROOT = Path(__file__).resolve().parents[1]
VOTER = """
import random, sys
from pathlib import Path
from chats.taste.dataset import TasteDataset
one, rater, coin = TasteDataset(Path(sys.argv[1])), sys.argv[2], random.Random(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
while shown := one.next_pair(rater):
    name = f"{coin.getrandbits(64):016x}"
    if one.vote(name, shown.left, shown.right, coin.choice(("left", "right")), rater, repeat=shown.repeat):
        print(name, flush=True)
"""
DRAWER = """
import random, sys
from pathlib import Path
from chats.taste.dataset import TasteDataset
one, coin = TasteDataset(Path(sys.argv[1])), random.Random(sys.argv[2])
while True:
    name, _ = one.add_candidate(coin.randbytes(300_000), f"prompt {coin.randrange(3)}")
    print(name, flush=True)
    if shown := one.next_pair("default"):
        name = f"{coin.getrandbits(64):016x}"
        assert one.vote(name, shown.left, shown.right, "left", "default", repeat=shown.repeat)
        print(name, flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "my taste"


def process(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def whole_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_processes_and_threads_vote_at_once_without_a_double_or_a_loss(folder):
    """Three threads of this process and two others rate as one rater, until nothing waits: each pair once."""
    one = drawn(folder, *[4] * 20)
    others = [process(VOTER, str(folder), RATER, str(seed)) for seed in range(2)]
    kept = []
    for other in others:
        assert other.stdout.readline() == "ready\n"

    def rate(seed: int) -> None:
        coin = random.Random(f"thread {seed}")
        while shown := one.next_pair(RATER, tab=rating(seed)):
            name = f"{coin.getrandbits(64):016x}"
            if one.vote(name, shown.left, shown.right, "left", RATER, repeat=shown.repeat):
                kept.append(name)

    threads = [threading.Thread(target=rate, args=(seed,)) for seed in range(3)]
    for other in others:
        other.stdin.write("go\n")
        other.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        votes = other.stdout.read().split()
        assert votes, "each has its part"
        kept += votes
        assert other.wait(timeout=60) == 0
    rows = whole_lines(folder / "ratings.jsonl")
    assert sorted(row["rating"] for row in rows) == sorted(kept)
    first = [frozenset((row["left"], row["right"])) for row in rows if not row["repeat"]]
    assert len(first) == len(set(first)) == 20 * 6
    assert one.progress(RATER)["waiting"] == TasteDataset(folder).progress(RATER)["waiting"] == 0


def test_what_another_process_draws_and_answers_is_seen(folder):
    one, other = drawn(folder, 2), TasteDataset(folder)
    assert other.progress(RATER)["waiting"] == 1
    one.add_candidate(b"more", "prompt 0")
    assert other.progress(RATER)["waiting"] == 3
    one.vote(rating(1), *ids(one)[:2], "left", RATER)
    assert other.progress(RATER)["rated"] == 1
    other.undo(rating(1), RATER)
    assert one.progress(RATER)["rated"] == 0


def test_five_kills_lose_nothing_that_was_said_to_be_kept(folder):
    """The record of a hundred kills of a whole server is `benchmarks/rating_kills.md`."""
    coin, told = random.Random(0), []
    for kill in range(5):
        drawer = process(DRAWER, str(folder), str(kill))
        lines = [drawer.stdout.readline() for _ in range(coin.randrange(2, 8))]
        time.sleep(coin.uniform(0, 0.01))
        drawer.send_signal(signal.SIGKILL)
        lines += drawer.stdout.readlines()
        drawer.wait()
        told += [line.strip() for line in lines if line.endswith("\n")]
        one = TasteDataset(folder)
        known = {*one.candidates(), *(vote.rating for vote in one.votes())}
        assert not set(told) - known
        for picture in (folder / "images").glob("*.png"):
            assert hashlib.sha256(picture.read_bytes()).hexdigest()[:16] == picture.stem
    assert len(told) > 10
    one.add_candidate(b"more", "prompt 0")
    assert not list(folder.rglob(".*.tmp"))  # what was half-written is removed by the next to write


def test_a_line_that_is_cut_anywhere_costs_that_line_alone(folder):
    one = drawn(folder, 4)
    pairs = list(itertools.combinations(ids(one), 2))
    for number in range(3):
        one.vote(rating(number), *pairs[number], "left", RATER)
    path = folder / "ratings.jsonl"
    content = path.read_bytes()
    last = content[content[:-1].rindex(b"\n") + 1 :]
    for end in range(1, len(last) + 1, 7):
        path.write_bytes(content[:-end])
        cut = TasteDataset(folder)
        assert [vote.rating for vote in cut.votes()] == [rating(0), rating(1)]
        if end < len(last):
            assert cut.notes() == ["lines of ratings.jsonl that are cut off or foreign, and are skipped: 1"]
        # What comes next closes it; a vote whose line was whole but for its end counts then.
        assert cut.vote(rating(9), *pairs[3], "right", RATER)
        for reader in (cut, TasteDataset(folder)):
            known = [vote.rating for vote in reader.votes()]
            assert known == [rating(0), rating(1), *([rating(2)] if end == 1 else []), rating(9)]


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 50_000,
        b'{"rating": ' + b"[" * 50_000,
        b"\xff\xfe\x00",
        b"\x00" * 512,
        b'{"rating": NaN}',
        b'{"rating": "0000000000000009", "left": "x", "right": "y", "choice": "left", "rater": "default"}',
        b'{"undo": 7, "rater": "default"}',
        b'{"undo": "0000000000000001"}',
        b'{"time": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda line: line[:20].decode("latin-1"),
)
def test_foreign_lines_are_skipped_and_said(folder, line):
    one = drawn(folder, 2)
    for name in ("candidates.jsonl", "ratings.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(line + b"\n\n")
    assert one.vote(rating(1), *ids(one), "left", RATER)
    for reader in (one, TasteDataset(folder)):
        assert len(reader.candidates()) == 2
        assert [vote.rating for vote in reader.votes()] == [rating(1)]
        assert reader.notes() == [
            f"lines of {name} that are cut off or foreign, and are skipped: 1"
            for name in ("candidates.jsonl", "ratings.jsonl")
        ]


def test_candidates_that_are_strange_numbers_are_read(folder):
    one = drawn(folder, 1)
    row = {"id": rating(1), "prompt": "prompt 0", "seeds": [1e400, True, "x", -5, 2**64], "models": [1, "m"]}
    row |= {"width": 1e308, "height": "x", "time": None}
    (folder / "images" / f"{rating(1)}.png").touch()
    with (folder / "candidates.jsonl").open("a") as file:
        file.write(json.dumps(row).replace("Infinity", "1e400") + "\n")
    found = one.candidates()[rating(1)]
    assert (found.seeds, found.models, found.height, found.time) == ((-5,), ("m",), 0, 0.0)
    assert one.next_pair(RATER) is not None


def test_a_log_that_was_replaced_is_read_anew(folder):
    one = drawn(folder, 3)
    answer_all(one, lambda shown: "left")
    path = folder / "ratings.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0])  # shorter
    assert len(one.votes()) == 1
    other = path.with_name("other")
    other.write_bytes(b"".join(rows[1:]))
    os.replace(other, path)  # another file, and longer
    assert len(one.votes()) == 2
    changed = b"".join(rows[1:]).replace(b'"left"', b'"skip"').replace(b'"skip":', b'"left":')
    path.write_bytes(changed + rows[0])  # the same file, longer, with other bytes where it was read
    assert sorted(vote.choice for vote in one.votes()) == ["left", "skip", "skip"]
    path.unlink()
    assert one.votes() == []
    assert one.progress(RATER)["waiting"] == 3


def test_votes_on_unknown_pictures_wait_for_their_candidates(folder):
    one = drawn(folder, 2)
    one.vote(rating(1), *ids(one), "left", RATER)
    path = folder / "candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    assert one.votes() == []
    assert one.notes() == ["votes of ratings.jsonl on pictures that candidates.jsonl does not name: 1"]
    with path.open("ab") as file:
        file.write(lines[1])
    assert [vote.rating for vote in one.votes()] == [rating(1)]
    assert one.notes() == []


def test_the_data_set_is_readable_while_a_line_is_being_written(folder):
    log = Log(folder / "log.jsonl")
    folder.mkdir()
    log.append([{"a": 1}])
    with log.path.open("ab") as file:
        file.write(b'{"a"')
        file.flush()
        assert log.read() == (False, [{"a": 1}])
        file.write(b": 2}\n")
    assert log.read() == (False, [{"a": 2}])
    assert log.skipped == 0


def refused(one: TasteDataset, number: int, pair: tuple[str, str]) -> None:
    """Everything that writes says a sentence, and nothing of it is there afterwards."""
    before = {file: file.read_bytes() for file in one.folder.rglob("*") if file.is_file()}
    for write in (
        lambda: one.vote(rating(number), *pair, "left", RATER),
        lambda: one.undo(rating(0), RATER),
        lambda: one.add_candidate(b"x" * 300_000, "prompt 0"),
        lambda: one.write_guideline("x" * 500),
    ):
        with pytest.raises(NotWritten, match="nothing was kept, since the disk does not take it"):
            write()
    after = {file: file.read_bytes() for file in one.folder.rglob("*") if file.is_file()}
    assert {file: content for file, content in after.items() if content} == {
        file: content for file, content in before.items() if content
    }


def test_a_file_that_may_not_grow_keeps_what_it_has(folder):
    """The limit that the kernel sets to a process's files: a write ends in the middle of a line."""
    one = drawn(folder, 3)
    pairs = list(itertools.combinations(ids(one), 2))
    one.vote(rating(0), *pairs[0], "left", RATER)
    size = (folder / "ratings.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        refused(one, 1, pairs[1])
        assert [vote.rating for vote in one.votes()] == [rating(0)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one.vote(rating(1), *pairs[1], "left", RATER)
    assert one.notes() == []
    assert len(whole_lines(folder / "ratings.jsonl")) == 2


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte of its own, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(path: Path) -> None:
    """Takes all the room that a disk has."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_keeps_what_it_has_and_takes_the_vote_once_there_is_room(small_disk):
    one = drawn(small_disk / "my taste", 3)
    pairs = list(itertools.combinations(ids(one), 2))
    one.vote(rating(0), *pairs[0], "left", RATER)
    log = one.folder / "ratings.jsonl"
    filler = small_disk / "filler"
    fill(filler)
    # To the last byte of the page that the log has: nothing of a line goes in.
    with log.open("ab") as file:
        file.write(b"\n" * (4096 - log.stat().st_size))
    refused(one, 1, pairs[1])
    assert one.progress(RATER)["rated"] == 1
    assert one.next_pair(RATER) is not None
    with pytest.raises(NotWritten):
        one.derive()
    filler.unlink()
    assert one.vote(rating(1), *pairs[1], "left", RATER)
    assert one.derive() == 2
    assert one.notes() == []


def test_a_read_only_disk_can_be_looked_at(small_disk):
    one = drawn(small_disk / "my taste", 3)
    pairs = list(itertools.combinations(ids(one), 2))
    one.vote(rating(0), *pairs[0], "left", RATER)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for reader in (one, TasteDataset(one.folder)):
        refused(reader, 1, pairs[1])
        assert reader.progress(RATER)["rated"] == 1
        assert reader.next_pair(RATER) is not None
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert one.vote(rating(1), *pairs[1], "left", RATER)


def test_large_data_sets_are_quick(tmp_path):
    """Of a core, with room for a slow one; `benchmarks/rating.md` has the times of 20,000 candidates."""
    sys.path.append(str(ROOT))
    from benchmarks.rating import measure

    times = measure(tmp_path / "large", 4_000, 1_000, votes=3)
    bounds = {"opening": 1.0, "next pair": 0.05, "vote": 0.05, "deriving": 0.2, "a picture": 0.2}
    for what, tries in times.items():
        bound = next(seconds for name, seconds in bounds.items() if what.startswith(name))
        assert min(core for _, core in tries) < bound, what
