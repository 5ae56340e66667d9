"""The prompts to evaluate on: a text file, GenEval's evaluation_metadata.jsonl, DPG-Bench's folder of one text file a
prompt, or HPS v2's lists, one JSON file for each style."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..support.errors import UserError


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt, the group it is reported in (HPS v2's style, GenEval's category, `dpg`, else the file's name), and what
    else its file says of it, for scorers that need more than the text (GenEval's `include`, DPG-Bench's `item_id`)."""

    text: str
    group: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_prompts(paths: Iterable[Path]) -> tuple[list[EvaluationPrompt], int]:
    """The prompts of all files in their order, each text once.

    A repeated text would draw the same pictures again, and count as new evidence what is the old.

    Returns:
        the prompts, and how many repetitions were left out.

    Raises:
        UserError: when a file cannot be read as one of the formats, or there is no prompt at all.
    """
    paths = list(paths)
    found = [prompt for path in paths for prompt in _read(path)]
    if not found:
        raise UserError(f"`--prompts` is {', '.join(map(str, paths))}, which has no prompt; write one a line")
    unique: dict[str, EvaluationPrompt] = {}
    for prompt in found:
        unique.setdefault(prompt.text, prompt)
    return list(unique.values()), len(found) - len(unique)


def _read(path: Path) -> Iterator[EvaluationPrompt]:
    if path.is_dir():
        return _read_dpg(path)
    readers = {".txt": _read_text, ".jsonl": _read_geneval, ".json": _read_hps}
    if path.suffix not in readers:
        raise UserError(
            f"`--prompts` is {path}; known are .txt (one prompt a line), GenEval's .jsonl, HPS v2's .json and "
            "DPG-Bench's folder of .txt (one prompt each)"
        )
    return readers[path.suffix](path, _text_of(path))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`--prompts` is {path}, which cannot be read ({error}); give a text file in UTF-8") from error


def _read_dpg(folder: Path) -> Iterator[EvaluationPrompt]:
    """A prompt in each text file, whose name is the `item_id` of its questions."""
    for path in sorted(folder.glob("*.txt")):
        if text := " ".join(_text_of(path).split()):
            yield EvaluationPrompt(text, "dpg", {"item_id": path.stem})


def _read_text(path: Path, text: str) -> Iterator[EvaluationPrompt]:
    for line in text.splitlines():
        if line.strip():
            yield EvaluationPrompt(line.strip(), path.stem)


def _read_geneval(path: Path, text: str) -> Iterator[EvaluationPrompt]:
    """One JSON object a line, with `prompt` and, as its group, `tag`."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row = _parsed(f"{path}, line {number},", line)
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise UserError(
                f"`--prompts` is {path}, whose line {number} has no `prompt`; each line is an object like GenEval's"
            )
        yield EvaluationPrompt(row["prompt"].strip(), str(row.get("tag", path.stem)), row)


def _read_hps(path: Path, text: str) -> Iterator[EvaluationPrompt]:
    """A list of strings, whose style is the file's name, or such lists by style."""
    parsed = _parsed(str(path), text)
    by_style = parsed if isinstance(parsed, dict) else {path.stem: parsed}
    for style, texts in by_style.items():
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise UserError(
                f"`--prompts` is {path}; a .json file holds a list of prompts, or such lists by style, as HPS v2's do"
            )
        yield from (EvaluationPrompt(each.strip(), style) for each in texts)


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"`--prompts`: {where} is not JSON ({error}); mend it, or give a .txt with one prompt a line"
        ) from error
