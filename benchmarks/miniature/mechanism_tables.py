"""Of the miniature: the mechanism's numbers as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .choices import base_scale, base_trainings
from .measured import Measured
from .plan import Entry, Training
from .titles import method_title


def mechanism_table(measured: Measured, regime: str) -> list[list[str]]:
    """A line for each method: lengths of its members' shifts from the base's prediction, cosines between them, the
    proxy form's cosine, and on dev what the dispreferred model alone draws at the base's scale."""
    table = [
        [
            "method",
            "preferred: prompt / null",
            "dispreferred: prompt / null",
            "cosine, members, prompt",
            "cosine, members, null",
            "cosine, preferred, prompt and null",
            "proxy's cosine",
            "dispreferred alone, dev: right / taste",
        ]
    ]
    scale = base_scale(measured.plan, measured.records, regime)
    assert scale is not None, "a regime is told only after its base"
    base = measured.records.mean(base_trainings(regime, range(measured.plan.seeds)), "cfg", scale)
    assert base is not None, "a regime is told only after its base"
    table.append(["base", *[""] * 6, f"{100 * base.right:.1f} / {base.taste:.3f}"])
    for entry, trainings in told(measured, regime):
        rows = [measured.records.rows[f"mechanism {each.name}"] for each in trainings]
        cells = [
            " / ".join(level(rows, "shifts", f"{member} {kind}") for kind in ("prompt", "null"))
            if f"{member} prompt" in rows[0]["shifts"]
            else ""
            for member in ("preferred", "dispreferred")
        ]
        for pair in (
            "preferred prompt, dispreferred prompt",
            "preferred null, dispreferred null",
            "preferred prompt, preferred null",
        ):
            cells.append(level(rows, "cosines", pair) if pair in rows[0]["cosines"] else "")
        cells.append(level(rows, "proxy", "cosine") if "proxy" in rows[0] else "")
        alone = measured.records.mean(trainings, "dispreferred", scale) if entry.method.is_pair else None
        cells.append(f"{100 * alone.right:.1f} / {alone.taste:.3f}" if alone else "")
        table.append([method_title(entry.method), *cells])
    return table


def weights_table(measured: Measured, regime: str) -> list[list[str]]:
    """How far each member's weights moved, in percent of their norm, and what share of the squared way is in which
    parts; the shift's length at the least and the most noise."""
    found = []
    parts: dict[str, None] = {}
    for entry, trainings in told(measured, regime):
        rows = [measured.records.rows[f"mechanism {each.name}"] for each in trainings]
        for member, way in rows[0].get("weights", {}).items():
            parts |= dict.fromkeys(way["parts"])
            found.append((entry, member, rows))
    table = [["method", "member", "moved, % of the norm", *parts, "shift at least / most noise"]]
    for entry, member, rows in found:
        moved = mean([row["weights"][member]["relative"] for row in rows])
        shares = [f"{100 * mean([row['weights'][member]['parts'][part] for row in rows]):.0f} %" for part in parts]
        ends = [mean([row["shifts"][f"{member} prompt"][place] for row in rows]) for place in (0, -1)]
        table.append(
            [method_title(entry.method), member, f"{100 * moved:.2f}", *shares, "{:.3f} / {:.3f}".format(*ends)]
        )
    return table


def told(measured: Measured, regime: str) -> list[tuple[Entry, tuple[Training, ...]]]:
    """The entries whose mechanism was measured with every seed."""
    found = []
    for entry, settings in measured.settings.items():
        trainings = measured.trainings(entry, settings)
        if entry.regime == regime and all(f"mechanism {each.name}" in measured.records.rows for each in trainings):
            found.append((entry, trainings))
    return found


def level(rows: Sequence[Any], group: str, name: str) -> str:
    """A number's mean over seeds, and over noise levels where it has some."""
    values = [row[group][name] for row in rows]
    flat = [mean(value) if isinstance(value, list) else value for value in values]
    return f"{mean(flat):.3f}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
