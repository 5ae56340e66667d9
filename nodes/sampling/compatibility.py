"""Whether two loaded models can be sampled as a pair."""

import torch
from comfy.model_patcher import ModelPatcher

from ..advice import PREDICTIONS
from .pairing import is_paired

# What a noise process is called, by the class in ComfyUI that adds the noise.
PROCESS_NAMES = {"EPS": "diffusion", "CONST": "flow matching"}
WAY_OUT = "put the model sampling node after CHATS Apply"


def check_models(preferred: ModelPatcher, dispreferred: ModelPatcher) -> None:
    """Raises ValueError, in one sentence with the way out, unless the two models are of the same architecture, take the
    same kind of noise, and are no pair yet.

    What two versions of one loaded model need beyond it, :func:`.pairing.pair_models` checks.
    """
    for name, model in (("preferred", preferred), ("dispreferred", dispreferred)):
        if is_paired(model):
            raise ValueError(f"`{name}` already is a CHATS pair; connect the plain model, as it was before CHATS Apply")
    if difference := _first_difference(preferred, dispreferred):
        raise ValueError(
            f"`preferred` and `dispreferred` are different architectures: {difference}; choose the two members of one "
            "pair"
        )
    _check_noise(preferred, dispreferred)


def _first_difference(preferred: ModelPatcher, dispreferred: ModelPatcher) -> str | None:
    """The first thing in which two architectures differ, in words."""
    ours, theirs = preferred.model.model_config, dispreferred.model.model_config
    if type(ours) is not type(theirs):
        return f"{type(ours).__name__} and {type(theirs).__name__}"
    for name in sorted({*ours.unet_config, *theirs.unet_config} - {"dtype", "device", "operations"}):
        one, other = ours.unet_config.get(name), theirs.unet_config.get(name)
        if one != other:
            return f"`{name}` is {one} and {other}"
    return None


def _check_noise(preferred: ModelPatcher, dispreferred: ModelPatcher) -> None:
    samplings = [model.get_model_object("model_sampling") for model in (preferred, dispreferred)]
    processes = [_definer(sampling, "noise_scaling") for sampling in samplings]
    if processes[0] != processes[1]:
        one, other = (PROCESS_NAMES.get(name, name) for name in processes)
        raise ValueError(
            f"`preferred` is a {one} model and `dispreferred` a {other} model, which take different noise; "
            "choose the two members of one pair, or remove the model sampling node from one of them"
        )


def sampling_difference(preferred: ModelPatcher, dispreferred: ModelPatcher) -> str | None:
    """A line on what two models that take the same noise are sampled differently in: the kind of prediction, or the
    settings of the noise schedule.

    It is no error: predictions of two kinds are combined as denoised latents, and either may be right for its model.
    """
    ours, theirs = (model.get_model_object("model_sampling") for model in (preferred, dispreferred))
    words = dict(PREDICTIONS)
    one, other = (words.get(kind, kind) for kind in (_definer(s, "calculate_denoised") for s in (ours, theirs)))
    if one != other:
        return f"preferred is sampled as {one}, dispreferred as {other}; if both are of one kind, {WAY_OUT}"
    if (what := _schedule_difference(ours, theirs)) is not None:
        return f"the two have unlike noise schedules ({what}): {WAY_OUT}"
    return None


def _schedule_difference(ours: torch.nn.Module, theirs: torch.nn.Module) -> str | None:
    """The first setting in which two noise schedules differ, with both values."""
    settings, others = _numbers(ours), _numbers(theirs)
    for name in sorted(settings.keys() & others.keys()):
        if settings[name] != others[name]:
            return f"{name} {settings[name]:g} and {others[name]:g}"
    kinds = [_definer(sampling, "timestep") for sampling in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} and {kinds[1]}"
    table, other = (sampling.get_buffer("sigmas").cpu() for sampling in (ours, theirs))
    return None if torch.equal(table, other) else "their sigmas"


def _numbers(sampling: torch.nn.Module) -> dict[str, float]:
    """The settings of a noise schedule that are numbers, and the ends of its table."""
    stated = {name: value for name, value in vars(sampling).items() if type(value) in (int, float)}
    table = sampling.get_buffer("sigmas")
    return {**stated, "sigma_max": float(table[-1]), "sigma_min": float(table[0])}


def _definer(sampling: torch.nn.Module, method: str) -> str:
    """The name of the class in ComfyUI that a model sampling has a method from; nodes make a subclass each time."""
    return next(base.__name__ for base in type(sampling).__mro__ if method in vars(base))
