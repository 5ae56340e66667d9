"""How many graphs torch compiles for a pair of LoRAs of each family, on a tiny base, as pictures of new sizes and
longer prompts come. Were there more with each size, a run of many buckets would compile again and again, and beyond 64
no more.

    python -m benchmarks.compiled_sizes [--backend eager|inductor] [--families sd15 ...]

`eager` traces alone, as far as sizes are told apart; `inductor` also makes code, which may tell more of them apart.
"""

from __future__ import annotations

import argparse
import string
import sys
import tempfile
from functools import partialmethod
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from chats_train.families import Family, load_family
from chats_train.runs.members import DISPREFERRED, PREFERRED, REFERENCE, Members
from chats_train.runs.whole_members import make_members
from chats_train.settings.config_file import PLACEHOLDERS, parse_config
from chats_train.settings.facts import FAMILIES

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "train"))

import tiny_pipelines

# In latents.
SIZES = [(8, 8), (8, 16), (16, 8), (24, 8), (8, 24), (32, 8), (8, 32), (16, 16), (16, 24), (24, 16), (24, 24), (32, 16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("eager", "inductor"), default="eager")
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    args = parser.parse_args()
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=args.backend)
    print(f"| family | graphs after each of {len(SIZES)} sizes |\n| --- | --- |")
    for name in args.families:
        torch._dynamo.reset()
        counters.clear()
        with tempfile.TemporaryDirectory() as folder:
            tiny_pipelines.save_pipeline(name, Path(folder))
            print(f"| {name} | {' '.join(map(str, graphs(name, folder)))} |", flush=True)
        assert not counters["graph_break"], counters["graph_break"]


def graphs(name: str, base: str) -> list[int]:
    """How many there are after each size: of the reference without gradients and of both adapters with them."""
    family = load_family(name, base)
    config = parse_config({"version": 1, "family": name, **PLACEHOLDERS, "training_method": "lora", "network_rank": 2})
    members = make_members(config, family, 2, True, torch.device("cpu"))
    members.compile()
    found = []
    for number, size in enumerate(SIZES):
        ask(family, members, size, " ".join(string.ascii_lowercase[: number + 1]))
        found.append(counters["stats"]["unique_graphs"])
    return found


def ask(family: Family, members: Members, size: tuple[int, int], prompt: str) -> None:
    height, width = size
    sizes = torch.tensor([[8 * height, 8 * width, 0, 0, 8 * height, 8 * width]] * 2)
    noisy, timesteps = torch.randn(2, family.latent_channels, *size), family.sample_timesteps(torch.rand(2), size)
    encoded = family.encode_prompt([prompt])
    with torch.no_grad():
        family.predict(members.denoiser(REFERENCE), noisy, timesteps, encoded, sizes)
    names = (PREFERRED, DISPREFERRED)
    joint = None if members.one_graph else members.joint(names)
    for denoiser in [joint] if joint is not None else map(members.denoiser, names):
        family.predict(denoiser, noisy, timesteps, encoded, sizes).sum().backward()


if __name__ == "__main__":
    main()
