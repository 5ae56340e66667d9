"""Of the miniature: what is chosen on dev, paired comparisons on test, the tables and the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chats_train.evaluation.statistics import Estimate, PictureValues, estimate, paired_difference, sign_flip_p_value

from .trainings import ALPHA, PAIR, Method, Training

# What came of each training, by its name.
Records = dict[str, dict[str, Any]]
Results = Mapping[str, Any]
TITLES = {
    "base": "base",
    "supervised_all": "supervised, all images",
    "supervised_chosen": "supervised, chosen images",
    "two_models_without_reference": "two models without reference",
    "diffusion_dpo": "Diffusion-DPO",
    "chats": "CHATS",
}
CONDITIONS = {"cfg": "CFG", "alpha0": "α = 0", "proxy": f"α = {ALPHA}, proxy", "exact": f"α = {ALPHA}, exact"}
CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "colour attribution")


@dataclass(frozen=True)
class Point:
    """A method under a condition at a scale (the paper's s)."""

    row: str
    condition: str
    scale: float


# Choosing, on dev.


def best_rates(searched: Sequence[Training], records: Records) -> dict[Method, float]:
    """For each method the learning rate whose best condition is best on dev."""
    scores: dict[Method, dict[float, float]] = {}
    for training in searched:
        curves = records[training.name]["dev"].values()
        scores.setdefault(training.method, {})[training.learning_rate] = max(
            peak(shares([curve]))[1] for curve in curves
        )
    return {method: max(by_rate, key=by_rate.get) for method, by_rate in scores.items()}


def chosen_scales(trainings: Sequence[Training], records: Records) -> dict[str, float]:
    """For each method and condition, as `method/condition`, the scale that is best on dev, over all training seeds."""
    curves: dict[str, list[dict[str, str]]] = {}
    for training in trainings:
        for condition, curve in records[training.name]["dev"].items():
            curves.setdefault(f"{training.method.name}/{condition}", []).append(curve)
    return {name: peak(shares(each))[0] for name, each in curves.items()}


def test_points(method: Method, scales: Mapping[str, float]) -> list[tuple[str, float]]:
    """What to count on test: each condition at its own scale; at the exact form's also the proxy form, and α = 0 at
    (1+α) times it."""
    own = {condition: scales[f"{method.name}/{condition}"] for condition in method.conditions}
    points = list(own.items())
    if method.conditions == PAIR:
        points += [("proxy", own["exact"]), ("alpha0", round((1 + ALPHA) * own["exact"], 3))]
    return list(dict.fromkeys(points))


def shares(curves: Sequence[Mapping[str, str]]) -> dict[float, float]:
    """The share that is right at each scale, over some trainings."""
    return {
        float(scale): sum(curve[scale].count("1") for curve in curves) / sum(len(curve[scale]) for curve in curves)
        for scale in curves[0]
    }


def peak(by_scale: Mapping[float, float]) -> tuple[float, float]:
    """The scale with the highest mean over itself and its neighbours, which a lucky point moves less; and that mean."""
    scales, values = list(by_scale), list(by_scale.values())
    smooth = [
        sum(around) / len(around) for around in (values[max(0, index - 1) : index + 2] for index in range(len(values)))
    ]
    best = smooth.index(max(smooth))
    return scales[best], smooth[best]


# Comparing, on test.


def values(results: Results, point: Point, seed: int | None = None) -> PictureValues:
    """1 or 0 by picture, each named by its place and its training seed; of one training seed, or of all."""
    found = {}
    for training in results["trainings"]:
        if training["row"] == point.row and seed in (None, training["seed"]):
            bits = training["test"][point.condition][f"{point.scale:g}"]
            found |= {(str(place), training["seed"]): float(bit) for place, bit in enumerate(bits)}
    return found


def own(results: Results, row: str, condition: str = "cfg") -> Point:
    """A row's condition at the scale that was chosen for it."""
    return Point(row, condition, results["scales"][f"{row}/{condition}"])


def percent(value: Estimate, sign: str = "") -> str:
    return f"{100 * value.mean:{sign}.1f} ± {100 * value.standard_error:.1f}"


def compared(results: Results, left: Point, right: Point) -> list[str]:
    """Cells: difference with its standard error, its p-value, and the difference of each training seed, in points of
    percent."""
    ours, theirs = values(results, left), values(results, right)
    each = [
        paired_difference(values(results, left, seed), values(results, right, seed)).mean
        for seed in range(results["plan"]["seeds"])
    ]
    p_value = sign_flip_p_value(ours, theirs)
    cells = [percent(paired_difference(ours, theirs), "+"), "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"]
    return [*cells, ", ".join(f"{100 * difference:+.1f}" for difference in each)]


def title(results: Results, row: str) -> str:
    method = next(each["method"] for each in results["trainings"] if each["row"] == row)
    # One that was measured once and is no part of the trainer is called by its own words.
    parts = [TITLES.get(method["objective"], method["objective"])]
    if method["objective"] in ("chats", "diffusion_dpo"):
        parts.append(f"β = {method['beta']:g}")
    if method["pairs"]:
        parts.append(f"{method['pairs']} pairs" + (", LoRA" if method["training_method"] == "lora" else ""))
    return ", ".join(parts)


def main_table(results: Results) -> list[list[str]]:
    """A row for each method and condition."""
    table = [["method", "sampled with", "s", "% right", "against the base", "p", "by training seed"]]
    base = own(results, "base")
    for row in dict.fromkeys(training["row"] for training in results["trainings"]):
        for condition in next(each["dev"] for each in results["trainings"] if each["row"] == row):
            point = own(results, row, condition)
            against = ["", "", ""] if row == "base" else compared(results, point, base)
            share = percent(estimate(values(results, point)))
            table.append([title(results, row), CONDITIONS[condition], f"{point.scale:g}", share, *against])
    return table


def probe_table(results: Results) -> list[list[str]]:
    """The probe of the dispreferred models, and both forms at the exact one's scale."""
    table = [
        [
            "dispreferred model",
            "cosine",
            "relative error",
            "proxy − exact, at the exact form's s",
            "p",
            "by training seed",
        ]
    ]
    for row in dict.fromkeys(each["row"] for each in results["trainings"] if each["probe"]):
        probes = [each["probe"] for each in results["trainings"] if each["row"] == row]
        means = [f"{sum(probe[name] for probe in probes) / len(probes):.2f}" for name in ("cosine", "relative_error")]
        cells = ["", "", ""]
        if row != "base":
            exact = own(results, row, "exact")
            cells = compared(results, Point(row, "proxy", exact.scale), exact)
        table.append([title(results, row), *means, *cells])
    return table


def alpha_table(results: Results) -> list[list[str]]:
    """α = 0.5 against α = 0 where equal members would draw equal pictures: at equal (1+α)s."""
    table = [["pair", "exact, α = 0.5 at s", "α = 0 at s", "difference", "p", "by training seed"]]
    for row in dict.fromkeys(each["row"] for each in results["trainings"] if "exact" in each["test"]):
        exact = own(results, row, "exact")
        plain = Point(row, "alpha0", round((1 + ALPHA) * exact.scale, 3))
        table.append([title(results, row), f"{exact.scale:g}", f"{plain.scale:g}", *compared(results, exact, plain)])
    return table


def category_table(results: Results, points: Sequence[Point]) -> list[list[str]]:
    """Percent right by category; test takes the categories in turn."""
    table = [["", *CATEGORIES]]
    for point in points:
        found = values(results, point)
        cells = []
        for number in range(len(CATEGORIES)):
            bits = [value for (place, _), value in found.items() if int(place) % len(CATEGORIES) == number]
            cells.append(f"{100 * sum(bits) / len(bits):.0f}")
        table.append([f"{title(results, point.row)}, {CONDITIONS[point.condition]}", *cells])
    return table


def best_point(results: Results, row: str) -> Point:
    """A row's condition that is best on dev, at its scale; the preferred model alone is not one of a pair's."""
    trainings = [training for training in results["trainings"] if training["row"] == row]
    conditions = [condition for condition in trainings[0]["dev"] if condition != "cfg" or len(trainings[0]["dev"]) == 1]
    return own(
        results,
        row,
        max(conditions, key=lambda each: peak(shares([training["dev"][each] for training in trainings]))[1]),
    )


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def comparison_table(results: Results) -> list[list[str]]:
    """The paper's comparisons, each method with its best condition on dev."""
    rows = {training["row"]: training["method"] for training in results["trainings"]}

    def find(objective: str, training_method: str = "full", pairs: int | None = None) -> Point | None:
        wanted = pairs or max(method["pairs"] for method in rows.values())
        found = [
            best_point(results, row)
            for row, method in rows.items()
            if (method["objective"], method["training_method"], method["pairs"]) == (objective, training_method, wanted)
        ]
        return max(found, key=lambda point: dev_share(results, point)) if found else None

    sizes = sorted({method["pairs"] for method in rows.values() if method["pairs"]}, reverse=True)
    wanted = [
        (find("supervised_chosen"), find("supervised_all")),
        (find("diffusion_dpo"), find("supervised_chosen")),
        (find("two_models_without_reference"), find("supervised_chosen")),
        (find("chats"), find("two_models_without_reference")),
        (find("chats"), find("supervised_chosen")),
        *((find("chats", pairs=size), find("diffusion_dpo", pairs=size)) for size in sizes),
        (find("chats", "lora"), find("diffusion_dpo", "lora")),
        (find("chats", "lora"), find("supervised_chosen", "lora")),
        (find("chats", "lora"), find("chats")),
    ]
    table = [["", "less", "difference", "p", "by training seed"]]
    for left, right in wanted:
        if left and right:
            table.append([named(results, left), named(results, right), *compared(results, left, right)])
    return table


def dev_share(results: Results, point: Point) -> float:
    curves = [training["dev"][point.condition] for training in results["trainings"] if training["row"] == point.row]
    return peak(shares(curves))[1]


def named(results: Results, point: Point) -> str:
    return f"{title(results, point.row)} ({CONDITIONS[point.condition]}, s = {point.scale:g})"


def heading(results: Results) -> str:
    plan, pairs = results["plan"], results["pairs"]
    return (
        f"`python -m benchmarks.miniature`, {results['date']}, {results['machine']}: {results['process_minutes']} "
        "minutes of "
        f"processes, together. {plan['seeds']} training seeds. The base draws "
        f"{100 * pairs['right']:.0f} % of {pairs['drawn']} pictures right, which gave {pairs['pairs']} pairs. "
        f"{plan['train_steps']} steps "
        f"of {plan['train_batch_size']} pairs. Dev has {plan['dev_prompts']} prompts and test {plan['test_prompts']}, "
        "with noise of its "
        "own for each training seed. Percent right with standard errors over prompts; p from sign flips of the paired "
        "differences."
    )


def report(results: Results, plot: str) -> str:
    """The whole report in Markdown; ``plot`` is the plot's file name."""
    rows = list(dict.fromkeys(training["row"] for training in results["trainings"]))
    return "\n\n".join(
        [
            "# The paper's claims in miniature",
            heading(results),
            f"![Guidance, α and data]({plot})",
            as_markdown(main_table(results)),
            "Each method's best condition on dev, compared on test:",
            as_markdown(comparison_table(results)),
            "α, at equal (1+α)s:",
            as_markdown(alpha_table(results)),
            "The proxy form:",
            as_markdown(probe_table(results)),
            "By category:",
            as_markdown(category_table(results, [best_point(results, row) for row in rows])),
        ]
    )
