"""How often a scorer and a person say the same of a pair that both decided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from chats.taste.records import Pair, Vote
from chats.taste.tally import verdict

from ..evaluation.statistics import Estimate, estimate
from ..support.amounts import counted


def agreement(
    scorer: Iterable[Vote], person: Iterable[Vote], prompts: Mapping[str, str]
) -> tuple[Estimate | None, int]:
    """The share of pairs of which both say the same, over the pairs of which each names a better picture.

    Args:
        scorer: its votes in force.
        person: theirs; of a pair that was answered twice, differently, neither counts.
        prompts: by picture.

    Returns:
        the mean over prompts with its standard error, None where there is no such pair; and how many pairs the person
        decided and the scorer called a tie.
    """
    said, decided = _by_pair(scorer), _by_pair(person)
    shared = [(pair, chosen) for pair, chosen in decided.items() if chosen is not None and pair in said]
    ties = sum(said[pair] is None for pair, _ in shared)
    same = {
        (prompts[pair[0]], number): float(said[pair] == chosen)
        for number, (pair, chosen) in enumerate(shared)
        if said[pair] is not None
    }
    return (estimate(same) if same else None), ties


def _by_pair(votes: Iterable[Vote]) -> dict[Pair, str | None]:
    """The better picture of each pair; None where it was called a tie, or answered twice and differently."""
    by_pair: dict[Pair, list[Vote]] = {}
    for vote in votes:
        if vote.choice != "skip":
            by_pair.setdefault(vote.pair, []).append(vote)
    return {pair: verdict(told) for pair, told in by_pair.items()}


def agreement_text(scorer: str, person: str, found: tuple[Estimate | None, int]) -> str:
    """A line of the report."""
    share, ties = found
    also = f"; of {ties} more that {person} decided it says tie" if ties else ""
    if share is None:
        return f"{scorer} and {person}: no pair that both decided{also}"
    error = f" ± {100 * share.standard_error:.1f}"
    if math.isnan(share.standard_error):
        error = " (no error from one prompt)"
    elif share.mean in (0, 1):
        error = " (no error where all are alike)"
    pairs, prompts = counted(share.pictures, "pair"), counted(share.prompts, "prompt")
    return (
        f"{scorer} and {person}: the same choice in {100 * share.mean:.1f} %{error} of {pairs} that both decided, each "
        f"of {prompts} weighing the same{also}"
    )
