"""What a table is made from: prompts by benchmark, and models beside the pair."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...runs.member_files import MemberFile
from ...runs.published import open_files
from ...runs.subjects import Subject, run_subject
from ...settings.config_file import load_config
from ...support.errors import UserError
from ..prompts import EvaluationPrompt
from .layout import OTHER_MODELS
from .paper import BENCHMARKS, GENEVAL

# Where each benchmark's prompts are.
PROMPT_FILES = {
    "anime": "HPS v2's anime.json",
    "concept-art": "HPS v2's concept-art.json",
    "paintings": "HPS v2's paintings.json",
    "photo": "HPS v2's photo.json",
    "geneval": "GenEval's evaluation_metadata.jsonl",
    "dpg": "DPG-Bench's folder of prompts",
}
assert tuple(PROMPT_FILES) == BENCHMARKS
# How a row is sampled, whatever the run of its model was told.
SAMPLING = ("resolution", "null_prompt")


def by_benchmark(prompts: Iterable[EvaluationPrompt]) -> dict[str, list[EvaluationPrompt]]:
    """The prompts of each benchmark that has any, in their order; what is of none is left out."""
    found: dict[str, list[EvaluationPrompt]] = {}
    for prompt in prompts:
        if (benchmark := _benchmark(prompt)) is not None:
            found.setdefault(benchmark, []).append(prompt)
    return found


def _benchmark(prompt: EvaluationPrompt) -> str | None:
    if prompt.group in GENEVAL and "include" in prompt.metadata:
        return "geneval"
    if "item_id" in prompt.metadata:
        return "dpg"
    style = prompt.group.lower().replace("_", "-").replace(" ", "-")
    return style if style in BENCHMARKS[:4] else None


def open_models(specs: Sequence[str], pair: Subject) -> dict[str, Subject]:
    """The models of further rows, each ``name=source``: a run's YAML, or a file or folder as `--pair` takes them, two
    with a comma for a pair.

    Args:
        pair: whose base and way to sample they share.

    Raises:
        UserError: for a name that no row has, or files that cannot be used.
    """
    found: dict[str, Subject] = {}
    for spec in specs:
        name, separator, source = spec.partition("=")
        if name not in OTHER_MODELS or not source:
            near = difflib.get_close_matches(name, OTHER_MODELS, n=1)
            hint = f"; did you mean {near[0]}=…?" if near and separator else ""
            raise UserError(f"`--model` is `{spec}`; give one of {', '.join(OTHER_MODELS)} as NAME=PATH{hint}")
        if name in found:
            raise UserError(f"`--model` names {name} twice; name it once")
        found[name] = _open(name, source, pair)
        wanted = 2 if name == "two_models_without_reference" else 1
        if found[name].models != wanted:
            raise UserError(
                f"`--model` is `{spec}`, which has {found[name].models} models where {name} has {wanted}; "
                f"give {name}={'PREFERRED,DISPREFERRED' if wanted == 2 else 'PATH'}"
            )
    return found


def _open(name: str, source: str, pair: Subject) -> Subject:
    if source.endswith((".yaml", ".yml")):
        config = load_config(Path(source).expanduser())
        if config.objective != name:
            raise UserError(f"`--model` is `{name}={source}`, whose `objective` is {config.objective}; name it so")
        update = {setting: getattr(pair.config, setting) for setting in SAMPLING}
        return run_subject(config.model_copy(update=update), "latest")
    files = [MemberFile(Path(part).expanduser(), "--model") for part in source.split(",")]
    return open_files(f"{name} {source}", files, pair.config)
