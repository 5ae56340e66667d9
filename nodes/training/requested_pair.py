"""What CHATS Train LoRA Pair does: a run of a pair on the connected MODEL."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...chats.pair import PairMetadata
from ..sampling.run import KEY
from .curve import as_image, draw_curve
from .digests import model_digest
from .preview import Previews
from .reports import Reports
from .requested_run import Connected, carry_out, open_material, run_folder
from .saved_run import RunError, SavedRun
from .session import Limits, Session, Settings, predicts
from .steps import EncodedPair, Null
from .written_pair import on_model, pair_metadata, require_free, write_pair


@dataclass(frozen=True)
class PairFiles:
    """The two files; ``described`` are the arguments of :func:`.written_pair.pair_metadata`."""

    name: str
    facts: dict
    described: dict

    def metadata(self, run: SavedRun) -> PairMetadata:
        return pair_metadata(run, **self.described)

    def require_free(self, step: int) -> None:
        require_free(self.name, self.described["dataset"], self.facts, step)

    def write(self, run: SavedRun) -> bool:
        return write_pair(self.name, run, self.metadata(run))


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
    folder, model = run_folder(dataset, name), connected.model
    if any(KEY in keyed for keyed in model.wrappers.values()):
        raise RunError("`model` is a pair already, joined by CHATS Apply; connect the base that it was made of")
    predicted = predicts(model)
    material = open_material(connected, dataset, settings.resolution)
    facts = asdict(settings) | {**material.facts, "model": model_digest(model)}
    report = Reports(limits, node_id)
    described = {
        "base_name": type(model.model.model_config).__name__,
        "dataset": dataset,
        "pairs": len(material.rated),
        "predicted": predicted,
        "null": material.null_kind,
        "base_file": connected.base_file,
    }
    files = PairFiles(name, facts, described)

    def session(pairs: list[EncodedPair], saved: SavedRun | None) -> Session:
        null, previews = (
            Null(material.null, settings.null_prompt_prob),
            Previews(preview_every, connected.vae, settings.seed),
        )
        return Session(settings, limits, pairs, null, facts, folder, saved, report, previews)

    run = carry_out(folder, facts, limits, report, files, material, model, session)
    preferred, dispreferred = on_model(model, run, files.metadata(run))
    return preferred, dispreferred, as_image(draw_curve(run.history, max(limits.steps, run.step)))
