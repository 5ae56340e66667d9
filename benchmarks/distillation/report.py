"""The study of distillation in Markdown: its tables, the text around them, and the tables of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..miniature.measured import QUANTITIES
from ..miniature.plan import ALPHA
from ..miniature.tables import Table, shown
from ..miniature.titles import as_markdown
from .measured import Measured, Row
from .plan import REGIMES, SEARCHED, pair_training, rate_unit, units

PAIRED = ["right − pair's", "taste − pair's", "right − base's", "taste − base's"]


def report(results: Mapping[str, Any], plot: str) -> str:
    """The whole report; ``plot`` is the plot's file name."""
    measured = Measured(results)
    rates, picture = as_markdown(rate_table(measured)), f"![What is lost by steps]({plot})"
    parts = ["# One LoRA instead of the pair", heading(measured), rates, picture]
    for regime in REGIMES:
        rows = all_rows(measured, regime)
        parts += [
            f"## {regime.capitalize()}",
            pair_text(measured, regime),
            as_markdown(main_table(measured, regime, rows)),
            "After the last step, less the LoRA of the defaults with the same seeds:",
            as_markdown(default_table(measured, regime)),
            "The differences of each training seed:",
            as_markdown(seed_table(measured, regime)),
            "On dev, and the pictures' distance from the pair's:",
            as_markdown(dev_table(measured, rows)),
        ]
        if len(measured.at_scales(regime)) > 1:
            parts += ["By the pair's guidance scale, the first seed alone:", as_markdown(scale_table(measured, regime))]
    return "\n\n".join(parts)


def heading(measured: Measured) -> str:
    plan, results, left = measured.plan, measured.results, not_done(measured)
    sentences = (
        f"`python -m benchmarks.distillation --plan {plan.name}`, {results['date']}, on "
        f"{' and '.join(results['machines'])}: {results['minutes']} minutes of one core, in all.",
        f"{len(plan.seeds)} pairs of whole models in each regime, trained and sampled as the miniature chose "
        f"(`benchmarks/miniature/results.md`), with α = {ALPHA:g} in the proxy form. Each is distilled into one model "
        f"by the trainer's `distill`, {plan.steps} steps of {plan.batch_size}; what stands at fewer steps is the same "
        "distillation on its way there, at a learning rate that is not at its end yet. Students are sampled alone at "
        "cfg 1: one pass a step, where the pair and CFG have two.",
        f"Counted on the miniature's {plan.world.test_prompts} texts of test, each training seed with noise of its "
        "own, which is the same for base, pair and student. *Right* is in percent, *taste* 0 to 1; standard errors are "
        "over texts, differences paired picture by picture; no error is widened for how many rows are compared.",
        "*Distance* is the mean square of the difference from the pair's pictures, of values from −1 to 1. *Error "
        f"left* is what the student has not learned of what the guidance adds: its loss on what it trains on over the "
        f"preferred model's, in the mean of the last {plan.steps // 8} steps.",
        "\n\nA LoRA has the layers that `distill` gives it by default, and starts as the preferred model as nearly as "
        "its rank allows. *On the pair's pictures*: noised latents of a picture that the pair drew of each of the "
        "pairs' prompts, in place of the chosen images. *On the pair's paths*: the points at which its sampler asked "
        "for those; noise levels differ within a batch, and are those of the sampler that the student is counted with.",
        f"\n\nCut, for lack of time: all but LoRAs of rank {plan.rank} on the pairs are counted after the last step "
        "alone, and rows that say so have fewer training seeds; their differences are from the pair and the base of "
        "those.",
        *([f"Planned, and not done with every seed in both regimes: {', '.join(left)}."] if left else []),
        f"\n\nNothing is chosen here: LoRAs train at {plan.rate:g} and whole models at {plan.full_rate:g}, the "
        f"defaults of `distill`. Other rates were tried on dev, at rank {plan.rank} with the first seed of "
        f"*{SEARCHED}*:",
    )
    return " ".join(sentences).replace(" \n\n", "\n\n")


def not_done(measured: Measured) -> list[str]:
    left = [unit.student.name for unit in units(measured.plan) if unit.student and unit.name not in measured.records]
    return list(dict.fromkeys(left))


def pair_text(measured: Measured, regime: str) -> str:
    training, pair = pair_training(regime, 0, measured.plan), measured.pair(regime)
    settings = training.settings
    return (
        f"The pairs: CHATS, {settings.steps} steps at {settings.rate:g}, β = {settings.beta:g}; s = "
        f"{pair.units[0].scale:g}. The base: s = {measured.base(regime).units[0].scale:g}."
    )


def counts(measured: Measured, row: Row) -> list[str]:
    return [shown(measured.estimate(row, name), name) for name in QUANTITIES]


