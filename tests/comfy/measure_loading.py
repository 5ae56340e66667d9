"""Loads the pack where ComfyUI itself is loaded already, between two runs of a stock KSampler; the last line printed is
the result as JSON.

What is printed while the pack loads stands between two lines of their own.
"""

import asyncio
import json
import logging
import sys
import tempfile
import time

if __name__ == "__main__":
    import conftest  # puts ComfyUI on the path, as for the tests

BEGIN, END = "loading the pack", "the pack is loaded"
REPETITIONS = 7


def stock_latent():
    """What ComfyUI's own KSampler makes of a mini SD1.5."""
    import mini
    import mini_architectures
    import nodes

    prompts = mini.conditioning("sd15", 3), mini.conditioning("sd15", 4)
    (latent,) = nodes.KSampler().sample(
        mini_architectures.model("sd15", 1), 7, 2, 6.0, "euler_ancestral", "normal", *prompts, mini.latent("sd15")
    )
    return latent["samples"]


def load_seconds() -> float:
    """Processor time of one load, as ComfyUI does it: the modules, the list of nodes, each node's schema."""
    for name in [name for name in sys.modules if name.startswith("custom_nodes_ComfyUI_CHATS")]:
        del sys.modules[name]
    start = time.process_time()
    extension = asyncio.run(conftest.load_pack().comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    return time.process_time() - start


def main() -> None:
    import comfy.lora_convert  # noqa: F401  what ComfyUI has imported before it comes to custom nodes
    import server  # noqa: F401
    import torch

    logging.basicConfig(level=logging.INFO)
    before = stock_latent()
    with tempfile.TemporaryDirectory() as compiled:
        # Compiled modules are kept, as they are from one start of ComfyUI to the next.
        sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
        print(BEGIN, flush=True)
        seconds = [load_seconds() for _ in range(REPETITIONS)]
        print(END, flush=True)
        sys.dont_write_bytecode = True
    rating = sorted(name for name in sys.modules if ".chats.taste" in name)
    print(json.dumps({"seconds": seconds, "same": torch.equal(before, stock_latent()), "rating": rating}))


if __name__ == "__main__":
    main()
