"""The command line: ``python -m chats_train <command>``. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import parser
from .support.errors import UserError
from .support.paths import fill_in_paths

if TYPE_CHECKING:
    from .families import Family
    from .runs.processes import Processes
    from .runs.subjects import Subject
    from .settings.config import RunConfig

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what the user can mend is printed as sentences, and the status is then 2.

    Returns:
        the exit status.
    """
    args = parser(RUNS).parse_args(arguments)
    try:
        fill_in_paths(args)
        args.run(args)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return INTERRUPTED_STATUS
    except ValueError as error:
        if not _is_for_the_user(error):
            raise
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        return USER_ERROR_STATUS
    except OSError as error:
        # A disk, a folder's permissions, the network: nothing that a traceback explains better.
        from chats.words import shown_error

        print(f"error: {shown_error(error)}; mend that and start again", file=sys.stderr)
        return USER_ERROR_STATUS
    return 0


def _is_for_the_user(error: ValueError) -> bool:
    """Whether an error's message is one that this project wrote for its users."""
    if isinstance(error, UserError):
        return True
    # Late, as the first brings torch, and most runs end without an error of these kinds.
    from chats.pair import PairError
    from chats.taste.names import TasteError

    return isinstance(error, PairError | TasteError)


def _init(args: argparse.Namespace) -> None:
    from chats.files import write_text

    from .settings.config_file import config_template
    from .settings.recipes import read_recipe

    if args.output.exists():
        raise UserError(f"`--output` is {args.output}, which is there already; remove it or choose another name")
    text = config_template(args.family) if args.recipe is None else read_recipe(args.family, args.recipe)
    write_text(args.output, text)
    print(
        f"{args.output}: set `output_dir`, `pretrained_model` and `data`, then run `python -m chats_train check "
        f"{args.output}`"
    )


def _check(args: argparse.Namespace) -> None:
    config = _read_config(args)
    from .check.readiness import model_size, print_disk, print_memory, print_repeats
    from .check.shards import print_shards
    from .runs.opening import open_pairs

    print(f"config: {config.family}, {config.objective}, {config.training_method}, {config.max_train_steps} steps")
    family = _open_family(config)
    size = model_size(config, family)
    dataset = open_pairs(config)
    print_memory(config, size)
    print_shards(config, size, family)
    print_disk(config, size, dataset)
    if config.reference_draws is not None:
        print_repeats(config, dataset)


def _cache(args: argparse.Namespace) -> None:
    config = _read_config(args)
    from .runs.processes import Processes
    from .training.train import open_data, open_encodings

    processes = Processes()
    family = _open_family(config, processes)
    dataset = open_data(config, processes)
    open_encodings(config, family, dataset, processes, use_cache=True)
    if processes.is_main:
        print(f"cached in {config.cache_dir}: {len(dataset.samples)} pairs")


def _train(args: argparse.Namespace) -> None:
    from .training.train import train

    print(train(_read_config(args), use_cache=not args.no_cache))


def _sample(args: argparse.Namespace) -> None:
    from chats.files import replacing

    from .runs.trained import sample

    picture = sample(_read_config(args), args.checkpoint, args.prompt, args.form)
    with replacing(args.output) as temporary:
        picture.save(temporary, format="png")
    print(args.output)


def _export(args: argparse.Namespace) -> None:
    from .runs.trained import export

    for path in export(_read_config(args), args.checkpoint, args.output, args.dtype):
        print(path)


def _extract(args: argparse.Namespace) -> None:
    from .extraction.extract import Truncation, extract, return_large_blocks
    from .extraction.table import summary

    return_large_blocks()
    truncation = Truncation(args.rank, args.energy, args.dtype)
    loras, warnings = extract(args.preferred, args.dispreferred, args.base, truncation, args.output)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for lora in loras:
        print(f"{lora.path}:")
        print("\n".join(f"  {line}" for line in summary(lora.layers, len(lora.origin.shapes), lora.table.name)))
    if not loras:
        print(f"{args.output}: the same LoRAs are there already")


