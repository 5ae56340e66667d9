"""From the weights of a run to its files: the two of a pair, or one model."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from chats.pair import Metadata, Negative, PairMetadata

from ..families import Family
from ..settings.config import RunConfig
from ..support.dtypes import TORCH_DTYPES
from .adapters import adapter_weights
from .members import DISPREFERRED, PREFERRED
from .pair_files import export_full, export_lora


def export_pair(
    config: RunConfig,
    family: Family,
    weights: dict[str, Tensor],
    step: int,
    fingerprint: str,
    folder: Path,
    dtype: str = "fp16",
    probe: Mapping[str, float] = MappingProxyType({}),
    negative: Negative | None = None,
) -> list[Path]:
    """Writes the members as files that ComfyUI loads, with metadata that says they belong together.

    Args:
        weights: by `<member>.<name>`, a checkpoint's members or averages.
        step: optimizer steps trained.
        fingerprint: of the data set.
        dtype: fp32, fp16 or bf16, of the files.
        probe: fields of the metadata, what the probe of the proxy form measured.
        negative: the better one, where an evaluation of these weights found one.

    Returns:
        the files.
    """
    trained = {key.split(".", 1)[0] for key in weights}
    paths = []
    for member in (PREFERRED, DISPREFERRED):
        if member not in trained:
            continue
        metadata = PairMetadata(
            member,
            pair_id=pair_id(config, family, step, fingerprint),
            base_name=Path(config.pretrained_model).name,
            base_sha256=family.base_sha256,
            prediction_type=family.prediction_type,
            null_prompt=family.null_prompt_kind,
            null_prompt_prob=config.null_prompt_prob,
            alpha=config.alpha,
            guidance_scale=config.guidance_scale,
            beta=config.beta,
            resolution=config.resolution,
            step=step,
            config_sha256=config.sha256(),
            dataset_fingerprint=fingerprint,
            proxy_cosine=probe.get("proxy_cosine"),
            proxy_relative_error=probe.get("proxy_relative_error"),
            negative=negative,
        )
        stem = config.output_dir.name
        path = folder / f"{stem}_{member}.safetensors"
        export_model(config, family, adapter_weights(weights, member), path, metadata, f"{stem} {member}", dtype)
        paths.append(path)
    return paths


def pair_id(config: RunConfig, family: Family, step: int, fingerprint: str) -> str:
    """The same weights make the same pair, however often they are exported."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{family.base_sha256} {config.sha256()} {fingerprint} {step}").hex


def export_model(
    config: RunConfig,
    family: Family,
    weights: Mapping[str, Tensor],
    path: Path,
    metadata: Metadata,
    title: str,
    dtype: str,
) -> None:
    """Writes one model, by the run's training method a LoRA or a whole one, as a file that ComfyUI loads.

    Args:
        weights: of :func:`adapter_weights`.
        title: `modelspec.title`.
        dtype: fp32, fp16 or bf16.
    """
    if config.training_method == "lora":
        shapes = family.source.shapes(family.facts.denoiser_part)
        export_lora(
            path, family.name, weights, config.network_alpha, shapes, metadata, title=title, dtype=TORCH_DTYPES[dtype]
        )
    else:
        # A file is the whole state, also what does not train (SD3's table of positions is a buffer).
        whole = {**family.load_denoiser().state_dict(), **weights}
        zero_snr = getattr(family.schedule, "zero_terminal_snr", False)
        export_full(
            path, family.name, whole, metadata, title=title, dtype=TORCH_DTYPES[dtype], zero_terminal_snr=zero_snr
        )
