"""Kills a ComfyUI server with SIGKILL at random moments while it draws candidates and is voted at; nothing is lost.

    COMFYUI_PATH=<ComfyUI> <ComfyUI's python> benchmarks/rating_kills.py --kills 100 --seed 0

A real `main.py --cpu` with this pack alone. One client queues graphs that save pictures of 3 MB, one rates what it is
given and sometimes takes a vote back. After each kill the folder is looked at as it lies there: every vote that was
answered is in force, every undo that was answered holds, every candidate that the server named has its picture, and
each picture is whole by the hash that is its name. Half-written lines and hidden files are counted, and at the end a
new server must have removed the files. The status is 1 when anything is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfy")]

from chats.taste.dataset import TasteDataset  # noqa: E402

PACK, DATASET, TAB = "ComfyUI-CHATS", "kills", "0123456789abcdef"
PROMPTS = 4
START_SECONDS, LONGEST_SECONDS = 300, 3.0
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, json.JSONDecodeError)


@dataclass
class Seen:
    """What the clients were told."""

    votes: dict[str, dict] = field(default_factory=dict)
    undone: set[str] = field(default_factory=set)
    candidates: set[str] = field(default_factory=set)
    # Sent, and not answered: it may have been kept or not.
    open_votes: set[str] = field(default_factory=set)
    open_undos: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    args = parser.parse_args()
    moments, seen, wrong, rows = random.Random(args.seed), Seen(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        prepare(base)
        folder = base / "output" / "chats" / DATASET
        for number in range(PROMPTS * 12):  # so that the first kill has something to rate as well
            TasteDataset(folder).add_candidate(b"%d" % number, f"prompt {number % PROMPTS}")
        for kill in range(1, args.kills + 1):
            before = len(seen.votes), len(seen.candidates)
            with running(base) as (port, process):
                seconds = moments.uniform(0, LONGEST_SECONDS)
                work_and_kill(port, process, seen, moments, seconds)
            found = lost(folder, seen)
            left = len(list(folder.rglob(".*.tmp")))
            rows.append((kill, seconds, len(seen.votes) - before[0], len(seen.candidates) - before[1], left))
            print(*rows[-1], *found, file=sys.stderr, flush=True)
            wrong += found
        cut_lines = cut(folder)
        one = TasteDataset(folder)
        one.add_candidate(b"the last one", "prompt")  # the first to write removes what was left half-written
        wrong += [f"{file.name} is left" for file in folder.rglob(".*.tmp")]
    text = described(args, rows, seen, wrong, cut_lines)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    sys.exit(1 if wrong else 0)


def prepare(base: Path) -> None:
    """The pack, and a picture of noise."""
    import numpy as np
    from PIL import Image

    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK).symlink_to(ROOT)
    (base / "input").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(base / "input" / "noise.png")
    package = base / "site" / "comfyui_workflow_templates"  # some ComfyUIs want the folder
    (package / "templates").mkdir(parents=True)
    (package / "__init__.py").touch()


@contextlib.contextmanager
def running(base: Path) -> Any:
    """A server that answers; it is killed with the block."""
    import socket

    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    comfyui = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI"))
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "legacy_templates_path" not in (comfyui / "app" / "frontend_management.py").read_text(encoding="utf-8"):
        environment["PYTHONPATH"] = str(base / "site")
    with (base / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=comfyui, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(*BROKEN):
                    call(port, "/chats/datasets")
                    break
                time.sleep(0.1)
            assert process.poll() is None, (base / "log.txt").read_text(errors="replace")[-3000:]
            yield port, process
        finally:
            process.kill()
            process.wait()


def call(port: int, path: str, content: object = None) -> dict:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"} if data else {}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def work_and_kill(port: int, process: subprocess.Popen, seen: Seen, coin: random.Random, seconds: float) -> None:
    """Draws and rates for so long, then kills the server under the clients' hands."""
    clients = [
        threading.Thread(target=until_it_breaks, args=(client, port, seen, random.Random(coin.random())))
        for client in (draw, rate)
    ]
    for client in clients:
        client.start()
    time.sleep(seconds)
    process.kill()
    for client in clients:
        client.join()


def until_it_breaks(client: Any, port: int, seen: Seen, coin: random.Random) -> None:
    with contextlib.suppress(*BROKEN):
        while True:
            client(port, seen, coin)


