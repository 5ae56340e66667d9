"""What other nodes on a pair's two models do not do, in sentences on the node that samples."""

from __future__ import annotations

from collections.abc import Iterable

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

# Wrappers around a whole run or guided step, which only the sampled model's are, and around one pass of one network.
OF_A_RUN = (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE)
OF_A_PASS = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
# Options with functions that combine the branches: the sampled model's are run.
GUIDANCE = ("sampler_pre_cfg_function", "sampler_post_cfg_function", "sampler_cfg_function")
# KJNodes' guidance, which encodes a prompt when its node runs: by the start of the function's qualified name.
HOLDS_ENCODING = ("WanCrossAttentionPatch.", "LTXVCrossAttentionPatch.")
# Guidance that records the negative pass in the attention of the model that it is on: by the name of core's node.
SELF_ATTENTION = "SelfAttentionGuidance"
# Copies of a model on other devices, by the key that core has them under.
SPLIT = "multigpu"


def require_no_self_attention_guidance(**models: ModelPatcher) -> None:
    """Raises ValueError where it is on one of two models; there it would look for a pass that the other runs."""
    for name, model in models.items():
        if SELF_ATTENTION in _guidance(model):
            raise ValueError(
                f"Self-Attention Guidance is on `{name}`, where the pass that it looks for is the other model's; put "
                "that node after CHATS Apply"
            )


def require_no_runs_of_their_own(**models: ModelPatcher) -> None:
    """Raises ValueError where a node on one of two models puts modules into its network and keeps what they need around
    a run (AnimateDiff): of the two only one is sampled, and has runs."""
    for name, model in models.items():
        for key in _keys(model.wrappers, OF_A_RUN):
            if model.injections.get(key):
                raise ValueError(
                    f"`{key}` is on `{name}` and puts parts into its network that act in a run of that model alone; "
                    "put that node after CHATS Apply"
                )


def require_no_copies(dispreferred: ModelPatcher) -> None:
    """Raises ValueError where ComfyUI is to split the dispreferred model's passes among copies of it: it takes all such
    copies that are loaded for a run for the sampled model's, and would predict the preferred's passes on them."""
    if dispreferred.additional_models.get(SPLIT):
        raise ValueError(
            "MultiGPU CFG Split is on `dispreferred`, whose copies ComfyUI would take for the preferred model's; "
            "remove that node, and to use two cards put Select Model Device there"
        )


def of_two_models(preferred_options: dict, dispreferred: ModelPatcher) -> list[str]:
    """Sentences on what was put on the two before they were joined.

    Args:
        preferred_options: the preferred's model options as they were then, with its wrappers.
        dispreferred: as it was then.
    """
    wrappers = preferred_options["transformer_options"].get("wrappers", {})
    unused = _keys(dispreferred.wrappers, OF_A_RUN)
    unused |= {name: None for name in _guidance(dispreferred) if name not in _names_of_guidance(preferred_options)}
    lines = [f"`{name}` on the dispreferred model is not run there; put that node after CHATS Apply" for name in unused]
    of_passes = _keys(wrappers, OF_A_PASS)
    for name in _keys(wrappers, OF_A_RUN):
        if name in of_passes and name not in unused:
            lines.append(f"`{name}` acts on the passes of the preferred model alone; put that node after CHATS Apply")
    return lines


def of_encodings(patches: Iterable[object]) -> list[str]:
    """A sentence on what was put into the place of layers after the two were joined, where it holds a text's encoding
    by one of them."""
    if not any(getattr(patch, "__qualname__", "").startswith(HOLDS_ENCODING) for patch in patches):
        return []
    return [
        "normalized attention guidance has its prompt's encoding by the preferred model, for both; put that node "
        "before CHATS Apply, on each of the two"
    ]


def _keys(wrappers: dict, kinds: Iterable[str]) -> dict[str, None]:
    """The names under which nodes put wrappers of some kinds, in order."""
    return {name: None for kind in kinds for name, listed in wrappers.get(kind, {}).items() if name and listed}


def _guidance(model: ModelPatcher) -> list[str]:
    return _names_of_guidance(model.model_options)


def _names_of_guidance(options: dict) -> list[str]:
    """The nodes whose functions combine the branches, by the first part of the function's qualified name."""
    functions = []
    for option in GUIDANCE:
        value = options.get(option)
        functions += value if isinstance(value, list) else [value] if value is not None else []
    return [getattr(function, "__qualname__", type(function).__name__).split(".")[0] for function in functions]
