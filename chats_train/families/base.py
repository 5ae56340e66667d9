"""What every model family has in common: parts, encodings, noise, one prediction.

A family never holds a denoiser: it makes one (:meth:`Family.load_denoiser`) and is handed whichever is to predict, so
that the preferred, the dispreferred and the reference all go through the same few lines.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from chats.pair import NullPrompt, PredictionType

from ..settings.family_facts import FamilyFacts
from .autoencoders import Autoencoder, KLAutoencoder
from .base_checks import check_base
from .config_keys import ConfigKeys, with_defaults
from .prompts import MASK, Prompt, batch_of, zeroed
from .schedule import Schedule
from .sources import Shapes, Source, parameter_count

# Part of every fingerprint: raise it when the same encoders would give other encodings than before.
ENCODING_VERSION = 1

# Anything that is called like the family's diffusers module; a closure that switches adapters will do.
Denoiser = Callable[..., Any]


class Family(ABC):
    """One model family over one base model.

    Args:
        source: where the parts come from.
        dtype: of the denoisers made here, and what the headless sampler feeds them.
        encoder_dtype: of the text encoders. The VAE is always float32: SDXL's overflows in half precision.
        device: of the encoders and the VAE.
        prediction_type: overrides what the base states of itself (`epsilon` or `v_prediction`); None trusts it.
        null_prompt: overrides the base's convention; None keeps it.

    Attributes:
        facts: the family's record.
        autoencoder: the kind of its VAE.
        template: what is put around each prompt where prompts have lengths of their own.
        denoiser_keys, noise_keys, index_keys: what its denoiser's and its scheduler's configuration and the index of
            its parts may say; of the last, other keys matter to no one.

    Raises:
        SourceError: when the base is not what the family takes it for.
    """

    facts: ClassVar[FamilyFacts]
    autoencoder: ClassVar[Autoencoder] = KLAutoencoder()
    template: ClassVar[str] = "{}"
    denoiser_keys: ClassVar[ConfigKeys]
    noise_keys: ClassVar[ConfigKeys]
    index_keys: ClassVar[ConfigKeys] = ConfigKeys(honoured={})

    def __init__(
        self,
        source: Source,
        *,
        dtype: torch.dtype = torch.float32,
        encoder_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        prediction_type: PredictionType | None = None,
        null_prompt: NullPrompt | None = None,
    ):
        self.source, self.dtype, self.encoder_dtype, self.device = source, dtype, encoder_dtype, torch.device(device)
        check_base(self, prediction_type)
        self.schedule: Schedule = self._make_schedule(prediction_type)
        self.prediction_type: PredictionType = self.schedule.prediction_type
        self.null_prompt_kind: NullPrompt = null_prompt or self._null_convention()

    # What a family says of itself.

    @property
    def name(self) -> str:
        """As in the config."""
        return self.facts.name

    @staticmethod
    @abstractmethod
    def part_classes() -> dict[str, type]:
        """The class of the denoiser, the VAE and each text encoder, by part; imports what is heavy."""

    @abstractmethod
    def _make_schedule(self, prediction_type: PredictionType | None) -> Schedule:
        """The base's noise schedule."""

    @staticmethod
    def denoiser_config(native: Shapes) -> dict[str, Any] | None:
        """The denoiser's configuration, as the shapes of its native weights tell it; None where the family has one
        size, whose configuration is bundled."""
        return None

    @abstractmethod
    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor that :meth:`encode_prompt` makes of one prompt, without the batch: from the
        encoders' configurations alone."""

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> Prompt:
        """The prompts' embeddings, on the encoders' device; longer ones are cut off at the encoders' length."""

    @abstractmethod
    def predict(
        self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor, prompt: Prompt, sizes: Tensor | None = None
    ) -> Tensor:
        """What a denoiser predicts.

        Args:
            denoiser: a module of :meth:`load_denoiser`, wrapped or not; it is only called.
            noisy: z_t, [batch, channels, height, width], in the dtype and on the device of the denoiser.
            timesteps: [batch], as the schedule gives them.
            prompt: embeddings, of the batch or of 1.
            sizes: [batch, 6] in pixels: original height and width, top and left of the crop, target height and width.
                Only SDXL is told them; None says that nothing was cropped.

        Returns:
            a prediction of the shape of ``noisy``.
        """

    def _null_convention(self) -> NullPrompt:
        return "encoded_empty"

    # Parts.

    def load_denoiser(self) -> nn.Module:
        """A fresh denoiser on the CPU, in ``dtype``, in eval mode with gradients on."""
        part = self.facts.denoiser_part
        return self._readied(self.source.module(part, self.part_classes()[part], self.dtype))

    def empty_denoiser(self) -> nn.Module:
        """A denoiser as :meth:`load_denoiser` makes it, its parameters on the meta device."""
        from accelerate import init_empty_weights

        part = self.facts.denoiser_part
        cls: Any = self.part_classes()[part]
        with init_empty_weights(include_buffers=False):
            module = cls.from_config(self.source.config(part)).eval()
        # Not diffusers' own, which warns of layers that it would have kept in fp32: here there are none.
        return self._readied(nn.Module.to(module, self.dtype))

    def _readied(self, module: nn.Module) -> nn.Module:
        """A new denoiser with what its family wants done to it."""
        return module

    @cached_property
    def vae(self) -> Any:
        """diffusers' VAE, in float32."""
        return (
            self.source.module("vae", self.part_classes()["vae"], torch.float32).requires_grad_(False).to(self.device)
        )

    @cached_property
    def text_encoders(self) -> list[Any]:
        """transformers' encoders, in the order of their parts."""
        classes = self.part_classes()
        loaded = [self.source.module(part, classes[part], self.encoder_dtype) for part in self.facts.text_parts]
        return [encoder.requires_grad_(False).to(self.device) for encoder in loaded]

    @cached_property
    def tokenizers(self) -> list[Any]:
        return [self.source.tokenizer(part) for part in self.facts.tokenizer_parts]

    def release_encoders(self) -> None:
        """Lets go of VAE and text encoders; they come back when next asked for."""
        for name in ("vae", "text_encoders"):
            self.__dict__.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along one side."""
        return self.autoencoder.pixels_per_latent(self._vae_config)

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.channels(self._vae_config)

    @cached_property
    def _vae_config(self) -> dict[str, Any]:
        return with_defaults(self.source.config("vae"), self.part_classes()["vae"])

    # Encodings.

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latents in the denoiser's scale for pixels [batch, 3, height, width] in [-1, 1].

        The mean of the VAE's posterior, not a draw from it as in the authors' code: its deviation is tiny, and a cached
        latent is then the same whenever it was made.
        """
        return self.autoencoder.encode(self.vae, pixels.to(self.device, torch.float32))

    @torch.no_grad()
    def decode_image(self, latents: Tensor) -> Tensor:
        """Pixels [batch, 3, height, width], about in [-1, 1], for latents in the denoiser's scale."""
        return self.autoencoder.decode(self.vae, latents.to(self.device, torch.float32))

    def null_prompt(self) -> Prompt:
        """The null prompt ∅ by the base's convention, as a batch of 1."""
        return self.null_of(self.encode_prompt([""]))

    def null_of(self, empty: Prompt) -> Prompt:
        """The null prompt ∅ by the base's convention, from the empty prompt's embeddings."""
        if self.null_prompt_kind == "encoded_empty":
            return empty
        return zeroed(empty)

    def _token_ids(self, index: int, prompts: list[str], length: int) -> Tensor:
        """Padded token ids [batch, length] of one tokenizer, on the encoders' device."""
        encoded = self.tokenizers[index](
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return encoded.input_ids.to(self.device)

    def _at_own_lengths(self, prompts: list[str], encode: Callable[[Tensor], Tensor]) -> Prompt:
        """Prompts of their own lengths, as a batch: each is encoded alone, as ComfyUI does, so that what it is kept as
        does not depend on what is encoded beside it. What the template has before it is cut off again.

        Args:
            encode: token ids [1, tokens] in, embeddings [1, tokens, dim] out.
        """
        tokenizer, rows = self.tokenizers[0], []
        hidden = len(tokenizer(self.template.split("{}")[0]).input_ids) if self.facts.hides_template else 0
        options = {"max_length": self.facts.longest_prompt + hidden, "truncation": True, "return_tensors": "pt"}
        for prompt in prompts:
            ids = tokenizer(self.template.format(prompt), **options).input_ids
            tokens = encode(ids.to(self.device))[0, hidden:]
            rows.append({"tokens": tokens, MASK: torch.ones(len(tokens), dtype=torch.bool, device=self.device)})
        return batch_of(rows)

    # Noise, as the schedule has it.

    def schedule_for(self, size: Sequence[int]) -> Schedule:
        """The schedule of pictures of a size, (height, width) in latents: :attr:`schedule`, but where the family's
        noise follows from the size."""
        return self.schedule

    def sample_timesteps(self, uniform: Tensor, size: Sequence[int]) -> Tensor:
        return self.schedule_for(size).sample_timesteps(uniform)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.schedule.target(latents, noise, timesteps)

    # Facts.

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that encodings depend on: VAE, text encoders, tokenizers, their precision. Reads each
        file once."""
        contents = self.source.digest(["vae", *self.facts.text_parts, *self.facts.tokenizer_parts])
        text = f"{ENCODING_VERSION} {self.name} {self.encoder_dtype} {contents}"
        text += self.autoencoder.fingerprint(self._vae_config)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def base_sha256(self) -> str:
        """SHA-256 over the base's denoiser, `chats.base_sha256` of a pair."""
        return self.source.digest([self.facts.denoiser_part])

    @property
    def notes(self) -> list[str]:
        """What its user should know of this base, a sentence each; none of most."""
        note = self.autoencoder.note(self._vae_config)
        return [*self.source.notes, *([f"{self.source.where('vae')}: {note}"] if note else [])]

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each part has, from headers alone."""
        return {
            part: parameter_count(self.source.shapes(part))
            for part in (self.facts.denoiser_part, "vae", *self.facts.text_parts)
        }
