"""Run by running.py in the trainer's Python: loads its packages once, then runs each script it is asked for in a
process forked from this one.

A line of its input is a JSON list, the log's path and the script with its arguments; it answers with a line, the
script's exit status. Loading takes longer than most scripts.
"""

import json
import os
import runpy
import sys
import traceback

import diffusers  # noqa: F401
import peft  # noqa: F401
import torch
import transformers  # noqa: F401

import chats_train.cli  # noqa: F401


def run(log: str, script: str, *arguments: str) -> None:
    """Ends this process with the script's exit status; all that it prints goes into ``log``."""
    status = 1
    try:
        with open(log, "wb", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # whatever it is, the other side reads it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork; and the scripts' layers are so small that they would wait
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
