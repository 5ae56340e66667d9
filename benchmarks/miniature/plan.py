"""What the miniature compares: regimes, methods, settings, and how much of everything. Names of all of it are keys of
the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from chats_train.demo.taste import Taste

ALPHA = 0.5
# How a model or a pair is sampled: the trained model alone under CFG; a pair at α = 0 (CFG of two models), and at
# α = 0.5 in both forms; the preferred model with the untouched base as its negative, α = 0; the dispreferred alone.
Condition = Literal["cfg", "alpha0", "proxy", "exact", "base_negative", "dispreferred"]
# By which of them a method's settings are chosen. What follows from the same training is counted at these settings.
OWN_SINGLE: tuple[Condition, ...] = ("cfg",)
OWN_PAIR: tuple[Condition, ...] = ("alpha0", "proxy")
ALL_SINGLE: tuple[Condition, ...] = ("cfg", "base_negative")
ALL_PAIR: tuple[Condition, ...] = ("cfg", "alpha0", "proxy", "exact", "base_negative")
# Without the exact form; and without the preferred model alone.
NO_EXACT: tuple[Condition, ...] = ("cfg", "alpha0", "proxy", "base_negative")
SHORT_PAIR: tuple[Condition, ...] = ("alpha0", "proxy", "base_negative")

TWO_MODELS = ("chats", "two_models_without_reference")
WITH_BETA = ("chats", "diffusion_dpo")
DEFAULT_BETA = 1000.0


@dataclass(frozen=True)
class Regime:
    """A base and where its pairs come from. ``settings_of``: the regime whose learning rates and β it takes."""

    name: str
    weak_base: bool
    source: Literal["makers", "own"]
    taste: Taste
    settings_of: str | None = None


MAKERS = Regime("makers", True, "makers", "bold")
OWN = Regime("own", True, "own", "bold")
STRONG = Regime("strong", False, "makers", "bold", settings_of="makers")
LOW = Regime("low", True, "makers", "low", settings_of="makers")
REGIMES = {regime.name: regime for regime in (MAKERS, OWN, STRONG, LOW)}


@dataclass(frozen=True)
class Method:
    """What is trained, how, and on how many pairs; ``matched``: for as many steps as make up for its gate."""

    objective: str
    pairs: int = 480
    training_method: Literal["full", "lora"] = "full"
    matched: bool = False

    @property
    def name(self) -> str:
        parts = [self.objective, *(["matched"] if self.matched else []), self.training_method, str(self.pairs)]
        return "-".join(parts) if self.pairs else self.objective

    @property
    def is_pair(self) -> bool:
        return self.objective in TWO_MODELS

    @property
    def own_conditions(self) -> tuple[Condition, ...]:
        return OWN_PAIR if self.is_pair else OWN_SINGLE


# Trains nothing; its seeds are those of the noise alone.
BASE = Method("base", pairs=0)


@dataclass(frozen=True)
class Settings:
    """Of a training: ``steps`` is the length of its schedule, after ``stop`` of which it is taken."""

    rate: float = 0.0
    beta: float = DEFAULT_BETA
    steps: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Training:
    """One training of a method in a regime."""

    regime: str
    method: Method
    settings: Settings
    seed: int

    @property
    def run(self) -> str:
        """The run that it is taken from."""
        parts = [self.regime, self.method.name]
        if self.method.objective in WITH_BETA:
            parts.append(f"beta{self.settings.beta:g}")
        return "-".join([*parts, f"rate{self.settings.rate:g}", f"steps{self.settings.steps}", f"seed{self.seed}"])

    @property
    def name(self) -> str:
        return f"{self.run}@{self.settings.stop}" if self.method.pairs else f"{self.regime}-base-seed{self.seed}"


@dataclass(frozen=True)
class Entry:
    """A method in a regime, and what is counted of it; ``scales`` are the paper's s, tried on dev with every seed."""

    regime: str
    method: Method
    conditions: tuple[Condition, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """How much of everything. Entries are worked at in their order; ``rates`` and ``betas`` are by training method."""

    name: str
    entries: tuple[Entry, ...]
    seeds: int
    rates: dict[str, tuple[float, ...]]
    betas: dict[str, tuple[float, ...]]
    stops: tuple[float, ...]
    searched_scales: tuple[float, ...]
    base_scales: tuple[float, ...]
    pairs: int = 480
    candidates: int = 4
    pair_steps: int = 8
    pair_scale: float = 3.0
    train_steps: int = 140
    most_steps: int = 280
    train_batch_size: int = 16
    sample_steps: int = 10
    dev_prompts: int = 96
    test_prompts: int = 240


def steps_of(share: float, steps: int) -> int:
    """After how many steps an early stop is."""
    return max(1, round(share * steps))


def search(plan: Plan, method: Method) -> list[Settings]:
    """Every setting that is tried of a method, by the same rates for all; β and the early stop where there is one."""
    betas = plan.betas[method.training_method] if method.objective in WITH_BETA else (DEFAULT_BETA,)
    stops = plan.stops if method.objective == "diffusion_dpo" else (1.0,)
    return [
        Settings(rate, beta, plan.train_steps, steps_of(stop, plan.train_steps))
        for rate in plan.rates[method.training_method]
        for beta in betas
        for stop in stops
    ]


def settings_from(entry: Entry, plan: Plan) -> Entry:
    """The entry whose search gives an entry its settings: the same method on all pairs, in a regime that searches."""
    regime = REGIMES[entry.regime].settings_of or entry.regime
    return replace(entry, regime=regime, method=replace(entry.method, pairs=plan.pairs, matched=False))


# Neighbours are a factor of 1.5 apart: with α = 0.5, s at α and (1+α)s at α = 0 are both in the sweep.
SCALES = tuple(round(16 / 1.5**power, 3) for power in range(8, -1, -1))
FINE = SCALES[1:]
COARSE = SCALES[2:8:2]

SUPERVISED, ALL_IMAGES = Method("supervised_chosen"), Method("supervised_all")
DPO, PAIR, CHATS = Method("diffusion_dpo"), Method("two_models_without_reference"), Method("chats")
MATCHED = replace(CHATS, matched=True)
MAIN = (CHATS, DPO, SUPERVISED, PAIR)
TINY = tuple(replace(each, pairs=12) for each in (CHATS, DPO, SUPERVISED, MATCHED))


def entries(
    regime: Regime, methods: Iterable[Method], scales: tuple[float, ...], for_pairs: tuple[Condition, ...] = ALL_PAIR
) -> tuple[Entry, ...]:
    return tuple(Entry(regime.name, method, for_pairs if method.is_pair else ALL_SINGLE, scales) for method in methods)


def main_entries(regime: Regime) -> tuple[Entry, ...]:
    """A regime in full; the exact form is CHATS's alone."""
    return (
        *entries(regime, MAIN[:3], FINE),
        *entries(regime, MAIN[3:], FINE, NO_EXACT),
        *entries(regime, (ALL_IMAGES, MATCHED), FINE, SHORT_PAIR),
    )


def sizes(
    regime: Regime, counts: tuple[int, ...], scales: tuple[float, ...], for_pairs: tuple[Condition, ...] = SHORT_PAIR
) -> tuple[Entry, ...]:
    return tuple(
        Entry(regime.name, replace(method, pairs=count), for_pairs if method.is_pair else OWN_SINGLE, scales)
        for count in counts
        for method in (CHATS, DPO)
    )


def loras(regime: Regime, scales: tuple[float, ...], methods: Iterable[Method] = MAIN[:3]) -> tuple[Entry, ...]:
    return entries(regime, (replace(each, training_method="lora") for each in methods), scales, SHORT_PAIR)


FULL_RATES = (3e-5, 1e-4, 2e-4, 4e-4)
# Whole models were best at 100 wherever both were tried, so that LoRAs are tried at 100 alone.
BETAS = {"full": (100.0, 1000.0), "lora": (100.0,)}
STOPS = (0.25, 0.5, 1.0)
# Five hours of one core do not hold all: what was cut is the further plan's, and a search of its own for *strong*.
FULL_PLAN = Plan(
    "full",
    (
        *main_entries(MAKERS),
        *main_entries(OWN),
        *entries(STRONG, MAIN, FINE, NO_EXACT),
        *sizes(MAKERS, (60,), COARSE, OWN_PAIR),
        *sizes(MAKERS, (240, 120), COARSE),
        *loras(MAKERS, COARSE, (CHATS, SUPERVISED)),
        *entries(LOW, (CHATS,), COARSE, SHORT_PAIR),
        *loras(MAKERS, COARSE, (replace(CHATS, pairs=count) for count in (60, 120, 240))),
    ),
    seeds=3,
    rates={"full": FULL_RATES, "lora": (3e-4, 1e-3, 3e-3)},
    betas=BETAS,
    stops=STOPS,
    searched_scales=COARSE,
    base_scales=SCALES,
)
# In the order of its worth. It goes on from the full plan's records.
FURTHER_PLAN = replace(
    FULL_PLAN,
    name="further",
    entries=(
        *FULL_PLAN.entries,
        *loras(MAKERS, COARSE, (DPO,)),
        *entries(LOW, (DPO, SUPERVISED, PAIR), COARSE, SHORT_PAIR),
        *sizes(MAKERS, (60,), COARSE)[:1],
    ),
)
QUICK_PLAN = Plan(
    "quick",
    entries(MAKERS, MAIN, COARSE),
    seeds=1,
    rates={"full": (1e-4, 4e-4)},
    betas={"full": (100.0,), "lora": (100.0,)},
    stops=(1.0,),
    searched_scales=COARSE,
    base_scales=COARSE,
)
TINY_PLAN = Plan(
    "tiny",
    (
        *entries(MAKERS, TINY, COARSE[:2]),
        *entries(OWN, TINY[:1], COARSE[:2]),
        *entries(STRONG, TINY[:1], COARSE[:1]),
        *entries(LOW, TINY[:1], COARSE[:1], SHORT_PAIR),
        *sizes(MAKERS, (6,), COARSE[:1]),
        *loras(MAKERS, COARSE[:1], TINY[:1]),
    ),
    seeds=2,
    rates={"full": (1e-4, 4e-4), "lora": (1e-3,)},
    betas={"full": (100.0,), "lora": (100.0,)},
    stops=(0.25, 0.5, 1.0),
    searched_scales=COARSE[:1],
    base_scales=COARSE[:2],
    pairs=12,
    candidates=2,
    pair_steps=3,
    train_steps=4,
    most_steps=6,
    train_batch_size=4,
    sample_steps=2,
    dev_prompts=6,
    test_prompts=12,
)
PLANS = {plan.name: plan for plan in (FULL_PLAN, FURTHER_PLAN, QUICK_PLAN, TINY_PLAN)}
