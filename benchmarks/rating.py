"""How long rating takes on a large data set: opening it, the next pair, a vote, and deriving the pairs.

    python benchmarks/rating.py --candidates 20000 --prompts 5000

Times are of `chats.taste` in one process, with every vote on the disk before it counts; the pictures are empty files.
A part of the votes is there before, so that the plans and the derived file have something to hold.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from chats.taste.dataset import TasteDataset  # noqa: E402
from chats.taste.log import Log  # noqa: E402
from chats.taste.names import CANDIDATES, IMAGES  # noqa: E402
from chats.taste.records import Candidate, Vote  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20_000)
    parser.add_argument("--prompts", type=int, default=5_000)
    parser.add_argument("--votes", type=int, default=200, help="that are timed")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else the system's for temporary files")
    parser.add_argument("--markdown", type=Path, help="add the result there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        times = measure(Path(folder) / "large", args.candidates, args.prompts, args.votes)
        lines = [heading(args, "rating.py"), "", *table(times)]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write("\n" + text)


def measure(folder: Path, candidates: int, prompts: int, votes: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of a core of each thing, one entry a try."""
    write_candidates(folder, candidates, prompts)
    answer_half(folder)
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(3):
        one = TasteDataset(folder, random.Random(0))
        timed(times, "opening: read everything, first pair, progress", lambda one=one: opened(one))
    for number in range(votes):
        shown = timed(times, "next pair, with progress", lambda: (one.next_pair("default"), one.progress("default"))[0])
        if shown is None:
            break
        choice = one.rng.choice(("left", "right"))
        rating = f"{number:016x}"
        timed(
            times,
            "vote, on the disk, with progress",
            lambda shown=shown, rating=rating, choice=choice: (
                one.vote(rating, shown.left, shown.right, choice, "default", 1.0, shown.repeat),
                one.progress("default"),
            ),
        )
        if number % 20 == 0:
            timed(times, "deriving metadata.jsonl", one.derive)
        if number % 10 == 0:  # the vote that follows comes right after it
            timed(times, "a picture more", lambda number=number: one.add_candidate(b"%d" % number, "prompt 1"))
    return times


def opened(one: TasteDataset) -> None:
    assert one.next_pair("default") is not None
    one.counts(), one.progress("default"), one.notes(), one.last("default")


def timed(times: dict[str, list[tuple[float, float]]], what: str, do: Callable[[], Any]) -> Any:
    wall, core = time.perf_counter(), time.process_time()
    result = do()
    times.setdefault(what, []).append((time.perf_counter() - wall, time.process_time() - core))
    return result


def write_candidates(folder: Path, candidates: int, prompts: int) -> None:
    (folder / IMAGES).mkdir(parents=True)
    rows = [
        Candidate(f"{at * 7919 % 2**64:016x}", f"prompt {at % prompts}", (at,), ("model.safetensors",), 1024, 1024, at)
        for at in range(candidates)
    ]
    for row in rows:
        (folder / IMAGES / f"{row.id}.png").touch()
    Log(folder / CANDIDATES).append(row.row() for row in rows)


def answer_half(folder: Path) -> None:
    """One vote for every second candidate, as one rater would have given them."""
    one = TasteDataset(folder)
    by_prompt: dict[str, list[str]] = {}
    for candidate in one.candidates().values():
        by_prompt.setdefault(candidate.prompt, []).append(candidate.id)
    votes = []
    for ids in by_prompt.values():
        for left, right in zip(ids[::2], ids[1::2], strict=False):
            choice = one.rng.choice(("left", "right", "tie"))
            votes.append(Vote(f"{len(votes) + 10**9:016x}", left, right, choice, "default", float(len(votes)), 2.0))
    one.vote_all(votes)


def table(times: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| what | times | median ms | longest ms | median ms of a core | longest ms of a core |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for what, tries in times.items():
        walls, cores = ([1000 * seconds for seconds in of] for of in zip(*tries, strict=True))
        figures = (figure for of in (walls, cores) for figure in (statistics.median(of), max(of)))
        lines.append(f"| {what} | {len(tries)} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    return lines


def heading(args: argparse.Namespace, script: str) -> str:
    return (
        f"`benchmarks/{script} --candidates {args.candidates} --prompts {args.prompts} --votes {args.votes}`, "
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
