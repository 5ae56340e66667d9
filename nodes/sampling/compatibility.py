"""Whether two loaded models can be sampled as a pair."""

from comfy.model_patcher import ModelPatcher

from .inheritance import option_difference
from .pairing import is_paired

# What a noise process is called, by the class in ComfyUI that adds the noise.
PROCESS_NAMES = {"EPS": "diffusion", "CONST": "flow matching"}


def check_models(preferred: ModelPatcher, dispreferred: ModelPatcher) -> None:
    """Raises ValueError, in one sentence with the way out, unless the two models can be sampled together.

    Both need the same architecture and the same kind of noise. Two versions of one loaded model need the same options
    too, since one pass serves both; whether their weights can be told apart in it, :func:`.pairing.pair_models` finds
    out.
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
    if preferred.is_clone(dispreferred):
        if preferred.patches_uuid == dispreferred.patches_uuid:
            raise ValueError("`preferred` and `dispreferred` are the same model; connect the two members of a pair")
        if difference := option_difference(preferred, dispreferred):
            raise ValueError(
                "`preferred` and `dispreferred` share one set of weights and differ in more than LoRAs: "
                f"`{difference}`; put the node that "
                "sets it after CHATS Apply, or on the model before its LoRAs, or load the base twice, from two files"
            )


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
