"""Each table's rows and columns, in the paper's order, and what has to be drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chats.guidance import DEFAULT_ALPHA, DEFAULT_GUIDANCE_SCALE

from ...support.errors import UserError
from ..conditions import Condition
from .paper import BATCH_SIZES, CHATS, DIT, DPG, DPO, GENEVAL, MODELS, SDXL, STANDARD, Quantity

# What a row can be drawn with beside the pair itself: named as objectives in a config are.
OTHER_MODELS = ("diffusion_dpo", "supervised_all", "supervised_chosen", "two_models_without_reference")
PAIR = "pair"
# Pictures for each prompt, in the paper for GenEval and in DPG-Bench's own protocol.
BENCHMARK_SEEDS = 4
# Of Figure 5; the paper's own points are not in its text.
FIGURE_ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Column:
    """A column: its title, what it holds, and how our figure becomes one in the paper's unit."""

    title: str
    quantity: Quantity
    factor: float = 1.0
    decimals: int = 2


@dataclass(frozen=True)
class Method:
    """A row of one model: its title, which models it is drawn with (``PAIR`` or one of ``OTHER_MODELS``), how, and the
    paper's row that is the same, where it has another title."""

    title: str
    models: str
    condition: Condition
    same_as: str | None = None


@dataclass(frozen=True)
class Layout:
    """A table.

    Attributes:
        name: as `--table` takes it.
        models: of the paper's rows.
        seeds: pictures for each prompt, where the user states none.
    """

    name: str
    title: str
    models: tuple[str, ...]
    methods: tuple[Method, ...]
    columns: tuple[Column, ...]
    seeds: int = 1

    @property
    def benchmarks(self) -> frozenset[str]:
        """Whose prompts are drawn."""
        return frozenset(benchmark_of(column.quantity) for column in self.columns) - {THROUGHPUT}


THROUGHPUT = "throughput"


def benchmark_of(quantity: Quantity) -> str:
    """Whose prompts a quantity is of."""
    return quantity.scorer if quantity.scorer in ("geneval", "dpg", THROUGHPUT) else quantity.part


_S = DEFAULT_GUIDANCE_SCALE
_STANDARD = Method(STANDARD, PAIR, Condition("base", _S))
_DPO = Method(DPO, "diffusion_dpo", Condition("preferred", _S))
_CHATS = Method(CHATS, PAIR, Condition("pair", _S, DEFAULT_ALPHA, "proxy"))
_THREE = (_STANDARD, _DPO, _CHATS)
_TITLES = {
    "anime": "Anime",
    "concept-art": "Concept-Art",
    "paintings": "Paintings",
    "photo": "Photo",
    "geneval": "GenEval",
    "dpg": "DPG-Bench",
}
_GENEVAL_TITLES = ("Single object", "Two object", "Counting", "Colors", "Position", "Color attribution", "Overall")
# ImageReward is stated times 100.
_SCORER_TITLES = {"imagereward": ("ImageReward", 100.0), "hpsv2": ("HPSv2", 1.0), "pickscore": ("PickScore", 1.0)}


def _hps(part: str) -> Column:
    return Column(_TITLES[part], Quantity("hpsv2", part))


def _full(name: str, *parts: str) -> Layout:
    """Tables 7 to 9: two benchmarks, three scorers each."""
    columns = tuple(
        Column(f"{_TITLES[part]}: {title}", Quantity(scorer, part), factor)
        for part in parts
        for scorer, (title, factor) in _SCORER_TITLES.items()
    )
    title = f"Full aesthetic results on {' and '.join(_TITLES[part] for part in parts)}"
    return Layout(name, title, MODELS, _THREE, columns)


def _ablation() -> Layout:
    alone, both = Condition("preferred", _S), Condition("pair", _S, 0.0, "proxy")
    methods = (
        Method("single model (full data), s=5", "supervised_all", alone),
        Method("single model (preferred data), s=5", "supervised_chosen", alone),
        Method("two models (w/o ref), s=5", "two_models_without_reference", both),
        Method("two models, s=5", PAIR, both),
        Method("two models, s=5, α=0.5", PAIR, _CHATS.condition),
    )
    return Layout("4", "Ablation, prompts from Photo", (DIT,), methods, (Column("HPS v2", Quantity("hpsv2", "photo")),))


def figure_5(alphas: Sequence[float] = FIGURE_ALPHAS) -> Layout:
    """HPS v2 over α on its four styles; CHATS' own row of Table 1 is the one at α = 0.5."""
    methods = tuple(
        Method(f"α = {alpha:g}", PAIR, Condition("pair", _S, alpha, "proxy"), CHATS if alpha == DEFAULT_ALPHA else None)
        for alpha in dict.fromkeys(alphas)
    )
    columns = tuple(_hps(part) for part in ("anime", "concept-art", "paintings", "photo"))
    return Layout("figure5", "HPS v2 over α", (), methods, columns)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("1", "HPS v2 results on multiple benchmarks", MODELS, _THREE, tuple(map(_hps, _TITLES))),
        Layout(
            "2",
            "Quantitative results (%) on GenEval",
            MODELS,
            _THREE,
            tuple(
                Column(title, Quantity("geneval", part), 100.0)
                for part, title in zip(GENEVAL, _GENEVAL_TITLES, strict=True)
            ),
            BENCHMARK_SEEDS,
        ),
        Layout(
            "3",
            "Quantitative results (%) on DPG-Bench",
            MODELS,
            _THREE,
            tuple(Column(part.capitalize(), Quantity("dpg", part), 100.0) for part in DPG),
            BENCHMARK_SEEDS,
        ),
        _ablation(),
        Layout(
            "6",
            "Throughput, pictures a second",
            (SDXL, DIT),
            (_STANDARD, _CHATS),
            tuple(Column(f"bs={size}", Quantity(THROUGHPUT, str(size)), decimals=3) for size in BATCH_SIZES),
        ),
        _full("7", "anime", "concept-art"),
        _full("8", "paintings", "photo"),
        _full("9", "geneval", "dpg"),
        figure_5(),
    )
}


def layouts(names: Sequence[str], alphas: Sequence[float]) -> list[Layout]:
    """The tables of these names.

    Args:
        alphas: of Figure 5, where the user states some.

    Raises:
        UserError: for α without Figure 5: the tables have the paper's.
    """
    if alphas and "figure5" not in names:
        raise UserError("`--alpha` is of figure5 alone, the tables have the paper's; leave it out")
    found = [LAYOUTS[name] for name in dict.fromkeys(names)]
    return [figure_5(alphas) if layout.name == "figure5" and alphas else layout for layout in found]
