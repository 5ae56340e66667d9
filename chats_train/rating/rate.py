"""A scorer rates what ComfyUI drew: pairs of one prompt, written under a name of its own beside the votes of people."""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chats.locks import locked
from chats.taste.dataset import TasteDataset
from chats.taste.names import CANDIDATES, IMAGES, METADATA
from chats.taste.records import SCORER, Pair, Vote

from ..evaluation.benchmark import Scorer
from ..evaluation.prompts import EvaluationPrompt
from ..evaluation.scorers import TEXT_KINDS, open_scorers
from ..evaluation.scoring import score_pictures
from ..runs.peers import Peers, peers_of
from ..runs.processes import Processes
from ..support.amounts import counted
from ..support.errors import UserError
from .agreement import agreement, agreement_text
from .comparisons import choice, comparisons

# Not the folder's own lock, which ComfyUI wants for each line that it adds.
LOCK = ".rate.lock"


@dataclass(frozen=True)
class CandidatePicture:
    """A candidate as a scorer sees it."""

    key: str
    path: Path
    prompt: EvaluationPrompt


def rate(folder: Path, scorer_specs: Sequence[str], margins: Sequence[float]) -> Iterator[str]:
    """Lets scorers rate a data set's candidates. Scores are kept in its folder as they come, so it goes on where it was
    stopped.

    Args:
        folder: `chats/<dataset>` in ComfyUI's output folder.
        scorer_specs: as `evaluate` takes them.
        margins: for each scorer, how far apart two scores must be for a choice; empty for none.

    Returns:
        the report, line by line as it is known; of several processes, which share the pictures, in the main one alone.

    Raises:
        UserError: for what the user can mend; before anything is scored where that can be told.
        TasteError: when the disk does not take the votes.
    """
    _check_margins(scorer_specs, margins)
    if not (folder / CANDIDATES).is_file():
        raise UserError(
            f"`dataset` is {folder}, which has no {CANDIDATES}; give the folder of a data set, chats/NAME in ComfyUI's "
            "output folder"
        )
    processes = Processes()
    with peers_of(processes) as peers:
        scorers = open_scorers(scorer_specs, processes.device, TEXT_KINDS)
        margins = margins or [0.0] * len(scorers)
        if peers.is_main:
            yield from _rate(folder, scorers, margins, peers)
        else:
            peers.wait()  # until the folder is the main process's
            for scorer in scorers:
                score_pictures(scorer, _pictures(folder, peers.told(dict)), folder, peers)


def _rate(folder: Path, scorers: Sequence[Scorer], margins: Sequence[float], peers: Peers) -> Iterator[str]:
    """What the main process does, which alone reads and writes the data set."""
    with _only_rating_in(folder):
        dataset = TasteDataset(folder)
        yield from (f"note: {note}" for note in dataset.notes())
        yield _size(dataset)
        peers.wait()
        for scorer, margin in zip(scorers, margins, strict=True):
            yield from _rate_with(scorer, margin, dataset, peers)
        yield f"{METADATA}: {counted(dataset.derive(), 'pair')} to train on, people's ratings before scorers'"


def _check_margins(scorer_specs: Sequence[str], margins: Sequence[float]) -> None:
    for margin in margins:
        if not (math.isfinite(margin) and margin >= 0):
            raise UserError(f"`--margin` is {margin}; give 0 or more, in the scorer's own unit")
    if margins and len(margins) != len(scorer_specs):
        raise UserError(
            f"`--margin` has {counted(len(margins), 'number')} for {counted(len(scorer_specs), 'scorer')}; give one "
            "for each in their order, since their units differ"
        )


@contextmanager
def _only_rating_in(folder: Path) -> Iterator[None]:
    """Keeps other scorers out of a folder: two would write over each other's scores."""
    with locked(folder / LOCK) as free:
        if not free:
            raise UserError(f"`dataset` is {folder}, where another scorer is at work now; wait for its end, or stop it")
        yield


