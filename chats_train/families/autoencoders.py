"""Kinds of VAE: what their configurations say, and how pixels become latents in the denoiser's scale and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..settings.family_facts import ComfySizes
from .config_keys import FLUX2_VAE, QWEN_VAE, VAE, ConfigKeys, with_defaults
from .source_error import SourceError

STATISTICS = ("latents_mean", "latents_std")
# A key, its value and the values that it may have in, the error out.
Refuse = Callable[..., SourceError]


class Autoencoder(ABC):
    """A kind of VAE. It holds none: it is handed diffusers' module, or its configuration with the defaults filled in.

    Attributes:
        keys: what the configuration may say.
        channels_key: the key that has the number of channels of its latents.
    """

    keys: ClassVar[ConfigKeys]
    channels_key: ClassVar[str]

    def check(self, config: Mapping[str, Any], where: str, refuse: Refuse) -> None:
        """Refuses statistics that are not one number a channel.

        Args:
            config: with the class's defaults.
            where: which file, for errors.

        Raises:
            SourceError: for what is not a VAE of this kind.
        """
        for key in STATISTICS:
            if config.get(key) is not None and not _are_numbers(config[key], config[self.channels_key]):
                channels = config[self.channels_key]
                raise SourceError(f"{where}: `{key}` is not one number for each of {channels} channels; correct it")

    @abstractmethod
    def check_comfy(self, config: Mapping[str, Any], sizes: ComfySizes, refuse: Refuse) -> None:
        """Refuses another scale of latents than ComfyUI's, which no exported file could tell it."""

    @abstractmethod
    def pixels_per_latent(self, config: Mapping[str, Any]) -> int:
        """Pixels along a side of one latent."""

    def channels(self, config: Mapping[str, Any]) -> int:
        """Of the denoiser's latents."""
        return config[self.channels_key]

    @abstractmethod
    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Latents in the denoiser's scale, [batch, channels, height, width], for pixels in [-1, 1] on the VAE's device:
        the posterior's mean."""

    @abstractmethod
    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse, pixels [batch, 3, height, width]."""

    def note(self, config: Mapping[str, Any]) -> str | None:
        """What its user should know of such a VAE; None of most."""
        return None

    def fingerprint(self, config: Mapping[str, Any]) -> str:
        """What the encodings depend on beside the VAE's own files."""
        return ""


class KLAutoencoder(Autoencoder):
    """diffusers' AutoencoderKL, with one shift and scale; where the base states its latents' mean and deviation, for
    each channel, as diffusers' pipelines apply them."""

    keys = VAE
    channels_key = "latent_channels"

    def check(self, config: Mapping[str, Any], where: str, refuse: Refuse) -> None:
        if (config["latents_mean"] is None) != (config["latents_std"] is None):
            key = next(key for key in STATISTICS if config[key] is not None)
            raise refuse(key, config[key])
        super().check(config, where, refuse)

    def check_comfy(self, config: Mapping[str, Any], sizes: ComfySizes, refuse: Refuse) -> None:
        if config["latents_mean"] is not None:
            return
        for key in ("scaling_factor", "shift_factor"):
            if not math.isclose(config[key] or 0.0, getattr(sizes, key)):
                raise refuse(key, config[key], getattr(sizes, key))

    def pixels_per_latent(self, config: Mapping[str, Any]) -> int:
        return 2 ** (len(config["block_out_channels"]) - 1)

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        shift, scale = self._scale(vae, pixels.device)
        return (vae.encode(pixels).latent_dist.mode() - shift) * scale

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        shift, scale = self._scale(vae, latents.device)
        return vae.decode(latents / scale + shift, return_dict=False)[0]

    def note(self, config: Mapping[str, Any]) -> str | None:
        if config.get("latents_mean") is None:
            return None
        return (
            "latents are scaled by `latents_mean` and `latents_std`, of which ComfyUI knows nothing; sample the pair "
            "with `sample` and `evaluate`, or give a base without them"
        )

    def fingerprint(self, config: Mapping[str, Any]) -> str:
        # Version 0.1.0 took no notice of the statistics; what it cached with such a base is not to be used.
        return "" if config.get("latents_mean") is None else " by latents_mean and latents_std"

    @staticmethod
    def _scale(vae: Any, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale that take the VAE's latents to the denoiser's."""
        config = vae.config
        if config.get("latents_mean") is None:
            return config.get("shift_factor") or 0.0, config.scaling_factor
        mean, deviation = _statistics(vae, device, 4)
        return mean, config.scaling_factor / deviation


class QwenAutoencoder(Autoencoder):
    """diffusers' AutoencoderKLQwenImage, a video's VAE: it takes pictures as videos of one frame, and states mean and
    deviation of every channel."""

    keys = QWEN_VAE
    channels_key = "z_dim"

    def check_comfy(self, config: Mapping[str, Any], sizes: ComfySizes, refuse: Refuse) -> None:
        from diffusers import AutoencoderKLQwenImage

        # ComfyUI's are these too.
        usual = with_defaults({}, AutoencoderKLQwenImage)
        for key in STATISTICS:
            if not all(map(math.isclose, config[key], usual[key])):
                raise refuse(key, config[key], usual[key])

    def pixels_per_latent(self, config: Mapping[str, Any]) -> int:
        return 2 ** len(config["temperal_downsample"])

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, pixels.device, 5)
        return ((vae.encode(pixels.unsqueeze(2)).latent_dist.mode() - mean) / deviation).squeeze(2)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents.device, 5)
        return vae.decode(latents.unsqueeze(2) * deviation + mean, return_dict=False)[0].squeeze(2)


class Flux2Autoencoder(Autoencoder):
    """diffusers' AutoencoderKLFlux2: four latents are packed into one, and each channel of those has a mean and a
    variance in its batch norm."""

    keys = FLUX2_VAE
    channels_key = "latent_channels"
    packed = 2

    def check_comfy(self, config: Mapping[str, Any], sizes: ComfySizes, refuse: Refuse) -> None:
        pass  # ComfyUI's VAE has the statistics among its weights too.

    def pixels_per_latent(self, config: Mapping[str, Any]) -> int:
        return self.packed * 2 ** (len(config["block_out_channels"]) - 1)

    def channels(self, config: Mapping[str, Any]) -> int:
        return self.packed**2 * config[self.channels_key]

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        mean, deviation = self._batch_norm(vae)
        latents = vae.encode(pixels).latent_dist.mode()
        packed = rearrange(latents, "b c (h p) (w q) -> b (c p q) h w", p=self.packed, q=self.packed)
        return (packed - mean) / deviation

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._batch_norm(vae)
        packed = latents * deviation + mean
        unpacked = rearrange(packed, "b (c p q) h w -> b c (h p) (w q)", p=self.packed, q=self.packed)
        return vae.decode(unpacked, return_dict=False)[0]

    @staticmethod
    def _batch_norm(vae: Any) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each packed channel, [1, channels, 1, 1]."""
        mean, variance = (value.reshape(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()


def _statistics(vae: Any, device: torch.device, dimensions: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, [1, channels, 1, ...]."""
    mean, deviation = (
        torch.tensor(vae.config[key], device=device).reshape(1, -1, *[1] * (dimensions - 2)) for key in STATISTICS
    )
    return mean, deviation


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )
