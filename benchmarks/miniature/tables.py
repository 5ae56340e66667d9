"""The miniature's tables, in Markdown's cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chats_train.demo.world import CATEGORIES
from chats_train.evaluation.statistics import Estimate

from .measured import Difference, Measured, Quantity, Row
from .plan import ALL_IMAGES, CHATS, DPO, MATCHED, PAIR, SUPERVISED, WITH_BETA, Condition, Entry, Method
from .titles import CONDITIONS, as_markdown, method_title
from .units import prompts_of

Table = list[list[str]]


def main_rows(measured: Measured, regime: str) -> list[Row]:
    """The base and all whole models on all pairs."""
    return [
        row
        for (name, _, _), row in measured.rows.items()
        if name == regime and row.method.pairs in (0, measured.plan.pairs) and row.method.training_method == "full"
    ]


def finder(measured: Measured, regime: str) -> Callable[[Method, Condition], Row | None]:
    def find(method: Method, condition: Condition) -> Row | None:
        sized = replace(method, pairs=method.pairs if method.pairs != CHATS.pairs else measured.plan.pairs)
        return measured.rows.get((regime, sized.name, condition))

    return find


def made(measured: Measured, wanted: Iterable[tuple[Row | None, Row | None]]) -> list[Difference]:
    """The differences of the rows that are there."""
    return [measured.difference(left, right) for left, right in wanted if left and right]


def main_table(measured: Measured, rows: Sequence[Row]) -> Table:
    """A line for each row, the base's first: what it came to, and how it differs from the base."""
    head = ["method", "sampled with", "s", "% right", "taste", "right − base's", "p", "taste − base's", "p"]
    table = [head]
    for row in rows:
        cells = [method_title(row.method), CONDITIONS[row.condition], f"{row.scale:g}", *counts(measured, row)]
        table.append([*cells, *(compared(measured, measured.difference(row, rows[0])) if row != rows[0] else [""] * 4)])
    return table


def counts(measured: Measured, row: Row) -> list[str]:
    return [shown(measured.estimate(row, "right"), "right"), shown(measured.estimate(row, "taste"), "taste")]


def compared(measured: Measured, difference: Difference) -> list[str]:
    """Cells: of each quantity the difference and its corrected p-value."""
    p_values = measured.corrected()
    cells = []
    for name, value in difference.estimates.items():
        p_value = p_values[difference.left, difference.right, name]
        cells += [shown(value, name, "+"), "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"]
    return cells


def shown(value: Estimate, quantity: Quantity, sign: str = "") -> str:
    """A share in percent, a taste as it is."""
    factor, digits = (100, 1) if quantity == "right" else (1, 3)
    return f"{factor * value.mean:{sign}.{digits}f} ± {factor * value.standard_error:.{digits}f}"


def difference_table(measured: Measured, differences: Sequence[Difference]) -> Table:
    table = [["", "less", "right", "p", "taste", "p", "right by seed", "taste by seed"]]
    for each in differences:
        seeds = [
            ", ".join(f"{factor * value:+.{digits}f}" for value in measured.by_seed(each, name))
            for name, factor, digits in (("right", 100, 1), ("taste", 1, 3))
        ]
        table.append([named(each.left), named(each.right), *compared(measured, each), *seeds])
    return table


def named(row: Row) -> str:
    return f"{method_title(row.method)} ({CONDITIONS[row.condition]}, s = {row.scale:g})"


def settings_table(measured: Measured, regime: str) -> Table:
    table = [["method", "learning rate", "β", "steps", "taken after", "mean gate"]]
    for entry, settings in measured.settings.items():
        if entry.regime == regime:
            beta = f"{settings.beta:g}" if entry.method.objective in WITH_BETA else ""
            gate = mean_gate(measured, entry)
            cells = [f"{settings.rate:g}", beta, f"{settings.steps}", f"{settings.stop}", gate]
            table.append([method_title(entry.method), *cells])
    return table


def mean_gate(measured: Measured, entry: Entry) -> str:
    rows = [
        measured.records.rows.get(f"train {each.run}") for each in measured.trainings(entry, measured.settings[entry])
    ]
    found = [row["metrics"]["mean_gate"] for row in rows if row and "mean_gate" in row["metrics"]]
    return f"{sum(found) / len(found):.3f}" if found else ""


