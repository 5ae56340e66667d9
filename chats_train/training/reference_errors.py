"""The reference's errors of draws that come again (`reference_draws`), each computed once and kept.

The reference is frozen, so its error on a pair depends on the draw alone. Where a pair's draws repeat after K epochs
there are K of them for each pair, and one for each pair that is measured on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from chats.draws import VALIDATION_EPOCH, Identified

from ..families import Family
from ..runs.processes import Processes
from ..settings.config import RunConfig

# With the data set's pairs, all that an error depends on.
SETTINGS = (
    "family seed null_prompt_prob null_prompt prediction_type reference_draws validation_pairs training_method "
    "weight_dtype base_quantization mixed_precision resolution enable_bucket bucket_reso_steps min_bucket_reso "
    "max_bucket_reso"
)

# How often a draw was trained on, at the most, where little was lost (benchmarks/reference_draws.md).
FEW_VISITS = 4

Picked = Sequence[tuple[int, Identified]]
SIDES = ("chosen_reference", "rejected_reference")


class ReferenceErrors:
    """A table of them, the same in all processes between steps.

    Args:
        draws: K.
        ids: of the pairs that are trained on; their order is the table's.
        measured: of those that are measured on, with one draw each.
    """

    def __init__(self, draws: int, ids: Sequence[str], measured: Sequence[str]):
        self.draws, self._trained = draws, len(ids)
        self._rows = {pair: row for row, pair in enumerate(chain(ids, measured))}
        # Of each draw and pair, the chosen side's and the rejected one's; NaN where it is not known.
        self.table = torch.full((draws * len(ids) + len(measured), len(SIDES)), float("nan"))
        # Rows of the table with a NaN, counted along: a step looks at its own rows alone.
        self._unknown = len(self.table)

    @property
    def complete(self) -> bool:
        """Whether all are known: the reference is then not asked any more."""
        return self._unknown == 0

    def draw_epoch(self, epoch: int) -> int:
        """The epoch whose draws a pair has."""
        return epoch if epoch == VALIDATION_EPOCH else epoch % self.draws

    def of(
        self, picked: Picked, compute: Callable[[], Mapping[str, Tensor]], wanted: Callable[[bool], bool] = bool
    ) -> dict[str, Tensor]:
        """d_ref of both sides of a batch, [batch] each, computed where some are not known; what is known stays.

        Args:
            wanted: of whether some are not known here, whether to compute: in shards, where it is so in any process.
        """
        places = self._places(picked)
        unknown = self.table[places].isnan().any(1)
        if wanted(bool(unknown.any())):
            computed = compute()
            errors = torch.stack([computed[side] for side in SIDES], dim=1)
            self._put(places[unknown], errors.float().cpu()[unknown])
        return dict(zip(SIDES, self.table[places].unbind(1), strict=True))

    def share(self, picked: Picked, processes: Processes) -> None:
        """Brings what each process computed of these to all."""
        if processes.count == 1:
            return
        places = self._places(picked)
        errors = self.table[places].double()
        known = ~errors.isnan()
        sums = processes.sum(torch.stack([errors.where(known, 0.0), known.double()]).to(processes.device)).cpu()
        # The mean of those that know it, who nearly always are one; NaN where none does.
        self._put(places, (sums[0] / sums[1]).float())

    def load(self, table: Tensor) -> None:
        """Those of a checkpoint."""
        self.table.copy_(table)
        self._unknown = self._unknown_of(slice(None))

    def _put(self, places: Tensor, errors: Tensor) -> None:
        # A pair that ends one epoch and begins the next may come twice in a step, with one draw.
        rows = places.unique()
        before = self._unknown_of(rows)
        self.table[places] = errors
        self._unknown += self._unknown_of(rows) - before

    def _unknown_of(self, rows: Tensor | slice) -> int:
        return int(self.table[rows].isnan().any(1).sum())

    def _places(self, picked: Picked) -> Tensor:
        base = self.draws * self._trained
        return torch.tensor(
            [
                base + self._rows[sample.id] - self._trained
                if epoch == VALIDATION_EPOCH
                else self.draw_epoch(epoch) * self._trained + self._rows[sample.id]
                for epoch, sample in picked
            ],
            dtype=torch.long,
        )


def repeats_note(config: RunConfig, pairs: int, pairs_per_step: int) -> str | None:
    """What the study of repeated draws says of a run that trains on so many pairs; None where it saw little harm."""
    draws = config.reference_draws
    epochs = config.max_train_steps * pairs_per_step / pairs
    if draws is None or epochs <= FEW_VISITS * draws:
        return None
    return (
        f"`reference_draws` is {draws} and the run visits a pair {epochs:.0f} times, so that each draw is trained on "
        f"{epochs / draws:.0f} times; in the study, 8 and more took away a third to a half of the right pictures, 2 to "
        f"{FEW_VISITS} up to a tenth (benchmarks/reference_draws.md): set it to {math.ceil(epochs / FEW_VISITS)} or "
        "more, or to null"
    )


def basis(config: RunConfig, family: Family, dataset_fingerprint: str) -> str:
    """Digest of all that the errors depend on: those of another basis are not to be used."""
    settings = config.model_dump_json(include=set(SETTINGS.split()))
    text = f"{settings} {family.fingerprint} {family.base_sha256} {dataset_fingerprint}"
    return hashlib.sha256(text.encode()).hexdigest()
