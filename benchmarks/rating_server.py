"""How long rating takes on a large data set through a ComfyUI server: opening the dialog, the next pair, a vote.

    COMFYUI_PATH=<ComfyUI> <ComfyUI's python> benchmarks/rating_server.py --candidates 20000 --prompts 5000

A real `main.py --cpu` with this pack alone, asked over HTTP by one client, each request on a connection of its own.
Each server is new to the data set when the dialog is opened. Every tenth vote comes right after a picture that a graph
saved. Times by the clock are the client's; those of a core are all that the server's threads ran meanwhile, deriving
metadata.jsonl included. ComfyUI collects Python's garbage after a graph, at most every ten seconds, and does nothing
else then: what met that is in a line of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.rating import answer_half, heading, table, write_candidates  # noqa: E402
from benchmarks.rating_kills import call, prepare, running  # noqa: E402

DATASET, TAB = "large", "0123456789abcdef"
PAIR, RATING = f"/chats/{DATASET}/pair?tab={TAB}", f"/chats/{DATASET}/rating"
OPENINGS, VOTES_A_PICTURE = 3, 10
COLLECTING = "any of these, met by ComfyUI's collecting of garbage"
# A pack that notes when all of Python's garbage was collected, in seconds since 1970.
COLLECTIONS = """
import gc, time
def note(phase, info):
    if info["generation"] == 2:
        with open({path!r}, "a") as file:
            file.write(f"{{time.time()}}\\n")
gc.callbacks.append(note)
NODE_CLASS_MAPPINGS = {{}}
"""
# By the clock and of a core; and until when, in seconds since 1970.
Times = dict[str, list[tuple[float, float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20_000)
    parser.add_argument("--prompts", type=int, default=5_000)
    parser.add_argument("--votes", type=int, default=200, help="that are timed")
    parser.add_argument("--markdown", type=Path, help="add the result there too")
    args = parser.parse_args()
    times: Times = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        prepare(base)
        noted = base / "collections.txt"
        (base / "custom_nodes" / "collections_noted.py").write_text(COLLECTIONS.format(path=str(noted)))
        folder = base / "output" / "chats" / DATASET
        write_candidates(folder, args.candidates, args.prompts)
        answer_half(folder)
        for opening in range(1, OPENINGS + 1):
            # The server answers once it is up, which opens what is there: so it is there a moment later.
            folder.rename(base / DATASET)
            with running(base) as (port, process):
                (base / DATASET).rename(folder)
                timed(times, process.pid, "opening: the data sets, the first pair", lambda port=port: opened(port))
                if opening == OPENINGS:
                    rate(times, port, process.pid, args.votes)
        times = apart(times, noted)
    text = "\n".join([heading(args, "rating_server.py"), "", *table(times)]) + "\n"
    print(text)
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write("\n" + text)


def opened(port: int) -> None:
    (one,) = call(port, "/chats/datasets")["datasets"]
    assert one["waiting"]
    assert call(port, PAIR)["pair"]


def rate(times: Times, port: int, pid: int, votes: int) -> None:
    for number in range(votes):
        pair = timed(times, pid, "next pair", lambda: call(port, PAIR))["pair"]
        what = "vote"
        if number % VOTES_A_PICTURE == 0:
            draw(port, number)
            what = "vote right after a picture was saved"
        vote = {**pair, "rating": f"{number:016x}", "choice": "left", "seconds": 1.0}
        assert timed(times, pid, what, lambda vote=vote: call(port, RATING, vote))["stands"]


def draw(port: int, number: int) -> None:
    """A picture of its own colour, until the server names it."""
    colour = {"width": 64, "height": 64, "batch_size": 1, "color": number}
    lines = {"text": "\n".join(f"prompt {prompt}" for prompt in range(100)), "index": number}
    saved = {"images": ["1", 0], "prompt": ["2", 0], "dataset": DATASET}
    kinds = ("EmptyImage", colour), ("CHATSPromptLines", lines), ("CHATSSaveCandidates", saved)
    graph = {str(at): {"class_type": kind, "inputs": inputs} for at, (kind, inputs) in enumerate(kinds, 1)}
    name = call(port, "/prompt", {"prompt": graph})["prompt_id"]
    while not (entry := call(port, f"/history/{name}").get(name)):
        time.sleep(0.005)
    assert entry["status"]["status_str"] == "success", entry["status"]


def timed(times: Times, pid: int, what: str, do: Callable[[], Any]) -> Any:
    wall, core = time.perf_counter(), core_seconds(pid)
    result = do()
    times.setdefault(what, []).append((time.perf_counter() - wall, core_seconds(pid) - core, time.time()))
    return result


def apart(times: Times, noted: Path) -> dict[str, list[tuple[float, float]]]:
    """The same, and in a line of its own what was met by a collection: from one time that was noted to the next."""
    moments = [float(line) for line in noted.read_text().split()] if noted.exists() else []
    pauses = list(zip(moments[::2], moments[1::2], strict=False))
    found: dict[str, list[tuple[float, float]]] = {}
    for what, tries in times.items():
        for wall, core, end in tries:
            met = any(start < end and end - wall < stop for start, stop in pauses)
            found.setdefault(COLLECTING if met and not what.startswith("opening") else what, []).append((wall, core))
    found |= {COLLECTING: found.pop(COLLECTING)} if COLLECTING in found else {}  # the last line
    return found


def core_seconds(pid: int) -> float:
    """How long all threads of a process have run (Linux)."""
    ran = [int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(ran) / 1e9


if __name__ == "__main__":
    main()