def differences(measured: Measured, left: Row, right: Row) -> list[str]:
    """Cells: right and taste; empty for a row beside itself."""
    if left == right:
        return [""] * len(QUANTITIES)
    return [shown(measured.difference(left, right, name), name, "+") for name in QUANTITIES]


def main_table(measured: Measured, regime: str, rows: Sequence[Row]) -> Table:
    base, pair = measured.base(regime), measured.pair(regime)
    table = [["", "passes a step", "% right", "taste", *PAIRED]]
    for row in rows:
        passes = "2" if row in (base, pair) else "1"
        beside = differences(measured, row, pair) + differences(measured, row, base)
        table.append([row.title, passes, *counts(measured, row), *beside])
    return table


def default_table(measured: Measured, regime: str) -> Table:
    default = measured.default(regime)
    table = [["", "right", "taste", "distance, test"]]
    for row in measured.students(regime):
        if row.point == default.point and row != default:
            beside = Row("", default.units[: len(row.units)], default.point)
            far = [measured.mean(each, "test", "distance") for each in (row, beside)]
            assert far[0] is not None
            assert far[1] is not None
            table.append([row.title, *differences(measured, row, default), f"{far[0] - far[1]:+.4f}"])
    return table


def seed_table(measured: Measured, regime: str) -> Table:
    """Less the pair's, by training seed."""
    pair = measured.pair(regime)
    table = [["", "right − pair's", "taste − pair's"]]
    for row in measured.students(regime):
        cells = []
        for name in QUANTITIES:
            factor, digits = (100, 1) if name == "right" else (1, 3)
            found = [
                measured.difference(Row("", (unit,), row.point), Row("", (of_pair,), "pair"), name).mean
                for unit, of_pair in zip(row.units, pair.units[: len(row.units)], strict=True)
            ]
            cells.append(", ".join(f"{factor * each:+.{digits}f}" for each in found))
        table.append([row.title, *cells])
    return table


def rate_table(measured: Measured) -> Table:
    """Of the first seed, after the last step; the pair at the end."""
    plan = measured.plan
    point = str(plan.steps)
    found = {rate: Row("", (rate_unit(plan, rate),), point) for rate in plan.other_rates}
    found[plan.rate] = Row("", measured.default(SEARCHED).units[:1], point)
    rows = {f"{rate:g}": row for rate, row in sorted(found.items())}
    rows["the pair"] = Row("", measured.pair(SEARCHED).units[:1], "pair")
    table = [["learning rate", "% right, dev", "taste, dev", "distance, dev"]]
    for name, row in rows.items():
        right, taste, distance = (measured.mean(row, "dev", key) for key in ("right", "taste", "distance"))
        assert right is not None
        assert taste is not None
        far = "" if distance is None else f"{distance:.4f}"
        table.append([name, f"{100 * right:.1f}", f"{taste:.3f}", far])
    return table


def dev_table(measured: Measured, rows: Sequence[Row]) -> Table:
    head = ["", "% right, dev", "taste, dev", "distance, dev", "distance, test", "error left"]
    table = [head]
    for row in rows:
        right, taste, *others = (
            measured.mean(row, *keys)
            for keys in (("dev", "right"), ("dev", "taste"), ("dev", "distance"), ("test", "distance"), ("error_left",))
        )
        assert right is not None
        assert taste is not None
        cells = ["" if value is None else f"{value:.4f}" for value in others]
        table.append([row.title, f"{100 * right:.1f}", f"{taste:.3f}", *cells])
    return table


def scale_table(measured: Measured, regime: str) -> Table:
    table = [["s", "pair: % right", "pair: taste", "LoRA: % right", "LoRA: taste", *PAIRED[:2], "distance"]]
    for scale, pair, student in measured.at_scales(regime):
        cells = [*counts(measured, pair), *counts(measured, student), *differences(measured, student, pair)]
        table.append([f"{scale:g}", *cells, f"{measured.mean(student, 'test', 'distance'):.4f}"])
    return table


# For the docs.


def short_table(measured: Measured, regime: str) -> str:
    """A regime's table as the docs have it."""
    return as_markdown(main_table(measured, regime, all_rows(measured, regime)))


def all_rows(measured: Measured, regime: str) -> list[Row]:
    return [measured.base(regime), measured.pair(regime), measured.preferred(regime), *measured.students(regime)]


def filled(page: str, results: Mapping[str, Any]) -> str:
    """A page of the docs with each regime's table anew, between `<!-- table: distilled, REGIME -->` and its end."""
    measured = Measured(results)
    for regime in REGIMES:
        start, end = f"<!-- table: distilled, {regime} -->", "<!-- end of table -->"
        before, found, after = page.partition(start)
        if found:
            page = f"{before}{start}\n{short_table(measured, regime)}\n{end}{after.partition(end)[2]}"
    return page
