"""What the training node does: reads the data set, encodes it, trains or goes on, writes the pair."""

from __future__ import annotations

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
from ..rating.data_sets import data_set
from ..sampling.run import KEY
from .curve import as_image, draw_curve
from .digests import model_digest, tensors_digest
from .encoding import Encoder
from .errors import Conditioning, EncodedImage
from .memory import ENCODING, TRAINING, enough_memory_for
from .ordinary import ordinary
from .preview import Previews
from .rated_pairs import RatedPair, rated_pairs
from .reports import Reports
from .saved_run import RunError, SavedRun, load_run, only_run_in, require_same
from .session import Limits, Session, Settings, predicts
from .steps import EncodedPair, NotFinite, Null
from .written_pair import on_model, pair_metadata, require_free, write_pair

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


def run_folder(dataset: str, name: str) -> Path:
    """Where a run's state is.

    Raises:
        ValueError: for names that no folder can have on every system.
    """
    check_name(name, "name")
    return data_set(dataset).folder / RUNS / name


def train_pair(
    connected: Connected,
    dataset: str,
    name: str,
    settings: Settings,
    limits: Limits,
    preview_every: int,
    node_id: str | None,
) -> tuple[ModelPatcher, ModelPatcher, Tensor]:
    """The two members on the connected MODEL, and the run's curve.

    Raises:
        ValueError: with a sentence, for whatever the user can mend.
    """
    folder = run_folder(dataset, name)
    if any(KEY in keyed for keyed in connected.model.wrappers.values()):
        raise RunError("`model` is a pair already, joined by CHATS Apply; connect the base that it was made of")
    predicted = predicts(connected.model)
    rated = rated_pairs(data_set(dataset).folder, settings.resolution)
    clip_digest, vae_digest = model_digest(connected.clip.patcher), model_digest(connected.vae.patcher)
    encoder = Encoder(connected.clip, connected.vae, clip_digest, vae_digest, folder.parent / ENCODINGS)
    with enough_memory_for(ENCODING):
        null, null_kind = _null_prompt(connected.null, encoder)
    facts = asdict(settings) | {
        "dataset": fingerprint(pair.id for pair in rated),
        "model": model_digest(connected.model),
        "clip": clip_digest,
        "vae": vae_digest,
        "null": null_kind if null_kind == "encoded_empty" else tensors_digest(null),
    }
    null_prompt, report = Null(null, settings.null_prompt_prob), Reports(limits, node_id)
    with only_run_in(folder):
        saved = load_run(folder)
        if saved is not None:
            require_same(saved, facts, name, FACT_WORDS)
        require_free(name, dataset, facts, max(limits.steps, saved.step if saved else 0))
        begun_at = saved
        if saved is None or saved.step < limits.steps:
            with enough_memory_for(ENCODING), report.encoding(len(rated), saved):
                pairs = encoded_pairs(rated, encoder, connected.model)
            previews = Previews(preview_every, connected.vae, settings.seed)
            session = Session(settings, limits, pairs, null_prompt, facts, folder, saved, report, previews)
            saved = _trained(session, report, connected.model)
        metadata = pair_metadata(
            saved,
            base_name=type(connected.model.model.model_config).__name__,
            dataset=dataset,
            pairs=len(rated),
            predicted=predicted,
            null=null_kind,
            base_file=connected.base_file,
        )
        if saved.step >= limits.steps and write_pair(name, saved, metadata):
            report.written(name)
    report.end(saved, name, trained=saved is not begun_at)
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
