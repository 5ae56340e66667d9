"""One damaged input after another, each read in limited time and memory, and what came of it."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import hashlib
import io
import random
import re
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

LIMIT_SECONDS = 20
LIMIT_BYTES = 1 << 30
LONGEST_SENTENCE = 700
# Beyond this a reading ends in a MemoryError instead of the machine's end.
ADDRESS_SPACE_BYTES = 12 << 30

# A reading is None where the input was taken, else the sentences of the refusal; any exception is a failure.
Read = Callable[[], str | None]
Outcome = Literal["accepted", "refused", "failed"]


@dataclass(frozen=True)
class Case:
    """A damaged input: what was done to it, the files that nobody may change, and who reads it, by name."""

    mutation: str
    files: Path
    readings: dict[str, Read]


class Kind(Protocol):
    """A kind of input."""

    name: str

    def make(self, rng: random.Random, folder: Path) -> Case:
        """A damaged input in an empty folder."""
        ...


@dataclass(frozen=True)
class Reading:
    """What came of one reading."""

    mutation: str
    reader: str
    outcome: Outcome
    detail: str
    seconds: float
    peak_bytes: int


@dataclass
class Result:
    """All readings of one kind."""

    kind: str
    mutations: int = 0
    readings: list[Reading] = field(default_factory=list)

    def failures(self) -> dict[str, list[Reading]]:
        """Failed readings by their cause, numbers and paths left out."""
        groups = collections.defaultdict(list)
        for reading in self.readings:
            if reading.outcome == "failed":
                groups[
                    f"{reading.reader}: {re.sub(r'/[^ `:;,)]+|[0-9a-f]{8,}|[0-9]+', '#', reading.detail)[:160]}"
                ].append(reading)
        return dict(groups)


class TooSlow(BaseException):
    """A reading that did not end; no `except Exception` on the way may swallow it."""


def run(kind: Kind, count: int, seed: int, folder: Path, progress: Callable[[int], None] = lambda _: None) -> Result:
    """Reads ``count`` damaged inputs; the same seed gives the same ones."""
    result = Result(kind.name)
    for index in range(count):
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        case = kind.make(random.Random(f"{kind.name} {seed} {index}"), place)
        before = digest(case.files)
        for reader, read in case.readings.items():
            result.readings.append(measured(case.mutation, reader, read))
        if digest(case.files) != before:
            result.readings.append(Reading(case.mutation, "all", "failed", "an input file was changed", 0.0, 0))
        result.mutations += 1
        progress(index)
    return result


def measured(mutation: str, reader: str, read: Read) -> Reading:
    """One reading in limited time and memory."""
    resident = reset_peak()
    started = time.perf_counter()
    outcome, detail = "failed", ""
    try:
        with time_limit(LIMIT_SECONDS):
            sentences = read()
        outcome, detail = ("accepted", "") if sentences is None else ("refused", sentences)
    except TooSlow:
        detail = f"no end within {LIMIT_SECONDS} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}, {where.name})"
    seconds, peak = time.perf_counter() - started, peak_bytes() - resident
    if outcome == "refused" and (fault := fault_of(detail)):
        outcome, detail = "failed", f"{fault}: {detail[:300]}"
    if outcome != "failed" and peak > LIMIT_BYTES:
        outcome, detail = "failed", f"took {peak / 1e9:.1f} GB"
    return Reading(mutation, reader, outcome, detail, seconds, peak)


def fault_of(sentences: str) -> str | None:
    """Why a refusal is none that helps: each line is to be one sentence that ends in the way out."""
    for sentence in sentences.splitlines() or [""]:
        if "Traceback" in sentence:
            return "a traceback"
        if len(sentence) > LONGEST_SENTENCE:
            return f"a sentence of {len(sentence)} characters"
        if not sentence.isprintable():
            return "control characters"
        if not re.search(r"[;:,] [a-z`]", sentence):
            return "no way out"
    return None


def command(*arguments: str) -> str | None:
    """One command of the trainer's command line, in this process."""
    from chats_train.cli import USER_ERROR_STATUS, main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    errors = [line.removeprefix("error: ") for line in err.getvalue().split("\n") if line.startswith("error: ")]
    others = [line for line in err.getvalue().split("\n") if "Traceback" in line]
    if others or status not in (0, USER_ERROR_STATUS) or bool(errors) != (status == USER_ERROR_STATUS):
        raise AssertionError(f"status {status}, and on stderr {err.getvalue()[-300:]}")
    return "\n".join(errors) if errors else None


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    # Where no Python code runs that the alarm could interrupt.
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """For a process that reads nothing else."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def reset_peak() -> int:
    """Forgets the most memory that this process had (Linux), and tells what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def digest(path: Path) -> str:
    """Of a file, or of all files below a folder with their names."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        total.update(str(file).encode("utf-8", "surrogateescape"))
        if file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()
