"""Processes that share work: threads that meet in a store as processes do, and two real ones, joined by gloo, that
cache, draw, score and rate what one does."""

import json
import shutil
import threading
import time

import pytest
import tiny_runs
import torch
from loaded_process import start_joined
from rated import draw
from torch.distributed import HashStore

from chats_train.cli import main
from chats_train.encodings.shards import ShardStore
from chats_train.runs.checkpoint import State, save_checkpoint
from chats_train.runs.opening import open_family
from chats_train.runs.peers import Peers
from chats_train.runs.whole_members import make_members
from chats_train.settings.config_file import load_config
from chats_train.support.errors import UserError


def together(function, count=3):
    """What each of several peers returns, or raises."""
    store, found = HashStore(), [None] * count

    def run(index):
        peers = Peers(index, count, store)
        try:
            found[index] = function(peers)
            peers.part()
        except BaseException as error:
            peers.tell_of(error)
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return found


def test_each_item_is_done_once_and_the_main_process_gets_all_in_order():
    done = []

    def work(peers):
        def square(item):
            done.append((peers.index, item))
            time.sleep(0.05 if peers.index == 1 else 0.001)  # a slow one does less
            return {"square": item * item / 3}

        first = list(peers.results(square, range(20)))
        told = peers.told(lambda: ["from", peers.index])
        peers.wait()
        return first, told, list(peers.results(square, [])), list(peers.results(square, [7]))

    main_one, *others = together(work)
    squares = [{"square": item * item / 3} for item in range(20)]
    assert main_one == (squares, ["from", 0], [], [{"square": 49 / 3}])
    assert others == [([], ["from", 0], [], [])] * 2
    assert sorted(item for _, item in done) == [*range(8), 7, *range(8, 20)]
    shares = [sum(index == each for index, _ in done) for each in range(3)]
    assert 0 < shares[1] < min(shares[0], shares[2])
    assert list(Peers().results(lambda item: item + 1, [1, 2])) == [2, 3]


@pytest.mark.parametrize("failing", [0, 2])
def test_one_that_fails_ends_all_with_its_sentence(failing):
    def work(peers, error):
        def fail(item):
            if peers.index == failing:
                raise error
            time.sleep(0.01)

        return list(peers.results(fail, range(10**6)))

    for error, expected in (
        (UserError("`x` is 1; give 2"), "`x` is 1; give 2"),
        (RuntimeError("out of memory"), f"process {failing} of 3 failed (out of memory); mend that and start again"),
    ):
        found = together(lambda peers, error=error: work(peers, error))
        assert found[failing] is error
        for index in {0, 1, 2} - {failing}:
            assert isinstance(found[index], UserError)
            assert str(found[index]) == expected
    found = together(lambda peers: work(peers, KeyboardInterrupt()))
    assert [type(each) for each in found] == [KeyboardInterrupt] * 3


def commands(*each):
    """Several commands, one after the other; the highest status."""
    return max(main([str(word) for word in words]) for words in each)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture
def asked(bases, pairs, clip, tmp_path):
    """A run with a checkpoint and a rated data set; the commands of some processes, each with folders of its own."""
    raw = tiny_runs.run_settings("sd15", bases("sd15"), pairs, tmp_path, resolution=32, bucket_reso_steps=16)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**raw, "training_method": "full"}))
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fox\n")
    config = load_config(path)
    members = make_members(config, open_family(config, "cpu"), 2, False, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    state = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in members.state().items()
    }
    save_checkpoint(config.output_dir / "checkpoints", State(1, {"members": state}, {"dataset_fingerprint": "f"}), None)
    draw(tmp_path / "drawn", fox=6, boat=5)

    def commands_of(name):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "drawn", folder / "taste", dirs_exist_ok=True)
        evaluate = ["evaluate", path, "--prompts", tmp_path / "prompts.txt", "--seeds", 3, "--steps", 1]
        return folder, [
            ["cache", path, "--set", f"cache_dir={folder / 'cache'}"],
            [*evaluate, "--batch-size", 2, "--scorer", f"pickscore={clip}", "--output", folder / "evaluation"],
            ["rate", folder / "taste", "--scorer", f"pickscore={clip}"],
        ]

    return commands_of


def ended(logs, processes):
    """The exit statuses, and what was printed."""
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes], [log.read_text() for log in logs]


def test_two_processes_cache_draw_score_and_rate_what_one_does(asked, tmp_path):
    alone, words = asked("alone")
    assert commands(*words) == 0
    both, words = asked("both")
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    statuses, said = ended(logs, start_joined(logs, commands, *words))
    assert statuses == [0, 0], said
    one, two = contents(alone / "evaluation"), contents(both / "evaluation")
    assert sum(name.endswith(".png") for name in two) == 3 * 3 * 4 + 1  # and the grid
    assert one == two
    stores = [ShardStore(folder / "cache") for folder in (alone, both)]
    assert len(stores[0]) == len(stores[1]) > 0
    for key in map(bytes.hex, stores[0]._place_of):
        entries = [store.read(key) for store in stores]
        assert entries[0].keys() == entries[1].keys()
        assert all(torch.equal(entries[0][part], entries[1][part]) for part in entries[0])
    for file in ("scores.jsonl", "metadata.jsonl"):
        assert (alone / "taste" / file).read_bytes() == (both / "taste" / file).read_bytes()
    # The main one reports, and alone.
    assert "36 pictures, 36 of them drawn now" in said[0]
    assert "metadata.jsonl: 25 pairs to train on" in said[0]
    assert not any(word in said[1] for word in ("pictures", "cached in", "metadata.jsonl"))
    # What a kill leaves is made again, by either.
    pictures = sorted((both / "evaluation").rglob("*_*/*.png"))
    for path in pictures[::3]:
        path.unlink()
    scores = both / "evaluation" / "scores.jsonl"
    scores.write_bytes(b"".join(scores.read_bytes().splitlines(keepends=True)[:16]))
    # One that another process cannot score ends both with its sentence.
    broken = next(iter((both / "taste" / "images").glob("*.png")))
    broken.write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    (both / "taste" / "scores.jsonl").unlink()
    statuses, said = ended(logs, start_joined(logs, commands, *words[1:]))
    assert statuses == [2, 2]
    assert all(f"error: {broken} cannot be read as a picture" in each for each in said)
    two = contents(both / "evaluation")
    # The report says how many were drawn now.
    assert b"36 pictures, 12 of them drawn now, 24 kept" in two.pop("report.md")
    assert two.items() <= one.items()
    assert len(two) == len(one) - 1
