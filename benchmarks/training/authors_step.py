"""The training step of the authors' code (github.com/AIDC-AI/CHATS, train.py at edbded1), written anew for the
benchmark.

What it does at every step, and the trainer here does not: the VAE encodes both images, the text encoder the prompt; the
graphs of both models are alive at once; all weights of both train, in fp32, with AdamW, as the authors do for SD1.5.
One noise and one timestep serve both images of a pair, one coin decides whether the dispreferred model's prompt is
zeros, and the reference sees both sides in one pass.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

from chats_train.families import Family

BETA, NULL_PROMPT_PROB, MAX_GRAD_NORM = 1000.0, 0.5, 1.0
LEARNING_RATE = 5e-7


class AuthorsStep:
    """Models and optimizer of the authors' step.

    Args:
        family: SD1.5, which also lends its encoders and its noise schedule.
        gradient_checkpointing: as in the authors' scripts; False keeps all activations.
    """

    def __init__(self, family: Family, gradient_checkpointing: bool):
        self.family = family
        self.preferred, self.dispreferred, self.reference = (family.load_denoiser() for _ in range(3))
        self.reference.requires_grad_(False)
        if gradient_checkpointing:
            for model in (self.preferred, self.dispreferred):
                model.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)

    def parameters(self) -> list[nn.Parameter]:
        """All that trains."""
        return [*self.preferred.parameters(), *self.dispreferred.parameters()]

    def __call__(self, chosen: Tensor, rejected: Tensor, prompt: str) -> float:
        """One optimizer step on one pair: images [1, 3, height, width] in [-1, 1]; its loss."""
        family, vae = self.family, self.family.vae
        with torch.no_grad():
            latents = vae.encode(torch.cat([chosen, rejected])).latent_dist.sample() * vae.config.scaling_factor
            tokens = family.encode_prompt([prompt])["tokens"]
        noise = torch.randn_like(latents[:1]).repeat(2, 1, 1, 1)
        timesteps = torch.randint(0, 1000, (1,)).repeat(2)
        noisy = family.add_noise(latents, noise, timesteps)
        rejected_tokens = torch.zeros_like(tokens) if random.random() < NULL_PROMPT_PROB else tokens

        errors = self._error(self.preferred, noisy[:1], timesteps[:1], tokens, noise[:1])
        errors = errors + self._error(self.dispreferred, noisy[1:], timesteps[1:], rejected_tokens, noise[1:])
        with torch.no_grad():
            references = self._error(
                self.reference, noisy, timesteps, torch.cat([tokens, rejected_tokens]), noise
            ).sum()
        loss = -functional.logsigmoid(-BETA * (errors - references)).mean()

        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _error(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, tokens: Tensor, noise: Tensor) -> Tensor:
        """d of Eq. 13, [batch]."""
        return (model(noisy, timesteps, encoder_hidden_states=tokens).sample - noise).square().mean(dim=(1, 2, 3))
