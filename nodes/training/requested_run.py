"""What a training node does around its steps: reads the data set, encodes it, goes on, writes what was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import comfy.model_base
import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...chats.draws import fingerprint
from ...chats.pair import NullPrompt
from ...chats.taste.names import METADATA, RATINGS, TasteError, check_name
from ..rating.data_sets import data_set
from .digests import model_digest, tensors_digest
from .encoding import Encoder
from .errors import Conditioning, EncodedImage
from .memory import ENCODING, TRAINING, enough_memory_for
from .ordinary import ordinary
from .rated_pairs import RatedPair, rated_pairs
from .reports import Reports
from .saved_run import FILE, RunError, SavedRun, load_run, only_run_in, require_same
from .session import Limits, Session
from .steps import EncodedPair, NotFinite

RUNS, ENCODINGS = "runs", ".encodings"
FACT_WORDS = {
    "dataset": "the data set has changed since",
    "model": "another `model` is connected, or it is patched in another way",
    "clip": "another `clip` is connected",
    "vae": "another `vae` is connected",
    "null": "the null prompt is another one (with nothing connected, it is an empty prompt)",
}


@dataclass(frozen=True)
class Connected:
    """What is connected to the node, and the file that its MODEL is known to come from."""

    model: ModelPatcher
    clip: Any
    vae: Any
    null: Conditioning | None
    base_file: str | None = None


@dataclass(frozen=True)
class Material:
    """A rated data set with what encodes it, and the encoded null prompt.

    ``facts`` are what a run that is trained on it keeps, by name.
    """

    rated: list[RatedPair]
    encoder: Encoder
    null: Conditioning
    null_kind: NullPrompt | None
    facts: dict[str, Any]


class Files(Protocol):
    """What a finished run is written to."""

    def require_free(self, step: int) -> None:
        """Raises RunError where a file is there that is not this run's, or of more steps."""

    def write(self, run: SavedRun) -> bool:
        """Writes what is not there as it should be; whether something was not."""


def run_folder(dataset: str, name: str, of: str = RUNS) -> Path:
    """Where a run's state is.

    Raises:
        ValueError: for names that no folder can have on every system.
    """
    check_name(name, "name")
    return data_set(dataset).folder / of / name


def changes(dataset: object, name: object, of: str, files: Callable[[str], list[Path]]) -> str:
    """Another text where ratings came in, the run went on or its files were moved: ComfyUI does not know of it.

    Args:
        dataset, name: of the node; not known yet where they come by a link.
        of: as of :func:`run_folder`.
        files: the finished ones of a name.
    """
    if not isinstance(dataset, str) or not isinstance(name, str):
        return ""
    try:
        folder = run_folder(dataset, name, of)
    except TasteError:
        return ""
    rated = (folder.parents[1] / RATINGS, folder.parents[1] / METADATA)
    watched = (*rated, folder / FILE, *files(name))
    return " ".join(str(file.stat().st_mtime_ns) if file.is_file() else "-" for file in watched)


def open_material(connected: Connected, dataset: str, resolution: int) -> Material:
    """The data set's pairs, and their encoder.

    Raises:
        ValueError: with a sentence, for whatever the user can mend.
    """
    folder = data_set(dataset).folder
    rated = rated_pairs(folder, resolution)
    clip_digest, vae_digest = model_digest(connected.clip.patcher), model_digest(connected.vae.patcher)
    encoder = Encoder(connected.clip, connected.vae, clip_digest, vae_digest, folder / RUNS / ENCODINGS)
    with enough_memory_for(ENCODING):
        null, null_kind = _null_prompt(connected.null, encoder)
    facts = {
        "dataset": fingerprint(pair.id for pair in rated),
        "clip": clip_digest,
        "vae": vae_digest,
        "null": null_kind if null_kind == "encoded_empty" else tensors_digest(null),
    }
    return Material(rated, encoder, null, null_kind, facts)


def carry_out(
    folder: Path,
    facts: dict[str, Any],
    limits: Limits,
    report: Reports,
    files: Files,
    material: Material,
    model: ModelPatcher,
    session: Callable[[list[EncodedPair], SavedRun | None], Session],
    words: dict[str, str] = FACT_WORDS,
) -> SavedRun:
    """Begins a run or goes on with it, and writes its files when it is done; where it stands then.

    Args:
        folder: of the run.
        facts: what it is begun with.
        model: what is trained on.
        session: made of the encoded pairs and of where the run stands.
        words: see :func:`.saved_run.require_same`.

    Raises:
        ValueError: with a sentence, for whatever the user can mend.
    """
    name = folder.name
    with only_run_in(folder):
        saved = load_run(folder)
        if saved is not None:
            require_same(saved, facts, name, words)
        files.require_free(max(limits.steps, saved.step if saved else 0))
        begun_at = saved
        if saved is None or saved.step < limits.steps:
            with enough_memory_for(ENCODING), report.encoding(len(material.rated), saved):
                pairs = encoded_pairs(material.rated, material.encoder, model)
            saved = _trained(session(pairs, saved), report, model)
        if saved.step >= limits.steps and files.write(saved):
            report.written(name)
    report.end(saved, name, trained=saved is not begun_at)
    return saved


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


def _trained(session: Session, report: Reports, model: ModelPatcher) -> SavedRun:
    try:
        with enough_memory_for(TRAINING), report.training(session):
            return session.train(model)
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