def _size(dataset: TasteDataset) -> str:
    counts = dataset.counts()
    text = f"{counted(counts['candidates'], 'candidate')} for {counted(counts['prompts'], 'prompt')}"
    if all(len(pictures) < 2 for pictures in _by_prompt(dataset).values()):
        raise UserError(
            f"`dataset` is {dataset.folder}, which has {counted(counts['candidates'], 'candidate')} for "
            f"{counted(counts['prompts'], 'prompt')} and no two for one prompt; draw more first"
        )
    return f"{dataset.folder.name}: {text}"


def _by_prompt(dataset: TasteDataset) -> dict[str, list[str]]:
    """The ids of the pictures that are there, by their prompts."""
    found: dict[str, list[str]] = {}
    for candidate in dataset.candidates().values():
        found.setdefault(candidate.prompt, []).append(candidate.id)
    return found


def _pictures(folder: Path, prompts: Mapping[str, str]) -> list[CandidatePicture]:
    """The candidates of a folder, from their prompts by id."""
    return [
        CandidatePicture(name, folder / IMAGES / f"{name}.png", EvaluationPrompt(prompt, ""))
        for name, prompt in prompts.items()
    ]


def _rate_with(scorer: Scorer, margin: float, dataset: TasteDataset, peers: Peers) -> Iterator[str]:
    """One scorer's votes; what it said before and says no longer is taken back."""
    rater = SCORER + scorer.name
    # ComfyUI may draw more meanwhile: all processes are told of the same ones.
    prompts = peers.told(lambda: {name: candidate.prompt for name, candidate in dataset.candidates().items()})
    scores = score_pictures(scorer, _pictures(dataset.folder, prompts), dataset.folder, peers)
    people = [vote for vote in dataset.votes() if not vote.by_scorer]
    pairs = [pair for same in _by_prompt(dataset).values() for pair in comparisons(same)]
    # What a person rated is rated too, so that the two can be compared. Pictures may have come since.
    pairs += [vote.pair for vote in people]
    wanted = {
        pair: choice(scores[pair[0]], scores[pair[1]], margin)
        for pair in dict.fromkeys(pairs)
        if pair[0] in scores and pair[1] in scores
    }
    added, replaced = _put(dataset, rater, wanted)
    ties = sum(said == "tie" for said in wanted.values())
    apart = statistics.median(abs(scores[one] - scores[other]) for one, other in wanted)
    yield (
        f"{scorer.name}: {counted(len(wanted), 'pair')}, {len(wanted) - ties} decided and {counted(ties, 'tie')} "
        f"(margin {margin:g}; half of the differences are below {apart:.3g}); {added} rated now, {replaced} otherwise "
        f"than before, {len(wanted) - added - replaced} as before"
    )
    own = [vote for vote in dataset.votes() if vote.rater == rater]
    for person in sorted({vote.rater for vote in people}):
        theirs = [vote for vote in people if vote.rater == person and prompts.keys() >= set(vote.pair)]
        yield agreement_text(scorer.name, person, agreement(own, theirs, prompts))


def _put(dataset: TasteDataset, rater: str, wanted: dict[Pair, str]) -> tuple[int, int]:
    """Brings a scorer's votes in force to what it says; how many are new, and how many replace another."""
    before = {vote.pair: vote for vote in dataset.votes() if vote.rater == rater}
    other = {pair: vote for pair, vote in before.items() if pair in wanted and _said(vote) != wanted[pair]}
    for vote in other.values():
        dataset.undo(vote.rating, rater)
    now = round(time.time(), 3)
    new = [
        # An id that nothing else has; a vote that was taken back keeps its own.
        Vote(secrets.token_hex(8), *pair, said, rater, now)
        for pair, said in wanted.items()
        if pair not in before or pair in other
    ]
    dataset.vote_all(new)
    return len(new) - len(other), len(other)


def _said(vote: Vote) -> str:
    """A vote's choice with the pictures in the order of their pair, however it was written."""
    if vote.chosen is None:
        return vote.choice
    return "left" if vote.chosen == vote.pair[0] else "right"
