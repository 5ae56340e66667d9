"""The miniature's tables and the text around them, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .choices import TOLERANCE
from .measured import FLIPS, Difference, Measured
from .mechanism_tables import mechanism_table, weights_table
from .plan import ALL_IMAGES, BASE, CHATS, DPO, MATCHED, PAIR, REGIMES, SUPERVISED
from .search_table import search_table
from .tables import (
    category_table,
    difference_table,
    finder,
    further_table,
    made,
    main_rows,
    main_table,
    settings_table,
)
from .titles import as_markdown

REGIME_TEXTS = {
    "makers": "**Makers**: the weak base; pairs made by a source that draws better than it does, the rejected too.",
    "own": "**Own**: the weak base; it draws the pairs itself, the best against the worst of {candidates}.",
    "strong": "**Strong base**: the bundled base, which needs little guidance; the pairs of *makers*. A search of its "
    "own, 24 trainings, was cut to keep to five hours of one core.",
    "low": "**Another taste**: the weak base; pairs of makers whose taste is the layout (things at the foot of the "
    "picture).",
}


def report(results: Mapping[str, Any], plot: str) -> str:
    """The whole report; ``plot`` is the plot's file name."""
    measured = Measured(results)
    # What is compared is all said before any of it is written: the correction needs to know how much it is.
    tables = {regime: (main_rows(measured, regime), comparisons(measured, regime)) for regime in measured.regimes}
    further = [difference for make in (sizes, loras) for difference in make(measured)]
    for rows, _ in tables.values():
        for row in rows[1:]:
            measured.difference(row, rows[0])
    parts = ["# The paper's claims in miniature", heading(measured), f"![Right and taste, by regime]({plot})"]
    for regime, (rows, differences) in tables.items():
        parts += [
            f"## {regime.capitalize()}",
            REGIME_TEXTS[regime].format(candidates=measured.plan.candidates) + " " + pairs_text(measured, regime),
            as_markdown(main_table(measured, rows)),
            "Compared, the first less the second:",
            as_markdown(difference_table(measured, differences)),
            "What was chosen on dev:",
            as_markdown(settings_table(measured, regime)),
            *searched(measured, regime),
            "How the members moved:",
            as_markdown(mechanism_table(measured, regime)),
            as_markdown(weights_table(measured, regime)),
            "Percent right by category:",
            as_markdown(category_table(measured, rows)),
        ]
    if further:
        parts += [
            "## Data and LoRA",
            "In *makers*: fewer pairs, with the settings of all of them; LoRAs, where there are any, with their own. "
            "Scales are fewer than on all pairs, those of the search.",
            as_markdown(further_table(measured)),
            as_markdown(difference_table(measured, further)),
        ]
    return "\n\n".join(parts)


def searched(measured: Measured, regime: str) -> list[str]:
    """What the search saw, in a regime that has one."""
    if REGIMES[regime].settings_of is not None:
        return []
    said = "Searched, without the early stops: means over the conditions and scales of the search, with the first seed:"
    return [said, as_markdown(search_table(measured, regime))]


