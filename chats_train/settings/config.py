"""The settings of one run: one YAML file, strict and versioned. How it is read, overridden and saved: ``config_file``.

The names are the field's own (kohya-ss/sd-scripts, diffusers' training scripts). A setting's description is also its
comment in ``python -m chats_train init``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..support.paths import PathError, expanded
from .facts import FAMILIES, FamilyFacts

CONFIG_VERSION = 1
LORA_LEARNING_RATE = 1e-5
FULL_LEARNING_RATE = 5e-7
DEFAULT_BUCKET_STEPS = 64

Count = Annotated[int, Field(ge=1)]
OptionalCount = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
# Paths are expanded as they are read, so that every use, and the copy that a run saves, has the same one.
_expanded = BeforeValidator(lambda value: expanded(value) if isinstance(value, str) else value)
FilePath = Annotated[Path, _expanded, Field(strict=False)]
# A path, or a word that stands for one: a hub id, `latest`.
PathText = Annotated[str, _expanded]


class Section(BaseModel):
    """Common to all sections: unknown keys and wrong types are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Names of the columns (or of the keys in metadata.jsonl), where they are not the usual ones."""

    chosen: str | None = Field(None, description="column of the image that was preferred")
    rejected: str | None = Field(None, description="column of the other image")
    prompt: str | None = Field(None, description="column of the prompt")


class DataConfig(Section):
    """Where the preference pairs come from."""

    path: FilePath | None = Field(
        None,
        description="a folder (metadata.jsonl, or chosen/ and rejected/ with .txt captions), a .parquet file or a "
        "folder of them",
    )
    hub_id: str | None = Field(
        None, description="or a data set of the Hugging Face hub (owner/name), which is fetched; set one of the two"
    )
    subset: str | None = Field(None, description="hub only: the configuration, where the data set has several")
    revision: str | None = Field(None, description="hub only: a branch, tag or commit")
    split: str = Field(
        "train", description="of the hub, or of parquet files whose names state theirs (several with +, or all)"
    )
    columns: Columns = Field(
        default_factory=Columns, description="names of the columns, where they are not the usual ones"
    )
    max_pairs: Count | None = Field(None, description="read only the first pairs; null reads all")
    checksum: bool = Field(
        False,
        description="read and hash every image again at each start; false trusts files of unchanged size and time",
    )
    strict: bool = Field(
        False, description="stop at broken images, missing captions or sizes that differ; false lists them and goes on"
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.hub_id is None):
            state = "are both set" if self.path else "are both missing"
            raise ValueError(
                f"`data.path` and `data.hub_id` {state}; set `data.path` to local data, or `data.hub_id` to fetch a "
                "data set"
            )
        return self


class RunConfig(Section):
    """All settings of one run, with every default filled in."""

    version: Literal[1] = Field(description="of this format")
    family: str = Field(description=f"{', '.join(FAMILIES)}; 3.5 is an sd3")
    output_dir: FilePath = Field(description="checkpoints, previews, logs and the finished pair go here")

    pretrained_model: PathText = Field(
        description="the base: a .safetensors checkpoint, a diffusers folder, or a hub id, which is fetched"
    )
    encoders: PathText | None = Field(
        None, description="VAE and text encoders where a checkpoint has none: a diffusers folder or hub id"
    )
    tokenizer: PathText | None = Field(
        None, description="for a checkpoint: a folder with CLIP's vocab.json and merges.txt; null is ComfyUI's"
    )
    configs: PathText | None = Field(
        None, description="for a checkpoint of unusual size: a folder of diffusers' configurations"
    )
    prediction_type: Literal["epsilon", "v_prediction", "flow"] | None = Field(
        None, description="epsilon, v_prediction or flow; null is what the base's own files state"
    )
    data: DataConfig = Field(description="the preference pairs")

    objective: Literal[
        "chats", "diffusion_dpo", "supervised_chosen", "supervised_all", "two_models_without_reference"
    ] = Field(
        "chats",
        description="chats, or a baseline: diffusion_dpo, supervised_chosen, supervised_all, "
        "two_models_without_reference",
    )
    beta: Positive = Field(1000.0, description="weight of the objective, T of Eq. 13")
    null_prompt: Literal["encoded_empty", "zeros"] | None = Field(
        None, description="encoded_empty or zeros; null is the base's own convention"
    )
    null_prompt_prob: Share = Field(
        0.5, description="how often the dispreferred model sees the null prompt instead of the prompt"
    )

    training_method: Literal["lora", "full"] = Field(
        "lora", description="lora (two adapters on one base) or full (two whole models)"
    )
    network_rank: Count = Field(16, description="lora only")
    network_alpha: Positive = Field(
        16.0, description="lora only; the adapter is scaled by network_alpha / network_rank"
    )
    network_target_modules: list[str] | None = Field(
        None, description="lora only: endings of layer names; null is the attention layers"
    )
    weight_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="full only: fp32 masters, or bf16 with stochastic rounding"
    )
    base_quantization: Literal["none", "nf4", "int8"] = Field(
        "none", description="lora only: the base's blocks in 4 or 8 bits, for less memory (needs bitsandbytes)"
    )

    resolution: Count = Field(description="in pixels: images get about resolution × resolution of them")
    enable_bucket: bool = Field(True, description="keep aspect ratios, a bucket of sizes for each; false crops squares")
    bucket_reso_steps: Count = Field(
        DEFAULT_BUCKET_STEPS, description="sides of the buckets are multiples of this, in pixels"
    )
    min_bucket_reso: Count = Field(description="shortest side of a bucket in pixels; null is resolution / 2")
    max_bucket_reso: Count = Field(description="longest side of a bucket in pixels; null is resolution × 2")
    cache_dir: FilePath = Field(
        description="latents and prompt embeddings, which runs can share; null is cache/ in output_dir"
    )

    max_train_steps: Count = Field(2000, description="optimizer steps")
    train_batch_size: Count = Field(1, description="pairs per process and pass")
    gradient_accumulation_steps: Count = Field(8, description="passes per optimizer step")
    seed: OptionalCount = Field(0, description="of noise, timesteps, order and the null prompt's coin")

    learning_rate: Positive = Field(
        description=f"after the warm-up; null is {LORA_LEARNING_RATE:g} for lora, {FULL_LEARNING_RATE:g} for full"
    )
    scale_lr: bool = Field(
        False, description="multiply learning_rate by the pairs of one optimizer step, over all processes"
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up: constant, or to zero"
    )
    lr_warmup_steps: OptionalCount = Field(100, description="optimizer steps")
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = Field(
        "adamw", description="adamw, adamw8bit (needs bitsandbytes) or adafactor"
    )
    adam_beta1: Decay = Field(0.9, description="adamw and adamw8bit")
    adam_beta2: Decay = Field(0.999, description="adamw and adamw8bit")
    adam_epsilon: Positive = Field(1e-8, description="adamw and adamw8bit")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled, for every optimizer")
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="longer gradients are cut to this; 0 is off")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="average of the weights, such as 0.999; null is off"
    )

    mixed_precision: Literal["no", "fp16", "bf16"] = Field("bf16", description="no, fp16 or bf16")
    gradient_checkpointing: bool = Field(True, description="less memory, about a quarter slower")
    memory: Literal["normal", "low"] = Field(
        "normal", description="low keeps one model's activations at a time, for one more forward pass"
    )

    checkpointing_steps: Count = Field(500, description="optimizer steps between checkpoints")
    checkpoints_total_limit: Count | None = Field(3, description="older ones are removed; null keeps all")
    resume_from_checkpoint: PathText | None = Field(
        None, description="latest, a checkpoint's folder, or null to start anew"
    )

    validation_pairs: OptionalCount = Field(32, description="pairs held out of training to measure on; 0 is none")
    validation_steps: Count = Field(250, description="optimizer steps between measurements")
    sample_every: OptionalCount = Field(0, description="optimizer steps between previews; 0 is off")
    sample_prompts: list[str] = Field(default_factory=list, description="prompts of the previews")
    sample_steps: Count = Field(25, description="sampling steps of a preview")
    guidance_scale: Annotated[float, Field(ge=0)] = Field(
        5.0, description="the paper's s (ComfyUI's cfg is 1 + s), written into the pair"
    )
    alpha: float = Field(0.5, description="the paper's α, written into the pair")
    report_to: Literal["none", "tensorboard"] = Field(
        "none", description="none or tensorboard, beside metrics.jsonl and loss.png"
    )
    reference_draws: Count | None = Field(
        None,
        description="noise, timestep and coin of a pair repeat after so many epochs, and the reference is asked only "
        "once for each; null is fresh ones at each visit",
    )
    compile: bool = Field(
        False, description="torch.compile, a block at a time: faster steps after a first one that takes minutes"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        """Defaults that follow from other settings (``DERIVED``); null stands for them too."""
        if not isinstance(raw, dict):
            return raw
        if raw.get("version") != CONFIG_VERSION:
            stated = f"is {raw['version']}" if "version" in raw else "is missing"
            raise ValueError(f"`version` {stated}; this trainer reads `version: {CONFIG_VERSION}`")
        family = raw.get("family")
        if not isinstance(family, str) or family not in FAMILIES:
            stated = f"is `{family}`" if "family" in raw else "is missing"
            raise ValueError(f"`family` {stated}; set it to one of {', '.join(FAMILIES)}")
        derived = _derived(FAMILIES[family], {key: value for key, value in raw.items() if value is not None})
        return raw | {key: value for key, value in derived.items() if raw.get(key) is None}

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        """What no single setting can tell."""
        family = FAMILIES[self.family]
        for name in ("resolution", "bucket_reso_steps"):
            value = getattr(self, name)
            if value % family.multiple:
                nearest = max(family.multiple, round(value / family.multiple) * family.multiple)
                raise ValueError(
                    f"`{name}` is {value}; {family.title} needs a multiple of {family.multiple}: try {nearest}"
                )
        if self.prediction_type is not None and self.prediction_type not in family.prediction_types:
            allowed = " or ".join(family.prediction_types)
            raise ValueError(
                f"`prediction_type` is `{self.prediction_type}`; for {family.title} set {allowed}, or leave it out"
            )
        if (self.training_method, self.weight_dtype, self.mixed_precision) == ("full", "bf16", "fp16"):
            raise ValueError(
                "`mixed_precision` is fp16, which needs `weight_dtype` fp32; set `mixed_precision: bf16` for bf16 "
                "weights"
            )
        if self.base_quantization != "none" and (self.training_method == "full" or self.compile):
            other = "`compile` is true" if self.compile else "`training_method` is full"
            raise ValueError(
                f"`base_quantization` is {self.base_quantization}, and {other}; only the base of LoRAs is quantized, "
                "and is not compiled: set it to none"
            )
        if not self.min_bucket_reso <= self.resolution <= self.max_bucket_reso:
            raise ValueError(
                f"`resolution` is {self.resolution}, outside of `min_bucket_reso` {self.min_bucket_reso} to "
                "`max_bucket_reso` "
                f"{self.max_bucket_reso}; leave those two out to get fitting ones"
            )
        if self.sample_every and not self.sample_prompts:
            raise ValueError(
                f"`sample_every` is {self.sample_every} but `sample_prompts` is empty; add a prompt, or set "
                "`sample_every: 0`"
            )
        if self.reference_draws is not None and self.objective not in WITH_REFERENCE:
            raise ValueError(
                f"`reference_draws` is {self.reference_draws}, but `objective` {self.objective} has no reference; "
                "leave it out"
            )
        return self

    def sha256(self) -> str:
        """Digest of the settings, hexadecimal: ``chats.config_sha256`` of the pair's metadata. A run that was resumed
        is the same run, so is one whose data were read anew, and one of before a setting that it leaves at its
        default."""
        fields = type(self).model_fields
        left_out = {name: True for name in LATER if getattr(self, name) == fields[name].default}
        text = self.model_dump_json(exclude={"resume_from_checkpoint": True, "data": {"checksum": True}, **left_out})
        return hashlib.sha256(text.encode()).hexdigest()


# Settings that version 0.1.0 did not have.
LATER = frozenset({"reference_draws", "compile", "base_quantization"})
# Objectives that compare with the reference.
WITH_REFERENCE = frozenset({"chats", "diffusion_dpo"})

# Settings whose defaults follow from others; a config may say null for them.
DERIVED = frozenset({"resolution", "min_bucket_reso", "max_bucket_reso", "cache_dir", "learning_rate"})


def _derived(family: FamilyFacts, raw: dict[str, Any]) -> dict[str, Any]:
    """Values for ``DERIVED`` from unchecked settings; what is wrong in those is found afterwards."""
    resolution = raw.get("resolution", family.resolution)
    step = raw.get("bucket_reso_steps", DEFAULT_BUCKET_STEPS)
    if not isinstance(resolution, int) or not isinstance(step, int) or step < 1:
        resolution, step = family.resolution, DEFAULT_BUCKET_STEPS
    return {
        "resolution": family.resolution,
        "min_bucket_reso": min(resolution, max(step, resolution // 2 // step * step)),
        "max_bucket_reso": resolution * 2,
        "cache_dir": str(_usable(raw.get("output_dir")) / "cache"),
        "learning_rate": FULL_LEARNING_RATE if raw.get("training_method") == "full" else LORA_LEARNING_RATE,
    }


def _usable(output_dir: Any) -> Path:
    """A folder to derive others from; what is wrong with it is said of it alone."""
    try:
        return Path(expanded(str(output_dir)) if isinstance(output_dir, str | Path) else "")
    except PathError:
        return Path()
