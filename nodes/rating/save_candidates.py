"""CHATS Save Candidates: each picture of a batch becomes a candidate for its prompt."""

from __future__ import annotations

import io as streams
import json
from typing import Any

import torch
from comfy.cli_args import args
from comfy_api.latest import io

from ...chats.words import shown
from ..advice import show_lines


def check_images(images: object) -> torch.Tensor:
    """The pictures, [batch, height, width, 3].

    Raises:
        ValueError: for what is no batch of such pictures.
    """
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"`images` is `{shown(images)}`, which is no picture; connect the output of VAE Decode")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"`images` is of the shape {list(images.shape)}, which is no batch of pictures; connect the output of VAE "
            "Decode"
        )
    if images.shape[3] != 3:
        channels = "1 channel" if images.shape[3] == 1 else f"{images.shape[3]} channels"
        raise ValueError(
            f"`images` have {channels}, and pairs are trained on 3; take the alpha channel off before (Split Image "
            "with Alpha)"
        )
    return images


def png_of(image: torch.Tensor, texts: dict[str, str]) -> bytes:
    """A picture, [height, width, 3] of 0 to 1, as SaveImage writes it: 8 bits, with the texts inside."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    levels = (image.detach().cpu().float() * 255).clamp(0, 255).to(torch.uint8).numpy()
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    stream = streams.BytesIO()
    Image.fromarray(levels).save(stream, "PNG", pnginfo=info, compress_level=4)
    return stream.getvalue()


def texts_of(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """What SaveImage writes into a PNG: the graph, and what the front end adds (the workflow)."""
    if args.disable_metadata:
        return {}
    texts = {} if prompt is None else {"prompt": prompt}
    return {name: json.dumps(value) for name, value in {**texts, **(extra or {})}.items()}


def waiting_text(waiting: int, alone: int) -> str:
    """How many pairs wait to be rated; where none does and prompts have one picture only, what to do."""
    if waiting:
        return "1 pair waits to be rated" if waiting == 1 else f"{waiting} pairs wait to be rated"
    if alone:
        return "no pair yet: it takes two pictures of a prompt; raise batch_size, or run again with another seed"
    return "all pairs are rated"


class CHATSSaveCandidates(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CHATSSaveCandidates",
            display_name="CHATS Save Candidates",
            category="image/CHATS",
            description="Saves each picture of the batch as a candidate for its prompt, in ComfyUI's output folder "
            "under chats/ and the name of the data set. Two candidates of one prompt make a pair to rate.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures of one prompt."),
                io.String.Input(
                    "prompt",
                    force_input=True,
                    tooltip="The prompt that all pictures of the batch were drawn for; connect CHATS Prompt Lines.",
                ),
                io.String.Input(
                    "dataset",
                    default="my taste",
                    tooltip="The name of the data set: letters, digits, spaces, _ and -.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The pictures, unchanged.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, prompt: str, dataset: str) -> io.NodeOutput:
        # With the first candidate, and not with the pack: most sessions draw none.
        from .data_sets import plain_refusals

        with plain_refusals():
            return cls._save(images, prompt, dataset)

    @classmethod
    def _save(cls, images: torch.Tensor, prompt: str, dataset: str) -> io.NodeOutput:
        from ...chats.taste.names import IMAGES, Conflict
        from .data_sets import DEFAULT_RATER, PLACE, data_set
        from .origin import seeds_and_models

        images, kept = check_images(images), data_set(dataset)
        if not isinstance(prompt, str):
            raise ValueError(f"`prompt` is `{shown(prompt)}`, which is no text; connect CHATS Prompt Lines")
        graph, extra, node_id = (
            (cls.hidden.prompt, cls.hidden.extra_pnginfo, cls.hidden.unique_id) if cls.hidden else (None, None, None)
        )
        texts = texts_of(graph, extra)
        seeds, models = seeds_and_models(graph, node_id)
        saved, new, remarks = [], 0, []
        for number, image in enumerate(images, 1):
            if not torch.isfinite(image).all():
                remarks.append(f"⚠ picture {number} of {len(images)} is not saved: it has NaN, as broken models give")
                continue
            height, width = image.shape[:2]
            try:
                name, is_new = kept.add_candidate(png_of(image, texts), prompt.strip(), seeds, models, width, height)
            except Conflict as error:
                remarks.append(f"⚠ picture {number} of {len(images)} is not saved: {error}")
                continue
            new += is_new
            saved.append({"filename": f"{name}.png", "subfolder": f"{PLACE}/{dataset}/{IMAGES}", "type": "output"})
        if not saved:
            raise ValueError("; ".join(remark.removeprefix("⚠ ") for remark in remarks))
        there = f", {len(saved) - new} there before" if new < len(saved) else ""
        waiting = waiting_text(kept.progress(DEFAULT_RATER)["waiting"], kept.alone())
        show_lines([f"saved {new}{there}, {waiting}", *remarks])
        return io.NodeOutput(images, ui={"images": saved})


NODES = [CHATSSaveCandidates]
