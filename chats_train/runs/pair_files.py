"""The files of a pair, or of one model, LoRAs or whole: their keys and the keys' order, dtypes, metadata, reading back.

A LoRA's keys are named by ``lora_names`` in ``layouts/formats.py``. Their order is safetensors' own, by dtype and then
by key; ``chats/pair.py`` orders the metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from chats.pair import Metadata, write_member

from ..layouts.formats import file_format, lora_names
from ..layouts.places import LayoutError, require_all, to_native
from ..support.tensor_files import read_tensors

# What a file of each prediction type says of itself: sd-scripts reads `prediction_type`, ComfyUI writes `predict_key`.
PREDICTION_WORDS = {"epsilon": "epsilon", "v_prediction": "v"}
KOHYA_SUFFIXES, PEFT_SUFFIXES = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
SUFFIXES = {"kohya": KOHYA_SUFFIXES, "kohya_native": KOHYA_SUFFIXES, "peft": PEFT_SUFFIXES}


def export_full(
    path: str | os.PathLike[str],
    family: str,
    weights: Mapping[str, Tensor],
    metadata: Metadata,
    *,
    title: str,
    dtype: torch.dtype | None = None,
    zero_terminal_snr: bool = False,
) -> int:
    """Writes one whole diffusion model in its native layout, for ComfyUI's `diffusion_models/`.

    Args:
        path: the .safetensors file.
        family: `sd15`, `sdxl`, `sd3` or `flux`.
        weights: the denoiser's state dict, in diffusers' names.
        metadata: the `chats.*` entries, of a member or of a distilled model; ``prediction_type`` also sets the markers.
        title: `modelspec.title`.
        dtype: of the file; None keeps each tensor's own.
        zero_terminal_snr: whether a v-prediction model was trained to zero terminal SNR.

    Returns:
        the number of tensors written.

    Raises:
        LayoutError: when a weight has no place in the layout, or the file read back is not what was meant.
    """
    form = file_format(family)
    places = form.layout(weights)
    require_all(weights, places, family)
    native = {key: tensor.detach().to("cpu", dtype) for key, tensor in to_native(weights, places).items()}
    if form.facts.has_markers and metadata.prediction_type == "v_prediction":
        native["v_pred"] = torch.tensor([])
        if zero_terminal_snr:
            native["ztsnr"] = torch.tensor([])
    write_member(path, native, metadata, modelspec(form.facts.architecture, title, metadata))
    with _deleted_on_failure(path):
        check_equal(path, native)
    return len(native)


def export_lora(
    path: str | os.PathLike[str],
    family: str,
    lora: Mapping[str, Tensor],
    alpha: float,
    base_shapes: Mapping[str, tuple[int, ...]],
    metadata: Metadata,
    *,
    title: str,
    dtype: torch.dtype | None = None,
) -> int:
    """Writes one LoRA under the names that ComfyUI maps for the family, with an `.alpha` beside every module.

    Without `.alpha` ComfyUI applies the LoRA at scale 1, whatever it was trained with.

    Args:
        path: the .safetensors file.
        family: `sd15`, `sdxl`, `sd3` or `flux`.
        lora: `<module>.lora_A.weight` and `<module>.lora_B.weight` per module (diffusers' names, PEFT's state dict of
            one adapter; its prefix `base_model.model.` may stay).
        alpha: the scale is alpha / rank.
        base_shapes: the shapes of the base's weights by diffusers' key.
        metadata: the `chats.*` entries.
        title: `modelspec.title`.
        dtype: of the file; None keeps each tensor's own.

    Returns:
        the number of modules written.

    Raises:
        LayoutError: when a module is not one of the base's, or the file read back does not map whole.
    """
    form = file_format(family)
    names = lora_names(family, base_shapes)
    down, up = SUFFIXES[form.facts.lora_style]
    tensors: dict[str, Tensor] = {}
    for key, tensor in lora.items():
        module, side = _split(key)
        if module not in names:
            raise LayoutError(
                f"the LoRA has a module `{module}`, which the {family} base does not have; was it trained on another "
                "base?"
            )
        tensors[f"{names[module]}.{down if side == 'A' else up}"] = tensor.detach().to("cpu", dtype)
        tensors[f"{names[module]}.alpha"] = torch.tensor(float(alpha))
    write_member(path, tensors, metadata, modelspec(f"{form.facts.architecture}/lora", title, metadata))
    with _deleted_on_failure(path):
        check_equal(path, tensors)
        return check_lora(path, family, base_shapes)


def check_lora(path: str | os.PathLike[str], family: str, base_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Maps every key of a LoRA file to the base it is for; how many modules it changes.

    Raises:
        LayoutError: when nothing maps, when only some of it maps, or when a factor does not fit its weight.
    """
    form = file_format(family)
    down, up = SUFFIXES[form.facts.lora_style]
    modules = {name: module for module, name in lora_names(family, base_shapes).items()}
    shapes = {key: found.shape for key, found in read_tensors(Path(path)).items()}
    found = {key.rsplit(".", 1)[0] for key in shapes if key.endswith(".alpha")}
    mapped = {f"{name}.{end}" for name in found if name in modules for end in (down, up, "alpha")}
    if not mapped:
        raise LayoutError(
            f"{os.fspath(path)} has no key that ComfyUI maps to {family}; it would load and change nothing"
        )
    if mapped != set(shapes):
        raise LayoutError(
            f"{os.fspath(path)} maps only in part to {family}: `{sorted(mapped ^ set(shapes))[0]}` has no counterpart"
        )
    for name in found:
        base, factors = base_shapes[f"{modules[name]}.weight"], (shapes[f"{name}.{down}"], shapes[f"{name}.{up}"])
        if factors[0][1:] != tuple(base[1:]) or factors[1][0] != base[0] or factors[0][0] != factors[1][1]:
            raise LayoutError(
                f"`{name}` has factors {factors[0]} and {factors[1]}, which do not fit its weight {tuple(base)}"
            )
    return len(found)


