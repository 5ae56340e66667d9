"""What an extracted LoRA carries, weight by weight: as a table for a file and as lines for a screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

NOT_CARRIED = "not carried"


@dataclass(frozen=True)
class Layer:
    """One weight that differs, a row of the table. Errors are of what is in the file, its rounding included.

    ``change`` is ‖Δ‖ / ‖W‖ with W the weight that the LoRA goes on, ``retained_energy`` that of the truncation alone.
    """

    key: str
    form: str
    shape: tuple[int, ...]
    rank: int
    retained_energy: float
    relative_error: float
    change: float
    difference_norm: float


def summary(layers: Sequence[Layer], weights: int, table: str, worst: int = 10) -> list[str]:
    """The whole in a line, what is not carried, and the layers with the largest error.

    Args:
        layers: the weights that differ.
        weights: how many weights there are.
        table: the file that has all rows.
        worst: how many rows to show.
    """
    factors = sorted((layer for layer in layers if layer.form == "factors"), key=lambda layer: -layer.relative_error)
    left_out = [layer.key for layer in layers if layer.form == NOT_CARRIED]
    ranks = sorted({layer.rank for layer in factors})
    rank = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else "no factors"
    lines = [
        f"{len(layers)} of {weights} weights differ, {rank}, {overall_energy(layers):.2%} of the difference's energy"
    ]
    if left_out:
        lines.append(
            f"the difference of {len(left_out)} is NOT carried, since ComfyUI patches no such weight: "
            f"{', '.join(left_out)}"
        )
    if factors:
        lines += [f"the largest errors, all are in {table}:", "  rank  energy   error    change  weight"]
    return lines + [
        f"{layer.rank:6d} {layer.retained_energy:7.2%} {layer.relative_error:7.2%} {layer.change:9.2e}  {layer.key}"
        for layer in factors[:worst]
    ]


def overall_energy(layers: Sequence[Layer]) -> float:
    """1 − Σ ‖residual‖² / Σ ‖Δ‖² over all weights, those included that are not carried."""
    lost = sum((layer.relative_error * layer.difference_norm) ** 2 for layer in layers)
    return 1 - lost / sum(layer.difference_norm**2 for layer in layers)


def table_text(layers: Sequence[Layer]) -> str:
    """All rows as CSV, the largest error first."""
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Layer)], lineterminator="\n")
    rows.writeheader()
    for layer in sorted(layers, key=lambda layer: -layer.relative_error):
        rows.writerow({**asdict(layer), "shape": "x".join(map(str, layer.shape))})
    return text.getvalue()
