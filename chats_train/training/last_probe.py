"""At the end of a run: whether the trained dispreferred model supports the proxy form (:mod:`chats.probe`), for the
pair's metadata."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from chats.draws import VALIDATION_EPOCH, draw

from ..runs.members import DISPREFERRED
from ..sampling.probe import PROBED_PROMPTS, probe_proxy
from ..support.files import write_text
from .trainer import Trainer

FILE = "proxy_probe.json"


def probe_trained(trainer: Trainer) -> None:
    """Measures on rejected images of the run, and writes the means beside the pair. The members then have the exported
    weights.

    A pair of one model, and an α of 0, have nothing to probe.
    """
    alpha = trainer.config.alpha
    if alpha == 0 or DISPREFERRED not in trainer.members.names:
        return
    trainer.members.load_state(trainer.weights())
    first = (trainer.validation or trainer.samples)[0]
    samples = [sample for sample in [*trainer.validation, *trainer.samples] if sample.bucket == first.bucket][
        :PROBED_PROMPTS
    ]
    pairs = [trainer.encodings.pair(sample) for sample in samples]
    noises = [draw(trainer.config.seed, VALIDATION_EPOCH, pair.id, pair.rejected.shape).noise for pair in pairs]
    latents, noise = (
        torch.stack(each).to(trainer.device, torch.float32) for each in ([pair.rejected for pair in pairs], noises)
    )
    prompts = {name: torch.stack([pair.prompt[name] for pair in pairs]).to(trainer.device) for name in trainer.null}
    dispreferred = trainer.members.denoiser(DISPREFERRED)
    result = probe_proxy(trainer.family, dispreferred, latents, noise, prompts, trainer.null, alpha)
    said = {"step": trainer.step, "alpha": alpha, **result.means}
    write_text(trainer.config.output_dir / FILE, json.dumps(said) + "\n")


def read_probe(output_dir: Path, step: int) -> dict[str, float]:
    """The metadata's fields of the probe of a run that ended at ``step``; none for another step, and where there was no
    probe or the model did not react to its prompts."""
    path = output_dir / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("step") != step or not all(math.isfinite(found[name]) for name in ("cosine", "relative_error")):
        return {}
    return {f"proxy_{name}": round(found[name], 4) for name in ("cosine", "relative_error")}
