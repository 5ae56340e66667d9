"""The command line: ``python -m chats_train <command>``. What a command needs is imported when it runs, so that help is
instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .support.errors import UserError

if TYPE_CHECKING:
    from .families import Family
    from .settings.config import RunConfig

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what the user can mend is printed as sentences, and the status is then 2.

    Returns:
        the exit status.
    """
    args = _parser().parse_args(arguments)
    try:
        _fill_in_paths(args)
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


def _fill_in_paths(args: argparse.Namespace) -> None:
    """`~` and variables in a command's paths: shells leave some alone, such as `--output=~/pairs`."""
    for option, value in vars(args).items():
        if isinstance(value, list):
            setattr(args, option, [_filled_in(option, item) for item in value])
        else:
            setattr(args, option, _filled_in(option, value))


def _filled_in(option: str, value: object) -> object:
    from .support.paths import PathError, filled_in

    if not isinstance(value, Path) or value.exists():
        return value
    try:
        return Path(filled_in(str(value)))
    except PathError as error:
        raise UserError(f"`{option}` is `{value}`, {error}") from error


def _is_for_the_user(error: ValueError) -> bool:
    """Whether an error's message is one that this project wrote for its users. Imports are late: most runs end without
    an error."""
    from chats.pair import PairError

    return isinstance(error, UserError | PairError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m chats_train",
        description="Trains a preferred and a dispreferred model from pairs of images (CHATS, arXiv 2502.12579).",
    )
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)

    init = commands.add_parser("init", help="write a commented config to start from")
    init.add_argument("family", help="the kind of the base model, such as sdxl; any other word lists them")
    init.add_argument("--output", type=Path, default=Path("run.yaml"), help="the file to write (default: %(default)s)")
    init.set_defaults(run=_init)

    check = _with_config(
        commands.add_parser("check", help="check config, base, data, disk and memory before anything heavy")
    )
    check.set_defaults(run=_check)

    cache = _with_config(commands.add_parser("cache", help="encode images and prompts once, ahead of training"))
    cache.set_defaults(run=_cache)

    train = _with_config(commands.add_parser("train", help="train, and export the pair at the end"))
    train.add_argument("--no-cache", action="store_true", help="encode images and prompts at each use instead of once")
    train.set_defaults(run=_train)

    sample = _with_config(
        commands.add_parser("sample", help="sample prompts with a checkpoint: the base with CFG, the pair with CHATS")
    )
    sample.add_argument("--prompt", action="append", required=True, help="may be given several times, a row each")
    sample.add_argument(
        "--form", choices=("proxy", "exact"), default="proxy", help="Eq. 17 or Eq. 16 (default: %(default)s)"
    )
    sample.add_argument(
        "--output", type=Path, default=Path("sample.png"), help="the picture to write (default: %(default)s)"
    )
    _with_checkpoint(sample).set_defaults(run=_sample)

    export = _with_config(commands.add_parser("export", help="write a checkpoint's pair as files that ComfyUI loads"))
    export.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the weights (default: %(default)s)"
    )
    export.add_argument("--output", type=Path, help="the folder to write to (default: the run's output_dir)")
    _with_checkpoint(export).set_defaults(run=_export)

    extract = commands.add_parser(
        "extract", help="write whole members as LoRAs: on the preferred model, or both on a base"
    )
    extract.add_argument(
        "--preferred", type=Path, required=True, help="the preferred member, a whole model (.safetensors)"
    )
    extract.add_argument(
        "--dispreferred", type=Path, required=True, help="the dispreferred member, a whole model (.safetensors)"
    )
    extract.add_argument(
        "--base", type=Path, help="the model that both LoRAs go on (default: one LoRA on the preferred member)"
    )
    extract.add_argument(
        "--rank", type=int, help="of the factors, for each layer; with --energy the most that a layer gets"
    )
    extract.add_argument(
        "--energy", type=float, help="for each layer the smallest rank that keeps this share of its difference, as 0.99"
    )
    extract.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the factors (default: %(default)s)"
    )
    extract.add_argument(
        "--output", type=Path, default=Path("."), help="the folder to write to (default: the current one)"
    )
    extract.set_defaults(run=_extract)

    _add_evaluate(commands)

    demo = commands.add_parser(
        "demo", help="see it all in minutes: a tiny base, a pair trained on its pictures, figures"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("chats-demo"), help="the folder to write, a new one (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    inspect = commands.add_parser("inspect", help="say what a .safetensors file is, from its header")
    inspect.add_argument("file", nargs="+", type=Path)
    inspect.set_defaults(run=_inspect)
    return parser


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = _with_config(
        commands.add_parser("evaluate", help="compare base, preferred model and CHATS on a prompt file, with scores")
    )
    add = evaluate.add_argument
    add(
        "--prompts",
        type=Path,
        nargs="+",
        required=True,
        help=".txt (one prompt a line), GenEval's .jsonl, or HPS v2's .json for each style",
    )
    add(
        "--seeds",
        type=int,
        default=4,
        metavar="COUNT",
        help="pictures for each prompt; 0 draws none, for --probe alone (default: %(default)s)",
    )
    add("--steps", type=int, default=50, help="of the sampler (default: %(default)s)")
    add("--alpha", type=float, nargs="+", default=[], help="of CHATS, one or more (default: the run's)")
    add(
        "--guidance-scale",
        type=float,
        nargs="+",
        default=[],
        help="the paper's s, one or more, for every method (default: the run's)",
    )
    add(
        "--form",
        nargs="+",
        choices=("proxy", "exact"),
        default=["proxy"],
        help="of CHATS, Eq. 17 or Eq. 16 or both (default: proxy)",
    )
    add("--batch-size", type=int, default=1, help="pictures that are sampled at once (default: %(default)s)")
    add(
        "--probe",
        action="store_true",
        help="measure how well the pair's proxy form stands for the exact one, before any picture",
    )
    scorers = (
        "pickscore, hpsv2 or imagereward, with a local folder, or a hub id, which is fetched; pictures are "
        "drawn without one too"
    )
    add("--scorer", nargs="+", default=[], metavar="KIND=FOLDER_OR_HUB_ID", help=scorers)
    add(
        "--output",
        type=Path,
        help="pictures and scores are kept there and used again (default: evaluation/ in the run's output_dir)",
    )
    _with_checkpoint(evaluate).set_defaults(run=_evaluate)


def _with_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("config", type=Path, help="the run's YAML")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, such as data.strict=true"
    )
    return command


