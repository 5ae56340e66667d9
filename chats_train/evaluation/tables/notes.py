"""What is said under a table: the base, how its figures were made, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...families import Family
from ...runs.subjects import Subject
from ..benchmark import Benchmark, Scorer
from .layout import Layout
from .paper import MODELS, PARAMETERS
from .throughput import device_name


def base_title(subject: Subject, family: Family) -> str:
    """The paper's model that the base is, by the number of its denoiser's parameters; else the base's own name."""
    count = family.parameter_counts()[family.facts.denoiser_part]
    name = Path(subject.config.pretrained_model).name
    return PARAMETERS.get(count, f"{name} (another)" if name in MODELS else name)


def base_notes(subject: Subject, family: Family, title: str) -> list[str]:
    config = subject.config
    if title in PARAMETERS.values():
        same = f"taken for the paper's {title} by its number of parameters; whose weights they are is not looked at"
    else:
        same = "none of the paper's, so no figure of the paper stands beside ours"
    return [
        f"base: {config.pretrained_model}, {same}",
        f"{config.resolution} × {config.resolution} px, {str(family.dtype).removeprefix('torch.')}, null prompt "
        f"{family.null_prompt_kind}; s and α as in the paper",
    ]


def how_it_was_made(layout: Layout, prompts: str, seeds: int, steps: int) -> list[str]:
    """Of Table 6 the device, of all others pictures and errors; ``prompts`` says how many of which benchmark."""
    if layout.name == "6":
        name = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return [f"measured on {name}, {steps} steps, from prompt to picture; the paper's is one A100"]
    return [
        f"prompts: {prompts or 'none'}; pictures for each: {seeds}; steps: {steps}",
        "errors are standard errors over prompts; of a difference ours alone, as the paper states none",
    ]


def scorer_notes(layout: Layout, scorers: Mapping[str, Scorer]) -> list[str]:
    """How the benchmarks that a table uses depart from their authors' code."""
    used = {column.quantity.scorer for column in layout.columns}
    return [note for key, each in scorers.items() if key in used and isinstance(each, Benchmark) for note in each.notes]


def subject_notes(layout: Layout, subjects: Mapping[str, Subject]) -> list[str]:
    """Which models the rows of a table are of."""
    used = {method.models for method in layout.methods}
    return [f"{key}: {subject.name}" for key, subject in subjects.items() if key in used]
