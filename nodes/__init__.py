"""The nodes, one idea per file; each file ends in its list of nodes."""

from comfy_api.latest import ComfyExtension, io

from .loading import loaders, lora_loader
from .rating import prompt_lines, routes, save_candidates
from .sampling import apply, guider, ksampler, proxy_prompt, stopwatch
from .training import distill_pair, train_lora_pair

routes.register()


class CHATSExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *loaders.NODES,
            *lora_loader.NODES,
            *proxy_prompt.NODES,
            *apply.NODES,
            *guider.NODES,
            *ksampler.NODES,
            *stopwatch.NODES,
            *prompt_lines.NODES,
            *save_candidates.NODES,
            *train_lora_pair.NODES,
            *distill_pair.NODES,
        ]


async def comfy_entrypoint() -> CHATSExtension:
    return CHATSExtension()