def draw(port: int, seen: Seen, coin: random.Random) -> None:
    """One graph, until the server names what it saved."""
    graph = {
        "1": {
            "class_type": "CHATSPromptLines",
            "inputs": {
                "text": "\n".join(f"prompt {number}" for number in range(PROMPTS)),
                "index": coin.getrandbits(40),
            },
        },
        "2": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "3": {
            "class_type": "CHATSSaveCandidates",
            "inputs": {"images": ["2", 0], "prompt": ["1", 0], "dataset": DATASET},
        },
    }
    name = call(port, "/prompt", {"prompt": graph})["prompt_id"]
    while not (entry := call(port, f"/history/{name}").get(name)):
        time.sleep(0.01)
    seen.candidates.update(image["filename"][:-4] for image in entry["outputs"]["3"]["images"])


def rate(port: int, seen: Seen, coin: random.Random) -> None:
    """One pair, and now and then one step back."""
    try:
        pair = call(port, f"/chats/{DATASET}/pair?tab={TAB}")["pair"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        pair = None  # nothing is drawn yet
    if pair is None:
        time.sleep(0.05)
        return
    vote = {
        "rating": f"{coin.getrandbits(64):016x}",
        "left": pair["left"],
        "right": pair["right"],
        "choice": coin.choice(("left", "right", "tie", "skip")),
        "seconds": 1.0,
        "repeat": pair["repeat"],
    }
    seen.open_votes.add(vote["rating"])
    assert call(port, f"/chats/{DATASET}/rating", vote)["stands"]
    seen.open_votes.discard(vote["rating"])
    seen.votes[vote["rating"]] = vote
    if coin.random() < 0.2:
        seen.open_undos.add(vote["rating"])
        call(port, f"/chats/{DATASET}/rating", {"undo": vote["rating"]})
        seen.open_undos.discard(vote["rating"])
        seen.undone.add(vote["rating"])


def lost(folder: Path, seen: Seen) -> list[str]:
    """What was answered and is not there, and what is there and is not whole."""
    one = TasteDataset(folder)
    votes = {vote.rating: vote for vote in one.votes()}
    wrong = []
    for name, vote in seen.votes.items():
        kept = votes.get(name)
        if name in seen.undone and kept is not None:
            wrong.append(f"the vote {name} is back")
        elif name not in seen.undone | seen.open_undos and (
            kept is None or (kept.left, kept.right, kept.choice) != (vote["left"], vote["right"], vote["choice"])
        ):
            wrong.append(f"the vote {name} is lost")
    wrong += [f"the vote {name} was sent by nobody" for name in votes if name not in {*seen.votes, *seen.open_votes}]
    wrong += [f"the candidate {name} is lost" for name in seen.candidates - one.candidates().keys()]
    for file in (folder / "images").glob("*.png"):
        if hashlib.sha256(file.read_bytes()).hexdigest()[:16] != file.stem:
            wrong.append(f"{file.name} is not whole")
    return wrong


def cut(folder: Path) -> int:
    """Lines that a kill cut off."""
    one = TasteDataset(folder)
    one.votes()
    return one._state.candidates.skipped + one._state.ratings.skipped


def described(args: argparse.Namespace, rows: list, seen: Seen, wrong: list[str], cut_lines: int) -> str:
    sys.path.append(os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy" / "ComfyUI")))
    from comfyui_version import __version__

    lines = [
        "# A server killed while it draws and is voted at",
        "",
        f"`benchmarks/rating_kills.py --kills {args.kills} --seed {args.seed}`, {time.strftime('%Y-%m-%d')}, "
        f"{platform.machine()}, {os.cpu_count()} cores shared with other work, ComfyUI {__version__}",
        "",
        f"{len(rows)} kills; {len(seen.votes)} votes were answered, {len(seen.undone)} of them taken back, "
        f"{len(seen.candidates)} candidates of 3 MB were saved. Missing or not whole: {len(wrong) or 'none'}. Lines of "
        f"the logs that a kill cut off: {cut_lines}. Hidden half-written files were left by "
        f"{sum(later > earlier for earlier, later in itertools.pairwise([0, *(row[4] for row in rows)]))} "
        "kills, and removed by the next process that wrote.",
        "",
        *(f"- {sentence}" for sentence in wrong),
        "| kill | seconds of work | votes answered | candidates named | hidden files left |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {kill} | {seconds:.2f} | {votes} | {drawn} | {left} |" for kill, seconds, votes, drawn, left in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
