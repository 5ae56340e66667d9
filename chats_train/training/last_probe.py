"""At the end of a run: whether the trained dispreferred model supports the proxy form (:mod:`chats.probe`), for the
pair's metadata."""

from __future__ import annotations

import itertools

import torch

from chats.draws import VALIDATION_EPOCH, draw

from ..families.prompts import batch_of
from ..runs.members import DISPREFERRED
from ..runs.probe_file import write_probe
from ..sampling.probe import PROBED_PROMPTS, probe_proxy
from .trainer import Trainer


def probe_trained(trainer: Trainer) -> None:
    """Measures on rejected images of the run, and keeps the means. The members then have the exported weights.

    A pair of one model, an α of 0 and a family without a proxy prompt have nothing to probe.
    """
    alpha = trainer.config.alpha
    if alpha == 0 or DISPREFERRED not in trainer.members.names or "proxy" not in trainer.family.facts.forms:
        return
    trainer.members.load_state(trainer.weights())
    first = (trainer.validation or trainer.samples)[0]
    alike = (each for each in itertools.chain(trainer.validation, trainer.samples) if each.bucket == first.bucket)
    samples = list(itertools.islice(alike, PROBED_PROMPTS))
    pairs = [trainer.encodings.pair(sample) for sample in samples]
    noises = [draw(trainer.config.seed, VALIDATION_EPOCH, pair.id, pair.rejected.shape).noise for pair in pairs]
    latents, noise = (
        torch.stack(each).to(trainer.device, torch.float32) for each in ([pair.rejected for pair in pairs], noises)
    )
    prompts = {name: tensor.to(trainer.device) for name, tensor in batch_of([pair.prompt for pair in pairs]).items()}
    dispreferred = trainer.members.denoiser(DISPREFERRED)
    result = probe_proxy(trainer.family, dispreferred, latents, noise, prompts, trainer.null, alpha)
    write_probe(trainer.config.output_dir, trainer.step, result)