def _distill(args: argparse.Namespace) -> None:
    from .distillation.distill import distill
    from .distillation.settings import DistillSettings

    settings = DistillSettings(
        form=args.form,
        negative=args.negative,
        guidance_scale=args.guidance_scale,
        alpha=args.alpha,
        start_percent=args.start_percent,
        end_percent=args.end_percent,
        method=args.method,
        rank=args.rank,
        layers=args.layers,
        steps=args.steps,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    print(distill(args.run_path, args.set, settings, args.checkpoint, args.output, args.dtype))


def _evaluate(args: argparse.Namespace) -> None:
    for line in _tables(args) if args.table else _evaluation(args):
        print(line)


def _evaluation(args: argparse.Namespace) -> list[str]:
    from .evaluation.evaluate import EvaluationSettings, evaluate

    if not args.prompts:
        raise UserError("`--prompts` is missing; give a file of prompts, or make a table of the paper with `--table`")
    if args.model:
        raise UserError("`--model` is for the rows of a table; add `--table`, or leave it out")
    settings = EvaluationSettings(
        prompts=tuple(args.prompts),
        seeds=4 if args.seeds is None else args.seeds,
        steps=args.steps,
        alphas=tuple(args.alpha),
        guidance_scales=tuple(args.guidance_scale),
        forms=tuple(args.form),
        batch_size=args.batch_size,
        probe=args.probe,
    )
    return evaluate(_subject(args), settings, args.scorer, args.output)


def _tables(args: argparse.Namespace) -> list[str]:
    from .evaluation.tables.tables import TableSettings, make_tables

    given = {"--guidance-scale": args.guidance_scale, "--form exact": "exact" in args.form, "--probe": args.probe}
    for option in (option for option, value in given.items() if value):
        raise UserError(f"`{option}` is not for tables, which have the paper's settings; leave it out")
    settings = TableSettings(
        names=tuple(args.table),
        prompts=tuple(args.prompts),
        models=tuple(args.model),
        seeds=args.seeds,
        steps=args.steps,
        alphas=tuple(args.alpha),
        batch_size=args.batch_size,
    )
    return make_tables(_subject(args), settings, args.scorer, args.output)


def _subject(args: argparse.Namespace) -> Subject:
    """What is evaluated: a run, or the files of a pair."""
    if (args.config is None) == (args.pair is None):
        raise UserError(f"{'both' if args.pair else 'neither'} of a run's YAML and `--pair` given; give one of the two")
    if (args.pair is None) != (args.base is None):
        raise UserError("`--pair` and `--base` go together: two members, and the base that they were made from")
    if args.pair is None:
        from .runs.subjects import run_subject

        return run_subject(_read_config(args), args.checkpoint)
    from .runs.published import open_pair

    preferred, dispreferred = args.pair
    return open_pair(preferred, dispreferred, args.base, args.output or Path("evaluation"), args.set)


def _score(args: argparse.Namespace) -> None:
    from .evaluation.benchmarks.folders import score_folder

    for line in score_folder(args.pictures, args.scorer, args.grid, args.output):
        print(line)


def _rate(args: argparse.Namespace) -> None:
    from .rating import rate

    for line in rate(args.dataset, args.scorer, args.margin):
        print(line)


def _demo(args: argparse.Namespace) -> None:
    from .demo.demo import demo

    demo(args.output)


def _inspect(args: argparse.Namespace) -> None:
    from .inspection import describe

    for file in args.file:
        print("\n".join(describe(file)))


def _read_config(args: argparse.Namespace) -> RunConfig:
    from .settings.config_file import load_config
    from .settings.facts import SOURCE_FORMS
    from .support.hub import require_hub_id

    config = load_config(args.config, args.set)
    # Seen here as well as where the base is opened: before the seconds that importing torch and diffusers takes.
    base = config.pretrained_model
    if not Path(base).expanduser().exists():
        require_hub_id("`pretrained_model`", base, SOURCE_FORMS["pretrained_model"])
    return config


def _open_family(config: RunConfig, processes: Processes | None = None) -> Family:
    """The base; it is said what it is, by the main one of several processes."""
    from .runs.opening import open_family
    from .support.amounts import count_text

    family = open_family(config, processes.device if processes else None)
    if processes and not processes.is_main:
        return family
    parts = family.parameter_counts()
    sizes = ", ".join(f"{part} {count_text(count)}" for part, count in parts.items())
    print(f"base: {config.pretrained_model} ({family.prediction_type}, null prompt {family.null_prompt_kind}): {sizes}")
    return family


RUNS = {
    "init": _init,
    "check": _check,
    "cache": _cache,
    "train": _train,
    "sample": _sample,
    "export": _export,
    "extract": _extract,
    "distill": _distill,
    "evaluate": _evaluate,
    "score": _score,
    "rate": _rate,
    "demo": _demo,
    "inspect": _inspect,
}
