"""Run by test_extract.py in the trainer's Python, with the repository and tests/train on its path.

`python make_extracted.py FOLDER FAMILY …` makes of each family a random member that ComfyUI detects and another beside
it, and extracts the second, in its native layout, as a LoRA of full rank in single precision on the first, in
diffusers'.
"""

import re
import sys
from pathlib import Path

import tiny_pipelines
import torch
from safetensors.torch import save_file

from chats_train.extraction.extract import Truncation, extract
from chats_train.layouts.formats import file_format
from chats_train.layouts.places import to_native

# The mini SD1.5 is the largest by far: some of each kind of layer will do there.
CHANGED = {"sd15": r"mid_block|embedding|conv_in|conv_norm_out|downsamplers"}


def make(family: str, folder: Path) -> None:
    preferred = tiny_pipelines.denoiser(family, 1, comfy=True).state_dict()
    generator = torch.Generator().manual_seed(2)
    dispreferred = dict(preferred)
    for key, value in preferred.items():
        # SD3's table of positions does not train.
        if re.search(CHANGED.get(family, ""), key) and key != "pos_embed.pos_embed":
            dispreferred[key] = value + torch.randn(value.shape, generator=generator) * value.std() * 0.1
    layout = file_format(family).layout(preferred)
    # ComfyUI knows a UNet in diffusers' layout by a list of the published ones, so the mini is there in its native
    # layout as well.
    files = {
        "preferred": to_native(preferred, layout),
        "dispreferred": {
            f"model.diffusion_model.{key}": value for key, value in to_native(dispreferred, layout).items()
        },
        "diffusers": preferred,
    }
    for name, tensors in files.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{family}_{name}.safetensors")
    pair = (folder / f"{family}_{name}.safetensors" for name in ("diffusers", "dispreferred"))
    ((lora,), _) = extract(*pair, None, Truncation(rank=10**6, energy=None, dtype="fp32"), folder, progress=False)
    lora.path.rename(folder / f"{family}_lora.safetensors")


if __name__ == "__main__":
    # The layers are so small that threads mostly wait for each other.
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        make(name, Path(sys.argv[1]))
