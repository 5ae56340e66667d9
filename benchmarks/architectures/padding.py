"""What a null prompt's encoding becomes when it is made as long as a prompt's: with the new places masked, and not.

Where both would leave the prediction as it is, prompt and null could be mixed at the prompt's length; masked alone is
not enough, since the mixture has the prompt's own tokens in those places.
"""

from __future__ import annotations

import torch
from mini import relative_error
from running import guider_of

from .films import FILMS
from .measure import attempt, sampled
from .pictures import PICTURES

NAMES = ("Flux.2 dev", "Chroma", "Qwen-Image", "Z-Image", "Lumina2", "Krea 2", "Wan 2.1", "LTX-Video")
LONG, SHORT = 16, 11


@torch.inference_mode()
def differences(name: str) -> tuple[float | str, float | str]:
    """Relative, of two steps at cfg 1 with the null prompt alone: masked, and not masked."""
    network = {**PICTURES, **FILMS}[name]
    model = network.model(1)
    ((tokens, options),) = network.prompt(4, SHORT)
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, LONG - SHORT))
    seen = (torch.arange(LONG) < SHORT)[None].long()

    def made(conditioning: list) -> torch.Tensor:
        return sampled(guider_of(model, conditioning, conditioning, 1.0), network.latent)

    given = made([[tokens, options]])
    return tuple(
        attempt(lambda mask=mask: relative_error(made([[padded, {**options, "attention_mask": mask}]]), given))
        for mask in (seen, torch.ones_like(seen))
    )


def padding_report() -> str:
    lines = ["| what | padding masked | padding not masked |", "| --- | --- | --- |"]
    for name in NAMES:
        cells = [value if isinstance(value, str) else f"{value:.1e}" for value in differences(name)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
