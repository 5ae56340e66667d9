"""What the training node does: reads the data set, encodes it, trains or goes on, writes the pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...chats.draws import fingerprint
from ...chats.pair import NullPrompt
from ...chats.taste.names import check_name
from ..advice import show
from ..rating.data_sets import place
from ..sampling.run import KEY
from .curve import HELD_OUT, as_image, draw_curve
from .digests import model_digest, tensors_digest
from .encoding import Encoder
from .errors import Conditioning, EncodedImage
from .ordinary import ordinary
from .rated_pairs import RatedPair, rated_pairs
from .saved_run import RunError, SavedRun, load_run, require_same
from .session import Limits, Session, Settings, predicts
from .steps import EncodedPair, NotFinite, Null
from .written_pair import on_model, pair_metadata, require_free, write_pair

RUNS, ENCODINGS = "runs", ".encodings"
# How often the node's text and picture change, in seconds.
SECONDS_BETWEEN_REPORTS = 1.0
PREVIEW_SIZE = 512
FACT_WORDS = {
    "dataset": "the data set has changed since",
    "model": "another `model` is connected, or it is patched in another way",
    "clip": "another `clip` is connected",
    "vae": "another `vae` is connected",
    "null": "the null prompt is another one (with nothing connected, it is an empty prompt)",
}
OUT_OF_MEMORY = (
    "the graphics card's memory does not hold a step of training ({}); the steps before are kept. Lower `resolution`, "
    "then `rank`, or choose attention in `layers` (each begins another run: choose another `name`), or close what else "
    "uses the card and queue again"
)


@dataclass(frozen=True)
class Connected:
    """What is connected to the node, and the file that its MODEL is known to come from."""

    model: ModelPatcher
    clip: Any
    vae: Any
    null: Conditioning | None
    base_file: str | None = None


def run_folder(dataset: str, name: str) -> Path:
    """Where a run's state is.

    Raises:
        ValueError: for names that no folder can have on every system.
    """
    check_name(name, "name")
    return place() / check_name(dataset) / RUNS / name


def train_pair(
    connected: Connected, dataset: str, name: str, settings: Settings, limits: Limits, node_id: str | None
) -> tuple[ModelPatcher, ModelPatcher, Tensor]:
    """The two members on the connected MODEL, and the run's curve.

    Raises:
        ValueError: with a sentence, for whatever the user can mend.
    """
    folder = run_folder(dataset, name)
    if any(KEY in keyed for keyed in connected.model.wrappers.values()):
        raise RunError("`model` is a pair already, joined by CHATS Apply; connect the base that it was made of")
    predicted = predicts(connected.model)
    rated = rated_pairs(place() / dataset, settings.resolution)
    clip_digest, vae_digest = model_digest(connected.clip.patcher), model_digest(connected.vae.patcher)
    encoder = Encoder(connected.clip, connected.vae, clip_digest, vae_digest, folder.parent / ENCODINGS)
    null, null_kind = _null_prompt(connected.null, encoder)
    facts = asdict(settings) | {
        "dataset": fingerprint(rated),
        "model": model_digest(connected.model),
        "clip": clip_digest,
        "vae": vae_digest,
        "null": null_kind if null_kind == "encoded_empty" else tensors_digest(null),
    }
    saved = load_run(folder)
    if saved is not None:
        require_same(saved, facts, name, FACT_WORDS)
    require_free(name, facts)
    report = Reports(limits, node_id)
    if saved is None or saved.step < limits.steps:
        pairs = encoded_pairs(rated, encoder, connected.model)
        null_prompt = Null(null, settings.null_prompt_prob)
        saved = _trained(Session(settings, limits, pairs, null_prompt, facts, folder, saved, report), connected.model)
    metadata = pair_metadata(
        saved,
        base_name=type(connected.model.model.model_config).__name__,
        dataset=dataset,
        pairs=len(rated),
        predicted=predicted,
        null=null_kind,
        base_file=connected.base_file,
    )
    finished = saved.step >= limits.steps
    if finished:
        write_pair(name, saved, metadata)
    report.end(saved, finished, name)
    preferred, dispreferred = on_model(connected.model, saved, metadata)
    return preferred, dispreferred, as_image(draw_curve(saved.history, max(limits.steps, saved.step)))


def encoded_pairs(rated: list[RatedPair], encoder: Encoder, model: ModelPatcher) -> list[EncodedPair]:
    """All pairs, encoded; stops where ComfyUI is interrupted."""
    told_sizes = isinstance(model.model, comfy.model_base.SDXL)
    bar = comfy.utils.ProgressBar(len(rated))
    pairs = []
    for pair in rated:
        comfy.model_management.throw_exception_if_processing_interrupted()
        chosen, rejected = (
            EncodedImage(encoder.latent(picture, pair.bucket), pair.sizes(picture) if told_sizes else {})
            for picture in (pair.chosen, pair.rejected)
        )
        pairs.append(EncodedPair(pair.id, chosen, rejected, encoder.prompt(pair.prompt)))
        bar.update(1)
    return pairs


def _trained(session: Session, model: ModelPatcher) -> SavedRun:
    try:
        return session.train(model)
    except comfy.model_management.OOM_EXCEPTION as error:
        raise RunError(OUT_OF_MEMORY.format(" ".join(str(error).split())[:120])) from error
    except NotFinite as error:
        raise RunError(
            f"{error}; the steps before are kept. Choose another `name` and a lower `learning_rate`"
        ) from error


def _null_prompt(connected: Conditioning | None, encoder: Encoder) -> tuple[Conditioning, NullPrompt | None]:
    """∅, and which of the usual ones it is."""
    if connected is None:
        return encoder.prompt(""), "encoded_empty"
    null = ordinary(connected)
    if all(not tokens.any() for tokens, _ in null):
        return null, "zeros"
    empty = encoder.prompt("")
    same = len(null) == 1 and null[0][0].shape == empty[0][0].shape and bool((null[0][0] == empty[0][0]).all())
    return null, "encoded_empty" if same else None


class Reports:
    """The bar, the text and the picture on the node while it trains."""

    def __init__(self, limits: Limits, node_id: str | None, clock: Callable[[], float] = time.monotonic):
        self.limits, self.node_id, self.clock = limits, node_id, clock
        self.bar = comfy.utils.ProgressBar(limits.steps)
        self.started: tuple[float, int] | None = None
        self.shown_at = -SECONDS_BETWEEN_REPORTS

    def __call__(self, history: list[dict[str, float]]) -> None:
        now, step = self.clock(), len(history)
        # The first step of a go also warms up: it does not tell how long the others take.
        self.started = self.started or (now, step)
        preview = None
        if now - self.shown_at >= SECONDS_BETWEEN_REPORTS or step == self.limits.steps:
            self.shown_at = now
            preview = ("JPEG", draw_curve(history, self.limits.steps), PREVIEW_SIZE)
            show(self._line(history, now), self.node_id)
        self.bar.update_absolute(step, self.limits.steps, preview)

    def end(self, run: SavedRun, finished: bool, name: str) -> None:
        told = f"step {run.step} of {self.limits.steps}{_accuracy(run.history)}"
        files = f"{name}_preferred and {name}_dispreferred are in loras"
        show(f"{told}; {files if finished else 'queue again to go on'}", self.node_id)

    def _line(self, history: list[dict[str, float]], now: float) -> str:
        assert self.started is not None
        since, first = self.started
        step, left = len(history), ""
        if step > first:
            seconds = (now - since) / (step - first) * (self.limits.steps - step)
            if self.limits.seconds:
                seconds = min(seconds, since + self.limits.seconds - now)
            left = f", {_duration(max(0.0, seconds))} left"
        return f"step {step} of {self.limits.steps}{left}{_accuracy(history)}"


def _accuracy(history: list[dict[str, float]]) -> str:
    key = HELD_OUT + "implicit_accuracy"
    measured = [(row[key], row[HELD_OUT + "pairs"]) for row in history if key in row]
    if not measured:
        return ""
    rights, of = measured[-1]
    return f", held-out pairs told right: {rights * of:.0f} of {of:.0f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
