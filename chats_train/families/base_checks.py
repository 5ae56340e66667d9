"""Whether a base is what its family takes it for, from headers and configurations alone: what `check` and `train` look
at as the base is opened, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, cast

from chats.pair import PredictionType

from ..layouts.formats import file_format
from ..layouts.places import LayoutError, require_all
from ..settings.facts import FAMILIES, FamilyFacts
from .autoencoders import Autoencoder
from .config_keys import ConfigKeys, require_honoured, unhonoured, with_defaults
from .source_error import SourceError
from .sources import INDEX, Source

# What a denoiser calls the width of the prompts that it attends to.
TEXT_WIDTHS = ("cross_attention_dim", "joint_attention_dim", "cap_feat_dim", "text_hidden_dim")


class Base(Protocol):
    """What is checked: a family over a base model."""

    facts: ClassVar[FamilyFacts]
    autoencoder: ClassVar[Autoencoder]
    denoiser_keys: ClassVar[ConfigKeys]
    noise_keys: ClassVar[ConfigKeys]
    index_keys: ClassVar[ConfigKeys]
    source: Source

    @staticmethod
    def part_classes() -> dict[str, type]: ...

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]: ...


def check_base(family: Base, prediction_type: PredictionType | None) -> None:
    """Refuses a base that would be trained as what it is not.

    Args:
        family: over the base; its parts' classes and records say what is right.
        prediction_type: what the run's config states instead of the base.

    Raises:
        SourceError, UserError: one sentence that names the file, the key and its value, and the way out.
    """
    facts, source = family.facts, family.source
    source.require_kind()
    _check_family(family)
    denoiser = _checked_config(family, facts.denoiser_part, family.denoiser_keys)
    kind = family.autoencoder
    vae = _checked_config(family, "vae", kind.keys.but(**{kind.channels_key: (family.facts.latent_channels,)}))
    _check_noise(family, prediction_type)
    index = {key: value for key, value in source.index.items() if key in family.index_keys.honoured}
    if index:  # a single file has none
        require_honoured(index, None, family.index_keys, source.where(INDEX), facts.title)
    kind.check(vae, source.where("vae"), partial(_refusal, family, "vae"))
    for part in facts.text_parts:
        _check_text_encoder(family, part)
    _check_widths(family, denoiser)
    source.require_whole(family.part_classes(), facts.denoiser_part)
    _check_names(family)
    if _text_width(denoiser) == family.facts.comfy_sizes.text_width:
        _check_comfy_sizes(family, denoiser, vae)


def _check_family(family: Base) -> None:
    """A UNet under another family's text is that family's."""
    width = family.source.config(family.facts.denoiser_part).get("cross_attention_dim")
    others = [facts for facts in FAMILIES.values() if facts is not family.facts and facts.marks.text_width == width]
    if width is not None and others:
        raise SourceError(
            f"{family.source.where(family.facts.denoiser_part)}: `cross_attention_dim` is {width}, so it is "
            f"{others[0].title}, and `family` is {family.facts.name}; correct `family`"
        )


def _checked_config(family: Base, part: str, keys: ConfigKeys) -> dict[str, Any]:
    """A part's configuration with its class's defaults, once every key of it is known to be honoured."""
    stated, cls, where = family.source.config(part), family.part_classes()[part], family.source.where(part)
    if (name := stated.get("_class_name")) != cls.__name__:
        way_out = "correct `family`" if part == family.facts.denoiser_part else "give a base with one"
        raise SourceError(
            f"{where} has a {name} as its {part}, `family` {family.facts.name} needs a {cls.__name__}; {way_out}"
        )
    require_honoured(stated, cls, keys, where, family.facts.title)
    return with_defaults(stated, cls)


def _check_noise(family: Base, prediction_type: PredictionType | None) -> None:
    import diffusers

    stated = dict(family.source.noise)
    if prediction_type is not None:
        stated.pop("prediction_type", None)
    else:
        family.source.require_stated_prediction()
    name = str(stated.get("_class_name"))
    cls = getattr(diffusers, name) if name in family.noise_keys.honoured["_class_name"] else None
    require_honoured(stated, cls, family.noise_keys, family.source.where("scheduler"), family.facts.title)


def _check_text_encoder(family: Base, part: str) -> None:
    config = family.source.config(part)
    if config.get("quantization_config"):
        raise _refusal(family, part, "quantization_config", config["quantization_config"])
    wanted = cast(Any, family.part_classes()[part]).config_class.model_type
    if (kind := config.get("model_type")) != wanted:
        raise _refusal(family, part, "model_type", kind, wanted)


def _check_widths(family: Base, denoiser: Mapping[str, Any]) -> None:
    """The text encoders give what the denoiser takes."""
    given = family.prompt_shapes()
    wanted = {
        "cross_attention_dim": given["tokens"][-1],
        "joint_attention_dim": given["tokens"][-1],
        "cap_feat_dim": given["tokens"][-1],
        # Of several layers of the encoder, one beside the other.
        "text_hidden_dim": given["tokens"][-1] // denoiser.get("num_text_layers", 1),
        "pooled_projection_dim": given.get("pooled", (None,))[-1],
    }
    if denoiser.get("addition_embed_type") == "text_time":
        # Six numbers of sizes follow the pooled text, each as a vector of this width.
        sizes = 6 * (denoiser["addition_time_embed_dim"] or 0)
        wanted["projection_class_embeddings_input_dim"] = given["pooled"][-1] + sizes
    for key, width in wanted.items():
        if key in family.denoiser_keys.idle.split():
            continue
        stated = denoiser.get(key, width)
        if any(each != width for each in (stated if isinstance(stated, list | tuple) else [stated])):
            raise SourceError(
                f"{family.source.where(family.facts.denoiser_part)}: `{key}` is {stated}, and the text encoders give "
                f"{width}; give denoiser and text encoders of one base, or correct `family`"
            )


def _check_names(family: Base) -> None:
    """Every weight has a name in the native layout, or export would fail at the end."""
    shapes = family.source.shapes(family.facts.denoiser_part)
    try:
        require_all(shapes, file_format(family.facts.name).layout(shapes), family.facts.name)
    except LayoutError as error:
        raise SourceError(f"{family.source.where(family.facts.denoiser_part)}: {error}") from error


def _check_comfy_sizes(family: Base, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """What shows in no weight, so that ComfyUI could not know it of the exported pair."""
    sizes, part = family.facts.comfy_sizes, family.facts.denoiser_part
    for key in ("norm_num_groups", "norm_eps"):
        if (wanted := getattr(sizes, key)) is not None and denoiser[key] != wanted:
            raise _refusal(family, part, key, denoiser[key], wanted)
    if sizes.heads is not None or sizes.head_width is not None:
        channels, stated = denoiser["block_out_channels"], denoiser["attention_head_dim"]
        # diffusers' name is a mistake that it keeps: these are numbers of heads.
        heads = stated if isinstance(stated, list | tuple) else [stated] * len(channels)
        wanted = [sizes.heads or width // (sizes.head_width or width) for width in channels]
        if list(heads) != wanted:
            raise _refusal(family, part, "attention_head_dim", stated, wanted)
    family.autoencoder.check_comfy(vae, sizes, partial(_refusal, family, "vae"))


def _refusal(family: Base, part: str, key: str, value: Any, *values: Any) -> SourceError:
    stated = key in family.source.config(part)
    return unhonoured(key, value, family.source.where(part), family.facts.title, values, stated)


def _text_width(denoiser: Mapping[str, Any]) -> Any:
    return next((denoiser[key] for key in TEXT_WIDTHS if key in denoiser), None)