def category_table(measured: Measured, rows: Sequence[Row]) -> Table:
    of_text = [prompt.category for prompt in prompts_of("test", measured.plan)]
    table = [["", *CATEGORIES], ["texts", *(str(of_text.count(category)) for category in CATEGORIES)]]
    for row in rows:
        found = measured.values(row, "right")
        cells = []
        for category in CATEGORIES:
            values = [value for (place, _), value in found.items() if of_text[int(place)] == category]
            cells.append(f"{100 * sum(values) / len(values):.0f}" if values else "")
        table.append([f"{method_title(row.method)}, {CONDITIONS[row.condition]}", *cells])
    return table


def further_table(measured: Measured) -> Table:
    """Fewer pairs, and LoRAs."""
    table = [["method", "sampled with", "s", "% right", "taste"]]
    main = {row for regime in measured.regimes for row in main_rows(measured, regime)}
    for row in measured.rows.values():
        if row not in main:
            table.append(
                [method_title(row.method), CONDITIONS[row.condition], f"{row.scale:g}", *counts(measured, row)]
            )
    return table


# For the docs.

SHORT_ROWS: tuple[tuple[Method, Condition], ...] = (
    (ALL_IMAGES, "cfg"),
    (SUPERVISED, "cfg"),
    (DPO, "cfg"),
    (PAIR, "alpha0"),
    (PAIR, "proxy"),
    (CHATS, "cfg"),
    (CHATS, "alpha0"),
    (CHATS, "proxy"),
    (CHATS, "exact"),
    (MATCHED, "proxy"),
    (CHATS, "base_negative"),
    (SUPERVISED, "base_negative"),
)


def docs_tables(results: Mapping[str, Any]) -> dict[str, str]:
    """By the name that a page of the docs calls it by: a regime's, of LoRAs, and of numbers of pairs."""
    measured = Measured(results)
    tables = {regime: short_table(measured, regime, SHORT_ROWS) for regime in measured.regimes}
    lora_rows = [(replace(method, training_method="lora"), condition) for method, condition in SHORT_ROWS]
    tables["LoRA"] = short_table(measured, "makers", lora_rows)
    tables["pairs"] = sizes_table(measured)
    return tables


def short_table(measured: Measured, regime: str, wanted: Iterable[tuple[Method, Condition]]) -> str:
    """The base and what there is of some rows, without p-values."""
    find = finder(measured, regime)
    base = main_rows(measured, regime)[0]
    table = [["", "sampled with", "s", "% right", "taste", "right − base's", "taste − base's"]]
    table.append(["base", CONDITIONS["cfg"], f"{base.scale:g}", *counts(measured, base), "", ""])
    for row in (find(*each) for each in wanted):
        if row:
            estimates = measured.difference(row, base).estimates
            cells = [shown(value, name, "+") for name, value in estimates.items()]
            start = [method_title(row.method), CONDITIONS[row.condition], f"{row.scale:g}"]
            table.append([*start, *counts(measured, row), *cells])
    return as_markdown(table)


# Whose figures stand beside each other for each number of pairs.
SIZED: tuple[tuple[Method, Condition], ...] = (
    (CHATS, "proxy"),
    (CHATS, "alpha0"),
    (CHATS, "base_negative"),
    (DPO, "cfg"),
    (replace(CHATS, training_method="lora"), "proxy"),
)


def pair_counts(measured: Measured) -> list[int]:
    return sorted({entry.method.pairs for entry in measured.settings})


def sizes_table(measured: Measured) -> str:
    """*Makers* by the number of pairs: right and taste."""
    find = finder(measured, "makers")
    titles = [f"{method_title(method)}, {CONDITIONS[condition]}" for method, condition in SIZED]
    table = [["pairs", *(f"{title}: {quantity}" for title in titles for quantity in ("% right", "taste"))]]
    for count in pair_counts(measured):
        rows = [find(replace(method, pairs=count), condition) for method, condition in SIZED]
        table.append([str(count), *(cell for row in rows for cell in (counts(measured, row) if row else ["", ""]))])
    return as_markdown(table)


def filled(page: str, results: Mapping[str, Any]) -> str:
    """A page of the docs with each table anew, between `<!-- table: NAME -->` and its end."""
    for name, table in docs_tables(results).items():
        start, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        before, found, after = page.partition(start)
        if found:
            page = f"{before}{start}\n{table}\n{end}{after.partition(end)[2]}"
    return page
