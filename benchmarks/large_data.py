"""What a start costs with a data set of Pick-a-Pic v2's size, 851,293 pairs: the first, which reads every image, the
second and third, which read none, and one with `data.checksum`, which reads all again; and what the order of the pairs
costs a step.

The images are distinct PNGs of 8 × 8 pixels in parquet with Pick-a-Pic's columns, and, with --form folder, files in
chosen/ and rejected/; --form ids has no images, and measures the order alone. Each start is a process of its own, which
opens and reports the data as `train` does; its seconds are the clock's and the processor's, its memory is the highest
that was resident.

    python -m benchmarks.large_data [--form parquet|folder|ids] [--pairs N] [--folder ...]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chats_train.data.pair_columns import PairColumns

PAIRS, ROWS_OF_A_FILE, SIDE = 851_293, 50_000, 8
PAIRS_A_STEP, STEPS = 128, 100
CHECKSUM = "with `data.checksum`"
# Pick-a-Pic v2 has some 14 pairs a prompt.
PAIRS_OF_A_PROMPT = 14


def png(number: int) -> bytes:
    """A picture that no other number has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + number.to_bytes(3 * SIDE, "big")
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * SIDE, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def prompt(pair: int) -> str:
    return f"picture {pair // PAIRS_OF_A_PROMPT} of many, with a few more words as people write them, in oil, detailed"


def write_parquet(folder: Path, pairs: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for start in range(0, pairs, ROWS_OF_A_FILE):
        rows = range(start, min(pairs, start + ROWS_OF_A_FILE))
        table = {
            "jpg_0": [png(2 * row) for row in rows],
            "jpg_1": [png(2 * row + 1) for row in rows],
            "label_0": [float(row % 2) for row in rows],
            "label_1": [1.0 - row % 2 for row in rows],
            "caption": [prompt(row) for row in rows],
        }
        parquet.write_table(pa.table(table), folder / f"train-{start // ROWS_OF_A_FILE:05}.parquet")


def write_folder(folder: Path, pairs: int) -> None:
    for side in ("chosen", "rejected"):
        (folder / side).mkdir(parents=True)
    for pair in range(pairs):
        (folder / "chosen" / f"{pair:07}.png").write_bytes(png(2 * pair))
        (folder / "rejected" / f"{pair:07}.png").write_bytes(png(2 * pair + 1))
        (folder / "chosen" / f"{pair:07}.txt").write_text(prompt(pair), encoding="utf-8")


def start(folder: Path, checksum: bool) -> dict[str, float]:
    """One start in this process."""
    from chats_train.data import open_dataset
    from chats_train.settings.config_file import PLACEHOLDERS, parse_config

    raw = {"version": 1, "family": "sd15", **PLACEHOLDERS, "resolution": 512}
    raw |= {"output_dir": str(folder / "run"), "data": {"path": str(folder / "data"), "checksum": checksum}}
    clock, processor = time.perf_counter(), time.process_time()
    dataset = open_dataset(parse_config(raw), progress=False)
    print("\n".join(dataset.report()), file=sys.stderr)
    found = {"pairs": len(dataset.samples), "fingerprint": int(dataset.fingerprint[:12], 16)}
    found |= {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return {**found, **order(dataset.samples), "gigabytes": peak_bytes() / 1e9}


def order(samples: PairColumns) -> dict[str, float]:
    """Milliseconds of processor time for the pairs of an epoch's first step, and of each of the next ones, the pairs
    themselves included."""
    from chats.draws import Order

    order, marks = Order(samples.ids, 0), [time.process_time()]
    for step in range(STEPS + 1):
        for _, row in order.step(step, PAIRS_A_STEP):
            samples[row]
        marks.append(time.process_time())
    first, later = marks[1] - marks[0], (marks[-1] - marks[1]) / STEPS
    steps = max(1, len(samples) // PAIRS_A_STEP)
    return {"first_step": 1e3 * first, "later_step": 1e3 * later, "mean_step": 1e3 * (later + first / steps)}


def order_of_ids(pairs: int) -> str:
    """Seconds of processor time for an epoch's order, thrice."""
    import pyarrow as pa

    from chats.draws import shuffled_rows
    from chats_train.data.pair_columns import DIGEST, Ids

    digests = b"".join(hashlib.sha256(str(pair).encode()).digest() for pair in range(pairs))
    column = pa.FixedSizeBinaryArray.from_buffers(DIGEST, pairs, [None, pa.py_buffer(digests)])
    ids, marks = Ids(pa.chunked_array([column])), [time.process_time()]
    for epoch in range(3):
        shuffled_rows(ids, 0, epoch)
        marks.append(time.process_time())
    took = ", ".join(f"{after - before:.2f}" for before, after in itertools.pairwise(marks))
    return f"{made_by('ids', pairs)}: {took} s of a core."


def peak_bytes() -> int:
    """The most memory that was resident, files that are mapped into it included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=("parquet", "folder", "ids"), default="parquet")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "chats-large-data")
    parser.add_argument("--start", action="store_true", help="one start of a data set that is there")
    parser.add_argument("--checksum", action="store_true", help="with `data.checksum`")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.folder, args.checksum)))
        return
    if args.form == "ids":
        print(order_of_ids(args.pairs))
        return
    began = time.perf_counter()
    {"parquet": write_parquet, "folder": write_folder}[args.form](args.folder / "data", args.pairs)
    print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    # What was written just now is not trusted.
    time.sleep(5)
    command = [sys.executable, "-m", "benchmarks.large_data", "--start", "--folder", str(args.folder)]
    found = {}
    for which in ("first", "second", "third", CHECKSUM):
        options = ["--checksum"] if which == CHECKSUM else []
        ran = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
        found[which] = json.loads(ran.stdout)
        print(f"{which} start: {json.dumps(found[which])}", file=sys.stderr, flush=True)
    assert len({each["fingerprint"] for each in found.values()}) == 1
    shutil.rmtree(args.folder)
    print(record(args.form, found))


def made_by(form: str, pairs: float) -> str:
    return (
        f"`python -m benchmarks.large_data --form {form} --pairs {pairs}`, {date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}"
    )


def record(form: str, found: dict[str, dict[str, float]]) -> str:
    """The starts as a table of large_data.md."""
    lines = [
        made_by(form, found["first"]["pairs"]),
        "",
        "| start | s | s of a core | highest resident GB | ms of a core: an epoch's first step | a later step | mean |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for which, each in found.items():
        steps = " | ".join(f"{each[f'{step}_step']:.1f}" for step in ("first", "later", "mean"))
        lines.append(
            f"| {which} | {each['seconds']:.1f} | {each['processor']:.1f} | {each['gigabytes']:.2f} | {steps} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
