"""A whole evaluation: probe, pictures, scores, report. What was drawn or scored before is not drawn or scored again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from chats.objective import OBJECTIVES

from ..families import Family
from ..runs.checkpoint import MANIFEST, find_checkpoint
from ..runs.members import Members
from ..runs.opening import open_family
from ..runs.processes import Processes
from ..sampling.probe import ProbeResult
from ..sampling.sampler import Form
from ..settings.config import RunConfig
from ..support.errors import UserError
from ..support.files import write_text
from ..support.locks import locked
from ..training.train import CHECKPOINTS, LOCK, trained_members
from .conditions import Condition, make_conditions
from .drawing import Picture, draw_pictures, picture_row, plan_pictures
from .plots import draw_alpha_curve, draw_grid
from .probing import PROBE_FILE, probe_pair, probe_table, probe_verdicts, write_probe
from .prompts import EvaluationPrompt, read_prompts
from .report import (
    FAIRNESS,
    Figures,
    Scores,
    as_markdown,
    as_text,
    compute_figures,
    group_table,
    overall_table,
)
from .scorers import Scorer, open_scorers

RESULTS_FILE, SUMMARY_FILE, REPORT_FILE, SCORES_FILE = "results.jsonl", "summary.json", "report.md", "scores.jsonl"
GRID_FILE, CURVE_FILE = "grid.png", "alpha.png"
SCORING_BATCH = 8


@dataclass(frozen=True)
class EvaluationSettings:
    """What to sample. Empty lists of α or guidance scales take the run's own; ``seeds`` 0 draws no picture, for a probe
    alone."""

    prompts: tuple[Path, ...]
    seeds: int = 4
    steps: int = 50
    alphas: tuple[float, ...] = ()
    guidance_scales: tuple[float, ...] = ()
    forms: tuple[Form, ...] = ("proxy",)
    batch_size: int = 1
    probe: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("seeds", self.seeds, 0),
            ("steps", self.steps, 1),
            ("batch-size", self.batch_size, 1),
        ):
            if value < least:
                raise UserError(f"`--{name}` is {value}; give {least} or more")
        if self.seeds == 0 and not self.probe:
            raise UserError("`--seeds` is 0, which draws nothing; give 1 or more, or `--probe` too")
        for alpha in self.alphas:
            if not math.isfinite(alpha):
                raise UserError(f"`--alpha` is {alpha}; give a number, such as 0.5")


def evaluate(
    config: RunConfig, wanted: str, settings: EvaluationSettings, scorer_specs: Sequence[str], folder: Path | None
) -> list[str]:
    """Evaluates a checkpoint (``latest`` or a folder) into ``folder``, by default `<output_dir>/evaluation`.

    Returns:
        the report, as lines of text.

    Raises:
        UserError: for what the user can mend; before anything is drawn where that can be told.
    """
    folder = folder or config.output_dir / "evaluation"
    checkpoint = find_checkpoint(config.output_dir / CHECKPOINTS, wanted)
    if checkpoint is None:
        raise UserError(
            f"{config.output_dir / CHECKPOINTS} has no whole checkpoint; train first, or name one's folder with "
            "`--checkpoint`"
        )
    prompts, repeated = read_prompts(settings.prompts)
    pair = OBJECTIVES[config.objective].models == 2
    alphas = settings.alphas or (config.alpha,)
    if settings.probe and not (pair and any(alphas)):
        reason = "`--alpha` is 0" if pair else f"`objective` is {config.objective}, of one model"
        raise UserError(f"`--probe` needs a pair and an α other than 0, but {reason}; leave it out")
    conditions = make_conditions(pair, settings.guidance_scales or (config.guidance_scale,), alphas, settings.forms)
    device = Processes().device
    scorers = open_scorers(scorer_specs, device)
    family = open_family(config, device)
    members = trained_members(config, family, str(checkpoint))
    weights = _weights_digest(checkpoint)

    size = f"{config.resolution} × {config.resolution} px, {settings.steps} steps"
    header = [
        f"{checkpoint.name} of {config.output_dir.name}: {len(prompts)} prompts, seeds for each: {settings.seeds}, "
        f"{size}"
    ]
    if repeated:
        header.append(f"{repeated} repetitions of prompts are left out")
    if not pair:
        header.append(f"`objective` is {config.objective}, of one model: it is sampled under CFG alone")
    with _only_evaluation_in(folder):
        probed = _probe(folder, config, family, members, weights, prompts, alphas, settings) if settings.probe else []
        if settings.seeds == 0:
            return [*header, *_probe_text(probed), f"{folder / PROBE_FILE}"]
        pictures = plan_pictures(
            folder, config, family, weights, conditions, prompts, range(settings.seeds), settings.steps
        )
        drawn = draw_pictures(pictures, config, family, members, settings.steps, settings.batch_size)
        header.append(f"{len(pictures)} pictures, {drawn} of them drawn now, {len(pictures) - drawn} kept from before")
        # The scorers want the room.
        del members
        family.release_encoders()
        scores = {scorer.name: score_pictures(scorer, pictures, folder) for scorer in scorers}
        return _report(folder, header, pictures, scores, probed)


@contextmanager
def _only_evaluation_in(folder: Path) -> Iterator[None]:
    """Keeps other evaluations out of a folder."""
    with locked(folder / LOCK) as free:
        if not free:
            raise UserError(
                f"`--output` is {folder}, where another evaluation is at work now; wait for its end, stop it, or "
                "choose another `--output`"
            )
        yield


def score_pictures(scorer: Scorer, pictures: Sequence[Picture], folder: Path) -> dict[str, float]:
    """Scores by picture key; those in scores.jsonl of the same fingerprint are taken from there, new ones are added to
    it.

    Raises:
        UserError: when a score is not finite.
    """
    path = folder / SCORES_FILE
    rows = read_rows(path)
    kept = {
        row["key"]: row["score"]
        for row in rows
        if (row["scorer"], row["fingerprint"]) == (scorer.name, scorer.fingerprint)
    }
    # Written anew: a kill may have cut off the last line.
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    missing = [picture for picture in pictures if picture.key not in kept]
    for start in range(0, len(missing), SCORING_BATCH):
        batch = missing[start : start + SCORING_BATCH]
        images = []
        for picture in batch:
            with Image.open(picture.path) as image:
                images.append(image.convert("RGB"))
        values = scorer.score(images, [picture.prompt for picture in batch]).tolist()
        with path.open("a", encoding="utf-8") as file:
            for picture, value in zip(batch, values, strict=True):
                if not math.isfinite(value):
                    raise UserError(
                        f"{scorer.name} gives {picture.path} {value}; look at the picture, and check the scorer's "
                        "folder"
                    )
                kept[picture.key] = value
                row = {"key": picture.key, "scorer": scorer.name, "fingerprint": scorer.fingerprint, "score": value}
                file.write(json.dumps(row) + "\n")
    return {picture.key: kept[picture.key] for picture in pictures}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a line that a kill cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def by_condition(pictures: Sequence[Picture], scores: dict[str, dict[str, float]]) -> Scores:
    """Each scorer's values by condition and picture, from its scores by key."""
    found: dict[str, dict[Condition, dict[tuple[str, int], float]]] = {}
    for scorer, by_key in scores.items():
        for picture in pictures:
            values = found.setdefault(scorer, {}).setdefault(picture.condition, {})
            values[picture.prompt.text, picture.seed] = by_key[picture.key]
    return found