@contextmanager
def _deleted_on_failure(path: str | os.PathLike[str]) -> Iterator[None]:
    """A file that fails its check must not lie about looking whole."""
    try:
        yield
    except LayoutError:
        Path(path).unlink()
        raise


def _split(key: str) -> tuple[str, str]:
    """Module and side (`A` or `B`) of a PEFT key."""
    module, _, end = key.removeprefix("base_model.model.").rpartition(".lora_")
    if not module or end not in ("A.weight", "B.weight"):
        raise LayoutError(
            f"`{key}` is not a LoRA weight, expected `<module>.lora_A.weight` or `<module>.lora_B.weight`"
        )
    return module, end[0]


def check_equal(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Reads the file back, tensor by tensor."""
    with safe_open(path, framework="pt") as file:
        if set(file.keys()) != set(tensors):
            raise LayoutError(
                f"{os.fspath(path)} came back with other keys than were written; the disk is at fault, export again"
            )
        for key, tensor in tensors.items():
            if not torch.equal(file.get_tensor(key), tensor):
                raise LayoutError(
                    f"`{key}` in {os.fspath(path)} is not what was written, or is NaN; the file was deleted"
                )


def modelspec(architecture: str | None, title: str, metadata: Metadata) -> dict[str, str]:
    """The `modelspec.*` entries (https://github.com/Stability-AI/ModelSpec); without an architecture where that is not
    known."""
    spec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": title,
    }
    if architecture is not None:
        spec["modelspec.architecture"] = architecture
    if metadata.prediction_type in PREDICTION_WORDS:
        word = PREDICTION_WORDS[metadata.prediction_type]
        spec |= {"modelspec.prediction_type": word, "modelspec.predict_key": word}
    if metadata.resolution is not None:
        spec["modelspec.resolution"] = f"{metadata.resolution}x{metadata.resolution}"
    return spec
