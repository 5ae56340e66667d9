"""The authors' training step for SDXL (github.com/AIDC-AI/CHATS, train.py, scripts/train_sdxl.sh at edbded1), anew.

Both models are in bf16 under gradient checkpointing, their graphs alive at once. As under DeepSpeed, which they train
with, gradients go into sums in fp32 as soon as they are known, and Adafactor steps fp32 masters. At every step the VAE
encodes both images and the text encoders the prompt; these and the reference rest in the CPU's memory, and accelerate
streams their weights to the card, layer by layer, whenever they are called.
"""

from __future__ import annotations

import random

import accelerate
import torch
from torch import Tensor, nn
from torch.nn import functional

from chats_train.families import Family
from chats_train.families.prompts import Prompt

BETA, NULL_PROMPT_PROB = 1000.0, 0.5
LEARNING_RATE, WEIGHT_DECAY = 3.84e-7, 0.01


class AuthorsStep:
    """Models and optimizer of the authors' step.

    Args:
        family: SDXL in bf16, on the card.
        offloads: whether encoders and reference rest in the CPU's memory, as in their scripts.
    """

    def __init__(self, family: Family, offloads: bool):
        self.family, self.device = family, family.device
        self.preferred, self.dispreferred = (family.load_denoiser().to(self.device) for _ in range(2))
        for model in (self.preferred, self.dispreferred):
            model.enable_gradient_checkpointing()
        self.reference = family.load_denoiser().requires_grad_(False)
        self.vae = family.vae.to(torch.bfloat16)
        resting = [self.reference, self.vae, *family.text_encoders]
        for module in resting:
            if offloads:
                accelerate.cpu_offload(module.to("cpu"), execution_device=self.device)
            else:
                module.to(self.device)
        trained = [*self.preferred.parameters(), *self.dispreferred.parameters()]
        masters = [nn.Parameter(parameter.detach().float()) for parameter in trained]
        for parameter, master in zip(trained, masters, strict=True):
            master.grad = torch.zeros_like(master)
            parameter.register_post_accumulate_grad_hook(lambda given, master=master: add_up(given, master))
        self.trained, self.masters = trained, masters
        self.optimizer = torch.optim.Adafactor(masters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def __call__(self, pairs: list[tuple[Tensor, Tensor, str]]) -> float:
        """One optimizer step on pairs, one after the other: images [1, 3, height, width] in [-1, 1] and a prompt; the
        mean of their losses."""
        losses = [self._backward(*pair, len(pairs)) for pair in pairs]
        self.optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self.trained, self.masters, strict=True):
                parameter.copy_(master)
                master.grad.zero_()
        return sum(losses) / len(losses)

    def _backward(self, chosen: Tensor, rejected: Tensor, prompt: str, pairs: int) -> float:
        family = self.family
        with torch.no_grad():
            images = torch.cat([chosen, rejected]).to(self.device, torch.bfloat16)
            latents = self.vae.encode(images).latent_dist.sample() * self.vae.config.scaling_factor
            encoded = family.encode_prompt([prompt])
        noise = torch.randn_like(latents[:1]).repeat(2, 1, 1, 1)
        timesteps = torch.randint(0, 1000, (1,)).repeat(2).to(self.device)
        noisy = family.add_noise(latents, noise, timesteps).to(torch.bfloat16)
        nulled = {name: torch.zeros_like(each) for name, each in encoded.items()}
        rejected_prompt = nulled if random.random() < NULL_PROMPT_PROB else encoded

        errors = self._error(self.preferred, noisy[:1], timesteps[:1], encoded, noise[:1])
        errors = errors + self._error(self.dispreferred, noisy[1:], timesteps[1:], rejected_prompt, noise[1:])
        both = {name: torch.cat([encoded[name], rejected_prompt[name]]) for name in encoded}
        with torch.no_grad():
            references = self._error(self.reference, noisy, timesteps, both, noise).sum()
        loss = -functional.logsigmoid(-BETA * (errors - references)).mean()
        (loss / pairs).backward()
        return loss.item()

    def _error(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, prompt: Prompt, noise: Tensor) -> Tensor:
        """d of Eq. 13, [batch]."""
        return (self.family.predict(model, noisy, timesteps, prompt) - noise).square().mean(dim=(1, 2, 3))


def add_up(parameter: nn.Parameter, master: nn.Parameter) -> None:
    """A gradient goes into the sum in fp32, and is let go of."""
    master.grad.add_(parameter.grad)
    parameter.grad = None