def heading(measured: Measured) -> str:
    plan, results = measured.plan, measured.results
    trained = {entry.method.training_method for entry in plan.entries}
    rates, betas = (
        "; ".join(f"{method}: {listed(values)}" for method, values in searched.items() if method in trained)
        for searched in (plan.rates, plan.betas)
    )
    lent = [name.capitalize() for name in measured.regimes if REGIMES[name].settings_of == "makers"]
    left = [f"{entry.regime} {entry.method.name}" for entry in plan.entries if entry not in measured.settings]
    sentences = (
        f"`python -m benchmarks.miniature --plan {plan.name}`, {results['date']}, on "
        f"{' and '.join(results['machines'])}: {results['hours']} hours of one core, in all.",
        f"{plan.seeds} training seeds, each with noise of its own; {plan.train_steps} steps of "
        f"{plan.train_batch_size} pairs. Dev has {plan.dev_prompts} texts and test {plan.test_prompts}, all of them "
        "different, and none had a pair.",
        "*Right* is the share of pictures that show what was asked, in percent; *taste* is 0 to 1 and says nothing of "
        "the prompt. Standard errors are over texts; p-values are from sign flips of paired differences, corrected "
        f"by Holm's method for all {2 * len(measured.differences)} comparisons on this page, with {FLIPS} flips each: "
        f"{2 * len(measured.differences) / (1 + FLIPS):.3f} is the least that one can have.",
        "\n\nChosen on dev, by one rule for all rows: the most taste among what is right at least as often as the base "
        f"at its best guidance, less {100 * TOLERANCE:g} points; where nothing is, the most right.",
        f"Searched for every method with the first seed, at s = {listed(plan.searched_scales)}: learning rates "
        f"({rates}), and where there is one β ({betas}); Diffusion-DPO is also stopped early, after "
        f"{listed(plan.stops)} of its steps.",
        "A pair's settings are chosen by α = 0 and the proxy form; its other rows, and *the base as the negative* of "
        "every method, are counted at these settings. s is then chosen for each row, over all seeds.",
        *(f"*{name}* takes rates and β of *makers*." for name in lent),
        f"*Matched* is CHATS trained for as many steps as make up for its gate, {plan.most_steps} at most.",
        f"Not done, for lack of time: {', '.join(left)}." if left else "",
    )
    return " ".join(sentences).replace(" \n\n", "\n\n").strip()


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def pairs_text(measured: Measured, regime: str) -> str:
    pairs = measured.records.rows[f"pairs {regime}"]["pairs"]
    sides = [
        f"{side} {100 * pairs[side]['right']:.0f} % right, taste {pairs[side]['taste']:.2f}"
        for side in ("chosen", "rejected", "source")
        if side in pairs
    ]
    return f"{pairs['pairs']} pairs: " + "; ".join(sides).replace("source", "all that was drawn") + "."


def comparisons(measured: Measured, regime: str) -> list[Difference]:
    """The paper's claims, and the base as the negative. CHATS stands with its default, the proxy form at α = 0.5."""
    find = finder(measured, regime)
    exact = find(CHATS, "exact")
    wanted = [
        (find(CHATS, "proxy"), find(DPO, "cfg")),
        (find(CHATS, "proxy"), find(SUPERVISED, "cfg")),
        (find(SUPERVISED, "cfg"), find(ALL_IMAGES, "cfg")),
        (find(PAIR, "alpha0"), find(SUPERVISED, "cfg")),
        (find(CHATS, "alpha0"), find(CHATS, "cfg")),
        (find(CHATS, "alpha0"), find(PAIR, "alpha0")),
        (find(MATCHED, "alpha0"), find(PAIR, "alpha0")),
        (find(CHATS, "proxy"), find(CHATS, "alpha0")),
        (find(PAIR, "proxy"), find(PAIR, "alpha0")),
        *(((exact, other) for other in measured.beside_exact(exact)) if exact else ()),
        *((find(method, "base_negative"), find(method, "alpha0")) for method in (CHATS, PAIR)),
        *((find(method, "base_negative"), find(method, "cfg")) for method in (SUPERVISED, DPO)),
        (find(SUPERVISED, "base_negative"), find(CHATS, "proxy")),
        (find(SUPERVISED, "base_negative"), find(PAIR, "proxy")),
    ]
    return made(measured, wanted)


def sizes(measured: Measured) -> list[Difference]:
    """CHATS against Diffusion-DPO on as many pairs and on all, each against itself on all; and the negatives."""
    find = finder(measured, "makers")
    all_pairs = measured.plan.pairs
    wanted = []
    for count in sorted({entry.method.pairs for entry in measured.settings} - {all_pairs}):
        chats, dpo = find(replace(CHATS, pairs=count), "proxy"), find(replace(DPO, pairs=count), "cfg")
        wanted += [(chats, dpo), (chats, find(DPO, "cfg")), (chats, find(CHATS, "proxy")), (dpo, find(DPO, "cfg"))]
        sized = replace(CHATS, pairs=count)
        wanted.append((find(sized, "base_negative"), find(sized, "alpha0")))
    return made(measured, wanted)


def loras(measured: Measured) -> list[Difference]:
    find = finder(measured, "makers")
    chats, dpo, supervised = (replace(each, training_method="lora") for each in (CHATS, DPO, SUPERVISED))
    wanted = [
        (find(chats, "proxy"), find(dpo, "cfg")),
        (find(chats, "proxy"), find(supervised, "cfg")),
        (find(chats, "proxy"), find(CHATS, "proxy")),
        (find(chats, "proxy"), find(BASE, "cfg")),
        (find(chats, "base_negative"), find(chats, "alpha0")),
        (find(supervised, "base_negative"), find(supervised, "cfg")),
    ]
    return made(measured, wanted)
