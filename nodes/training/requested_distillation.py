"""What CHATS Distill Pair does: a run of one LoRA on the base of the connected pair."""

from __future__ import annotations

from dataclasses import asdict, replace

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...chats.distilled import USAGE, DistilledMetadata
from ...chats.guidance import guidance_scale_from_cfg
from ..advice import DISTILLED
from .adapters import STUDENT
from .curve import as_image, draw_curve
from .digests import model_digest
from .memory import ENCODING, enough_memory_for
from .pair_parts import Parts, parts_of
from .preview import Previews
from .reports import Reports
from .requested_run import FACT_WORDS, Connected, Material, carry_out, open_material, run_folder
from .saved_run import SavedRun
from .session import Limits, predicts
from .steps import EncodedPair
from .taught import LEARNED, DistillSettings, TaughtSession
from .teacher import Teacher, form_for_all
from .written_distilled import DistilledFile, settings_sha256
from .written_pair import with_trained

# Of the runs' folders, beside those of pairs in the data set's.
DISTILLED_RUNS = "distilled"
WORDS = FACT_WORDS | {
    "model": "another pair is connected in `model`, or it is patched in another way",
    "dispreferred": "the pair in `model` has another dispreferred member",
    "interval": "the pair in `model` is guided in another part of the noise schedule",
}


def distill_pair(
    connected: Connected,
    dataset: str,
    name: str,
    settings: DistillSettings,
    seconds: float,
    preview_every: int,
    node_id: str | None,
) -> tuple[ModelPatcher, Tensor]:
    """The pair's base with the distilled LoRA on it, and the run's curve.

    Args:
        connected: its MODEL is the pair.
        seconds: after which a go ends; 0 is never.

    Raises:
        ValueError: with a sentence, for whatever the user can mend.
    """
    folder, model = run_folder(dataset, name, DISTILLED_RUNS), connected.model
    parts = parts_of(model)
    predicts(parts.base)
    material = open_material(connected, dataset, settings.resolution)
    settings = replace(settings, form=_form(settings, material))
    facts = asdict(settings) | {
        **material.facts,
        "model": model_digest(model),
        "dispreferred": parts.dispreferred,
        "interval": list(parts.interval),
    }
    limits = Limits(settings.steps, seconds)
    report = Reports(limits, node_id, measure=LEARNED, made="LoRA")
    file = DistilledFile(name, _described(settings, parts, material, settings_sha256(facts, dataset)))

    def session(pairs: list[EncodedPair], saved: SavedRun | None) -> TaughtSession:
        teacher = Teacher(model, material.null, settings.cfg, settings.alpha, settings.form)
        previews = Previews(preview_every, connected.vae, settings.seed)
        return TaughtSession(
            settings, limits, pairs, teacher, parts.more, facts, folder, saved, report, previews, report.asking
        )

    run = carry_out(folder, facts, limits, report, file, material, parts.base, session, WORDS)
    distilled = with_trained(parts.base, run, STUDENT)
    distilled.set_attachments(DISTILLED, (f"a model that was distilled from a pair is a member: {USAGE}",))
    return distilled, as_image(draw_curve(run.history, settings.steps, LEARNED))


def _form(settings: DistillSettings, material: Material) -> str:
    texts = dict.fromkeys(pair.prompt for pair in material.rated)
    with enough_memory_for(ENCODING):
        prompts = (material.encoder.prompt(text) for text in texts)
        return form_for_all(prompts, material.null, settings.alpha, settings.form)


def _described(settings: DistillSettings, parts: Parts, material: Material, digest: str) -> DistilledMetadata:
    stated = parts.metadata
    return DistilledMetadata(
        pair_id=stated.pair_id if stated else None,
        pair_step=stated.step if stated else None,
        form="exact" if settings.form == "exact" else "proxy",
        negative=parts.negative,
        guidance_scale=guidance_scale_from_cfg(settings.cfg),
        alpha=settings.alpha,
        null_prompt=material.null_kind,
        start_percent=parts.interval.start_percent,
        end_percent=parts.interval.end_percent,
        base_name=type(parts.base.model.model_config).__name__,
        prediction_type=predicts(parts.base),
        resolution=settings.resolution,
        settings_sha256=digest,
        dataset_fingerprint=material.facts["dataset"],
    )
