"""Whether two loaded models can be sampled as a pair."""

from comfy.model_patcher import ModelPatcher

from .pairing import is_paired

# What a noise process is called, by the class in ComfyUI that adds the noise.
PROCESS_NAMES = {"EPS": "diffusion", "CONST": "flow matching"}


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
    processes = []
    for model in (preferred, dispreferred):
        kind = type(model.get_model_object("model_sampling"))
        processes.append(next(base.__name__ for base in kind.__mro__ if "noise_scaling" in vars(base)))
    if processes[0] != processes[1]:
        one, other = (PROCESS_NAMES.get(name, name) for name in processes)
        raise ValueError(
            f"`preferred` is a {one} model and `dispreferred` a {other} model, which take different noise; "
            "choose the two members of one pair, or remove the model sampling node from one of them"
        )