def _report(
    folder: Path,
    header: list[str],
    pictures: Sequence[Picture],
    scores: dict[str, dict[str, float]],
    probed: Sequence[ProbeResult],
) -> list[str]:
    """Writes every file of the report, and returns it as text."""
    lines = []
    for picture in pictures:
        own = {scorer: by_key[picture.key] for scorer, by_key in scores.items()}
        lines.append(json.dumps({**picture_row(picture, folder), "scores": own}, ensure_ascii=False) + "\n")
    write_text(folder / RESULTS_FILE, "".join(lines))
    figures = compute_figures(
        by_condition(pictures, scores), {picture.prompt.text: picture.prompt.group for picture in pictures}
    )
    write_text(
        folder / SUMMARY_FILE, json.dumps([each.as_json() for each in figures], ensure_ascii=False, indent=1) + "\n"
    )
    row_prompts = draw_grid(pictures, folder / GRID_FILE)
    files = [RESULTS_FILE, SUMMARY_FILE, REPORT_FILE, GRID_FILE]
    if figures and draw_alpha_curve(figures, folder / CURVE_FILE):
        files.append(CURVE_FILE)
    if probed:
        files.append(PROBE_FILE)
    write_text(
        folder / REPORT_FILE, "\n".join(_markdown(header, figures, probed, row_prompts, CURVE_FILE in files)) + "\n"
    )
    text = [*header, *_probe_text(probed)]
    for title, rows in _tables(figures):
        text += [title, *as_text(rows)]
    text.append(
        FAIRNESS if figures else "nothing was scored: name a scorer, such as `--scorer pickscore=FOLDER_OR_HUB_ID`"
    )
    return [*text, f"{folder}: {', '.join(files)}"]


def _tables(figures: Sequence[Figures]) -> list[tuple[str, list[list[str]]]]:
    """Each scorer's table, and one by group where there are several groups, with titles."""
    found = []
    for scorer in dict.fromkeys(each.scorer for each in figures):
        own = [each for each in figures if each.scorer == scorer]
        found.append((scorer, overall_table(own)))
        if len(own[0].groups) > 1:
            found.append((f"{scorer} by group", group_table(own)))
    return found


def _markdown(
    header: Sequence[str],
    figures: Sequence[Figures],
    probed: Sequence[ProbeResult],
    row_prompts: Sequence[str],
    curve: bool,
) -> list[str]:
    lines = ["# Evaluation", "", *(f"- {line}" for line in header), ""]
    for title, rows in _tables(figures):
        lines += [f"## {title}", "", *as_markdown(rows), ""]
    lines += [FAIRNESS, ""] if figures else ["Nothing was scored.", ""]
    if probed:
        lines += ["## The proxy prompt", "", *as_markdown(probe_table(probed)), ""]
        lines += [*(f"- {line}" for line in probe_verdicts(probed)), ""]
    if curve:
        lines += [f"![scores over α]({CURVE_FILE})", ""]
    return [
        *lines,
        f"![pictures]({GRID_FILE})",
        "",
        "Rows:",
        "",
        *(f"{number}. {text}" for number, text in enumerate(row_prompts, 1)),
    ]


def _probe(
    folder: Path,
    config: RunConfig,
    family: Family,
    members: Members,
    weights: str,
    prompts: Sequence[EvaluationPrompt],
    alphas: Sequence[float],
    settings: EvaluationSettings,
) -> list[ProbeResult]:
    """The probe, written to probe.json."""
    results = probe_pair(config, family, members, prompts, alphas, settings.steps)
    write_probe(folder, weights, results)
    return results


def _probe_text(probed: Sequence[ProbeResult]) -> list[str]:
    if not probed:
        return []
    return ["the proxy prompt", *as_text(probe_table(probed)), *(f"  {line}" for line in probe_verdicts(probed))]


def _weights_digest(checkpoint: Path) -> str:
    """Of the weights that are sampled, as the checkpoint's manifest states it; loading has checked the manifest."""
    files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    return files.get("averages.safetensors", files["members.safetensors"])["sha256"]
