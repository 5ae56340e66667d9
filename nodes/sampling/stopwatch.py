"""CHATS Stopwatch: shows how long sampling with a MODEL took, and changes nothing of it."""

import time
from collections.abc import Callable

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ..advice import show
from ..inputs import require_models

KEY = "chats_stopwatch"


class Stopwatch:
    """A wrapper of SAMPLER_SAMPLE: models are loaded and conditioning is encoded by then, so that the seconds are those
    of the steps alone.

    Args:
        node_id: of the node that shows them.
    """

    def __init__(self, node_id: str | None, clock: Callable[[], float] = time.perf_counter):
        self.node_id, self.clock = node_id, clock

    def __call__(
        self, executor: WrapperExecutor, guider: object, sigmas: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        began = self.clock()
        samples = executor(guider, sigmas, *args, **kwargs)
        samples.flatten()[:1].tolist()  # a graphics card answers before it is done
        seconds, steps = self.clock() - began, len(sigmas) - 1
        if steps > 0:
            show(f"{steps} steps in {seconds:.1f} s,\n{seconds / steps:.3g} s a step", self.node_id)
        return samples


class CHATSStopwatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSStopwatch",
            display_name="CHATS Stopwatch",
            category="model_patches/CHATS",
            description="Shows here how long each sampling with this MODEL took: the steps alone, without loading, "
            "encoding and decoding. The first run after a start is slower: queue again to compare.",
            inputs=[io.Model.Input("model", tooltip="Any MODEL; it samples as before.")],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="For the sampler that is timed.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        require_models(model=model)
        timed = model.clone()
        timed.add_wrapper_with_key(
            WrappersMP.SAMPLER_SAMPLE, KEY, Stopwatch(cls.hidden.unique_id if cls.hidden else None)
        )
        return io.NodeOutput(timed)


NODES = [CHATSStopwatch]
