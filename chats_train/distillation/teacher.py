"""Losses and gradients towards what the pair predicts with its guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from chats.distillation import DISTILLATION, Guidance, taught_prediction
from chats.guidance import Asked
from chats.objective import Metrics, squared_error

from ..families import Family, Prompt
from ..runs.members import DISPREFERRED, PREFERRED, Members
from ..runs.previews import side_by_side
from ..sampling.sampler import SamplingSettings, guided_levels, negative_prompts, sample_cfg, sample_pair
from ..settings.config import RunConfig
from ..training.gradients import Batch, Gradients


@dataclass(frozen=True)
class TaughtBatch(Batch):
    """A batch whose chosen side has the teacher's prediction as its target; ``preferred_error`` is how far the
    preferred model alone is from that, [batch]."""

    preferred_error: Tensor


class TaughtGradients(Gradients):
    """Those of a student on the chosen images of a batch.

    Args:
        student: what trains. Its reference is the base.
        teacher: has the pair's models, frozen; it may be the student itself, which then holds them too.
        guidance: how the teacher is sampled.
        null: the null prompt, a batch of 1.
    """

    def __init__(
        self,
        family: Family,
        student: Members,
        teacher: Members,
        guidance: Guidance,
        null: Prompt,
        device: torch.device,
        *,
        mixed_precision: str = "no",
    ):
        super().__init__(family, student, DISTILLATION, 1.0, device, mixed_precision=mixed_precision)
        self.guidance, self.null = guidance, null
        self.preferred = teacher.denoiser(PREFERRED)
        self.negative = student.reference() if guidance.negative == "base" else teacher.denoiser(DISPREFERRED)
        self.guides = guided_levels(family.schedule, guidance.start_percent, guidance.end_percent)

    def measure(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return super().measure(self.taught(batch))

    def backward(self, batch: Batch, scale: float) -> tuple[Tensor, Metrics]:
        return super().backward(self.taught(batch), scale)

    @torch.no_grad()
    def taught(self, batch: Batch) -> TaughtBatch:
        """The batch with the teacher's prediction in place of its chosen side's target."""
        side = batch.chosen
        asked = negative_prompts(side.prompt, self.null, self.guidance.alpha, self.guidance.form)

        def negative(which: Asked) -> Tensor:
            return self._prediction(self.negative, side, asked[which]).float()

        preferred = self._prediction(self.preferred, side, side.prompt).float()
        guides = self.guides(self.family.schedule.noise_level(side.timesteps.cpu())).to(preferred.device)
        target = taught_prediction(preferred, negative, self.guidance, guides)
        return TaughtBatch(replace(side, target=target), batch.rejected, squared_error(preferred, target))

    def preview(self, config: RunConfig, prompts: Sequence[tuple[Prompt, Prompt]]) -> Image.Image:
        """The teacher beside the student at s = 0."""
        guidance = self.guidance
        settings = SamplingSettings(
            config.sample_steps,
            guidance_scale=guidance.guidance_scale,
            alpha=guidance.alpha,
            form=guidance.form,
            start_percent=guidance.start_percent,
            end_percent=guidance.end_percent,
        )

        def teacher(prompt: Prompt, null: Prompt, noise: Tensor) -> Tensor:
            return sample_pair(self.family, self.preferred, self.negative, prompt, null, noise, settings)

        def student(prompt: Prompt, null: Prompt, noise: Tensor) -> Tensor:
            alone = replace(settings, guidance_scale=0.0)
            return sample_cfg(self.family, self.members.denoiser(self.members.names[0]), prompt, null, noise, alone)

        title = f"pair, CHATS ({guidance.form})"
        return side_by_side(config, self.family, prompts, self.device, {title: teacher, "distilled, cfg 1": student})

    def _reference_errors(self, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(batch, TaughtBatch)
        return {"chosen_reference": batch.preferred_error}
