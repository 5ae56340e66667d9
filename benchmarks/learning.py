"""Whether the training node learns what was rated, by the one contrast that is honest on models of random weights.

A rule (the mean of a latent's first channel) rates pictures that a mini base drew. A pair is trained on these ratings,
another on the *reversed* ones: same seed, same pairs, same draws. Pictures of both from the same noises, with prompts
and noises that neither has seen, through CHATS Apply. What moves the rule between the two is what the ratings said. A
control is trained on ratings that are balanced against the rule, and on their reverse.

Against CFG on the base nothing could be shown: both members first learn to denoise better than the base does, which
moves any rule by itself.

    COMFYUI_PATH=... ComfyUI's-python benchmarks/learning.py sd3 sd15 --markdown benchmarks/learning.md
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))

import conftest

if not conftest.USABLE:
    sys.exit(conftest.SKIPPED)

import mini_architectures
import nodes as comfy_nodes
import torch
from comfyui_version import __version__
from running import result

TOKENS, SAMPLING_STEPS, CFG, ALPHA = 8, 4, 2.0, 0.5
PROMPTS, EACH = 4, 16  # of the candidates
FRESH_PROMPTS, FRESH_EACH = 8, 4
FORMS = ("proxy", "exact")
RATINGS = ("as rated", "reversed", "control", "control reversed")
# What is asked: as rated minus reversed, in the rule's spread; noises up; the control; see docs.
LEAST_SHIFT, LEAST_UP, MOST_CONTROL = 0.4, 28, 0.3
# Synthetic latents that the epsilon model's last layer is fitted on.
FITTED_ON, WHITE, OFFSET, RIDGE = 128, 0.5, 1.0, 1e-2


@dataclass(frozen=True)
class Recipe:
    """Settings at which a mini model learns in a minute."""

    steps: int
    learning_rate: float
    accumulate: int = 2
    beta: float = 10.0
    rank: int = 4
    layers: str = "all linear"


# Two epochs: every pair as often, lest the control is no longer balanced. The learning rates were chosen on these very
# models: at two to four times as much a few pairs decide, and the control moves as far as the rest.
RECIPES = {"sd3": Recipe(32, 8e-4), "sd15": Recipe(32, 1.5e-3)}
Candidates = list[tuple[list, torch.Tensor]]


def rule(latents: torch.Tensor) -> torch.Tensor:
    return latents[:, 0].mean((1, 2))


def base_of(kind: str):
    """A mini base; an epsilon model of random weights predicts nothing, so its last layer is fitted to."""
    with torch.inference_mode():
        model = mini_architectures.model(kind)
        if kind == "sd15":
            fit_last_layer(model.model, kind)
    return model


def fit_last_layer(model, kind: str) -> None:
    """By least squares, to the noise in synthetic latents: white noise around an offset of each channel."""
    last, features, targets = model.diffusion_model.out[-1], [], []
    handle = last.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    generator = torch.Generator().manual_seed(1)
    sigmas = model.model_sampling.sigmas
    for index in range(FITTED_ON):
        offset = torch.randn(1, 4, 1, 1, generator=generator) * OFFSET
        clean = offset + WHITE * torch.randn(1, 4, 8, 8, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = sigmas[torch.randint(len(sigmas), (1,), generator=generator)]
        prompt = mini_architectures.conditioning(kind, 10_000 + index, TOKENS)[0][0]
        model.apply_model(clean + sigma * noise, sigma, c_crossattn=prompt)
        targets.append(noise)
    handle.remove()
    rows = torch.nn.functional.unfold(torch.cat(features), 3, padding=1).movedim(1, 2).flatten(0, 1).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    wanted = torch.cat(targets).flatten(2).movedim(1, 2).flatten(0, 1).double()
    square = rows.T @ rows
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    solution = torch.linalg.solve(square, rows.T @ wanted).float()
    last.weight.copy_(solution[:-1].T.reshape(last.weight.shape))
    last.bias.copy_(solution[-1])


def sampled(model, positive: list, negative: list, seed: int, count: int, kind: str) -> torch.Tensor:
    latent = {"samples": torch.zeros(count, *mini_architectures.latent(kind, 0).shape[1:])}
    with torch.inference_mode(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        arguments = (model, seed, SAMPLING_STEPS, CFG, "euler", "normal", positive, negative, latent)
        return comfy_nodes.common_ksampler(*arguments)[0]["samples"].clone()


def candidates_of(model, kind: str, null: list) -> Candidates:
    prompts = [mini_architectures.conditioning(kind, 300 + index, TOKENS) for index in range(PROMPTS)]
    return [(prompt, sampled(model, prompt, null, 1000 + index, EACH, kind)) for index, prompt in enumerate(prompts)]


def encoded_pairs(candidates: Candidates, ratings: str) -> list:
    """The best by the rule with the worst, the second with the second worst, and so on; the control turns half of them
    round, so that the rule differs by nothing in their sum."""
    steps, errors = (conftest.pack_module(f"nodes.training.{name}") for name in ("steps", "errors"))
    pairs = []
    for index, (prompt, latents) in enumerate(candidates):
        order = rule(latents).argsort(descending=True)
        for place in range(EACH // 2):
            chosen, rejected = order[place], order[EACH - 1 - place]
            if ratings.endswith("reversed") != (ratings.startswith("control") and (place + place // 2 + index) % 2):
                chosen, rejected = rejected, chosen
            images = [errors.EncodedImage(latents[which][None], {}) for which in (chosen, rejected)]
            pairs.append(steps.EncodedPair(f"{index}-{place}", *images, prompt))
    return pairs


def trained(model, kind: str, pairs: list, null: list) -> tuple:
    """The pair's members on the base."""
    session, steps = (conftest.pack_module(f"nodes.training.{name}") for name in ("session", "steps"))
    written, recipe = conftest.pack_module("nodes.training.written_pair"), RECIPES[kind]
    settings = session.Settings(
        recipe.rank, recipe.layers, recipe.learning_rate, recipe.accumulate, recipe.beta, 0.5, 64, 0
    )
    facts = {"null_prompt_prob": 0.5, "beta": recipe.beta, "resolution": 64, "dataset": ""}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        go = session.Session(
            settings,
            session.Limits(recipe.steps, 0),
            pairs,
            steps.Null(null, 0.5),
            facts,
            Path(folder),
            None,
            lambda history, preview: None,
        )
        go.pairs, go.held_out = pairs, []  # of the control none may be missing
        run = go.train(model)
        described = dict(base_name=kind, dataset="", pairs=len(pairs), predicted=session.predicts(model), null=None)
        return written.on_model(model, run, written.pair_metadata(run, **described))


