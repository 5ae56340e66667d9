"""Two runs never write to one folder at once, and a killed run leaves nothing locked."""

import signal
import subprocess
import sys

import pytest

from chats.locks import locked
from chats_train.support.errors import UserError

HOLDER = """
import pathlib, sys, time
from chats.locks import locked
with locked(pathlib.Path(sys.argv[1])) as free:
    print(free, flush=True)
    time.sleep(600)
"""


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    with locked(path) as free:
        assert not free
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(path) as free:
        assert free
    with locked(path) as free:
        assert free


def test_a_second_run_is_kept_out_of_a_folder_in_use(config):
    from chats_train.training.train import LOCK, train

    run = config(max_train_steps=1, checkpointing_steps=1, validation_pairs=0)
    with (
        locked(run.output_dir / LOCK),
        pytest.raises(UserError, match=r"`output_dir` is .*, where another run is at work now; wait"),
    ):
        train(run)
    assert [path.name for path in run.output_dir.iterdir()] == [LOCK]
    assert train(run).startswith("trained 1 steps")