def _with_checkpoint(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--checkpoint", default="latest", help="a checkpoint's folder (default: the newest whole one)")
    return command


def _init(args: argparse.Namespace) -> None:
    from chats.files import write_text

    from .settings.config_file import config_template

    if args.output.exists():
        raise UserError(f"`--output` is {args.output}, which is there already; remove it or choose another name")
    write_text(args.output, config_template(args.family))
    print(
        f"{args.output}: set `output_dir`, `pretrained_model` and `data`, then run `python -m chats_train check "
        f"{args.output}`"
    )


def _check(args: argparse.Namespace) -> None:
    from .check.readiness import model_size, print_disk, print_memory
    from .runs.opening import open_pairs

    config = _read_config(args)
    print(f"config: {config.family}, {config.objective}, {config.training_method}, {config.max_train_steps} steps")
    family = _open_family(config)
    size = model_size(config, family)
    dataset = open_pairs(config)
    print_memory(config, size)
    print_disk(config, size, dataset)


def _cache(args: argparse.Namespace) -> None:
    from .encodings.cache import fill_cache
    from .runs.opening import open_pairs

    config = _read_config(args)
    family = _open_family(config)
    dataset = open_pairs(config)
    fill_cache(config.cache_dir, dataset.samples, family, config.sample_prompts)
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


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation.evaluate import EvaluationSettings, evaluate

    settings = EvaluationSettings(
        prompts=tuple(args.prompts),
        seeds=args.seeds,
        steps=args.steps,
        alphas=tuple(args.alpha),
        guidance_scales=tuple(args.guidance_scale),
        forms=tuple(args.form),
        batch_size=args.batch_size,
        probe=args.probe,
    )
    print("\n".join(evaluate(_read_config(args), args.checkpoint, settings, args.scorer, args.output)))


def _demo(args: argparse.Namespace) -> None:
    from .demo.demo import demo

    demo(args.output)


def _inspect(args: argparse.Namespace) -> None:
    from .inspection import describe

    for file in args.file:
        print("\n".join(describe(file)))


def _read_config(args: argparse.Namespace) -> RunConfig:
    from .settings.config_file import load_config

    return load_config(args.config, args.set)


def _open_family(config: RunConfig) -> Family:
    from .runs.opening import open_family
    from .support.amounts import count_text

    family = open_family(config)
    parts = family.parameter_counts()
    sizes = ", ".join(f"{part} {count_text(count)}" for part, count in parts.items())
    print(f"base: {config.pretrained_model} ({family.prediction_type}, null prompt {family.null_prompt_kind}): {sizes}")
    return family