def drawn(members: tuple, kind: str, null: list, form: str, nodes: dict) -> torch.Tensor:
    """The rule on pictures of fresh prompts and noises, the same for every pair."""
    with torch.inference_mode():
        (joined,) = nodes["CHATSApply"](*members, 0.0, 1.0)
    values = []
    for index in range(FRESH_PROMPTS):
        prompt = mini_architectures.conditioning(kind, 5000 + index, TOKENS)
        with torch.inference_mode():
            (negative,) = nodes["CHATSProxyPrompt"](prompt, null, ALPHA, form)
        values.append(rule(sampled(joined, prompt, negative, 7000 + index, FRESH_EACH, kind)))
    return torch.cat(values)


def measured(kind: str, ratings: tuple[str, ...] = RATINGS, forms: tuple[str, ...] = FORMS) -> dict[str, dict]:
    """By form: the rule's mean of each pair, and each contrast in the rule's spread over the base's own pictures, with
    the number of noises for which it is positive."""
    classes = asyncio.run(asyncio.run(conftest.load_pack().comfy_entrypoint()).get_node_list())
    nodes = {node.GET_SCHEMA().node_id: functools.partial(result, node) for node in classes}
    null, model = mini_architectures.conditioning(kind, 999, TOKENS), base_of(kind)
    candidates = candidates_of(model, kind, null)
    fresh = [
        sampled(
            model, mini_architectures.conditioning(kind, 5000 + index, TOKENS), null, 7000 + index, FRESH_EACH, kind
        )
        for index in range(FRESH_PROMPTS)
    ]
    spread = rule(torch.cat(fresh)).std()
    values: dict[str, dict[str, torch.Tensor]] = {form: {} for form in forms}
    for name in ratings:
        members = trained(model, kind, encoded_pairs(candidates, name), null)
        for form in forms:
            values[form][name] = drawn(members, kind, null, form, nodes) / spread
    found = {}
    for form, by_name in values.items():
        contrasts = {}
        for name in ratings[::2]:
            other = {"as rated": "reversed", "control": "control reversed"}[name]
            difference = by_name[name] - by_name[other]
            contrasts[f"{name} − {other}"] = (difference.mean().item(), int((difference > 0).sum()))
        found[form] = {"means": {name: each.mean().item() for name, each in by_name.items()}, "contrasts": contrasts}
    return found


def verdict(found: dict[str, dict]) -> bool:
    """Whether all that is asked holds."""
    for each in found.values():
        shift, up = each["contrasts"]["as rated − reversed"]
        control = each["contrasts"]["control − control reversed"][0]
        means = each["means"]
        middle = (means["control"] + means["control reversed"]) / 2
        holds = shift >= LEAST_SHIFT and up >= LEAST_UP and abs(control) <= MOST_CONTROL
        if not (holds and means["as rated"] > middle > means["reversed"]):
            return False
    return True


def report(kind: str, found: dict[str, dict], seconds: float) -> list[str]:
    recipe, noises = RECIPES[kind], FRESH_PROMPTS * FRESH_EACH
    lines = [
        f"## {kind}",
        "",
        f"{PROMPTS * EACH // 2} pairs, {recipe.steps} steps of {recipe.accumulate}, rank {recipe.rank}, "
        f"{recipe.layers}, learning rate {recipe.learning_rate:g}, beta {recipe.beta:g}; {seconds:.0f} s of one "
        f"processor in all. {'Holds' if verdict(found) else 'DOES NOT HOLD'}.",
        "",
        f"| form | contrast | shift, in the rule's spread | noises up, of {noises} |",
        "| --- | --- | --- | --- |",
    ]
    for form, each in found.items():
        for name, (shift, up) in each["contrasts"].items():
            lines.append(f"| {form} | {name} | {shift:+.2f} | {up} |")
    for form, each in found.items():
        means = ", ".join(f"{name} {value:+.2f}" for name, value in each["means"].items())
        lines += ["", f"Means of the rule, {form}: {means}."]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    lines = [
        "# What the training node learns",
        "",
        f"As rated − reversed is to be at least {LEAST_SHIFT}, with {LEAST_UP} noises up; the control within "
        f"{MOST_CONTROL}; the means in their order. ComfyUI {__version__}, torch {torch.__version__}, "
        f"{platform.machine()}, {time.strftime('%Y-%m-%d')}.",
        "",
    ]
    holds = True
    for kind in arguments.kinds:
        started = time.process_time()
        found = measured(kind)
        holds &= verdict(found)
        lines += report(kind, found, time.process_time() - started)
        print("\n".join(lines), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines), encoding="utf-8")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
