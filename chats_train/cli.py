"""The command line: ``python -m chats_train <command>``. What a command needs is imported when it runs, so that help is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from .config import RunConfig
    from .data import PairDataset
    from .estimate import ModelSize
    from .families import Family

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130
PROBLEMS_FILE = "data_problems.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what the user can mend is printed as sentences, and the status is then 2.

    Returns:
        the exit status.
    """
    args = _parser().parse_args(arguments)
    try:
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
        print(f"error: {error}; mend that and start again", file=sys.stderr)
        return USER_ERROR_STATUS
    return 0


def _is_for_the_user(error: ValueError) -> bool:
    """Whether an error's message is one that this project wrote for its users. Imports are late: most runs end without an error."""
    from chats.pair import PairError

    return isinstance(error, UserError | PairError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m chats_train", description="Trains a preferred and a dispreferred model from pairs of images (CHATS, arXiv 2502.12579)."
    )
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)

    init = commands.add_parser("init", help="write a commented config to start from")
    init.add_argument("family", help="the kind of the base model: sd15, sdxl, sd3 or flux")
    init.add_argument("--output", type=Path, default=Path("run.yaml"), help="the file to write (default: %(default)s)")
    init.set_defaults(run=_init)

    check = _with_config(commands.add_parser("check", help="check config, base, data, disk and memory before anything heavy"))
    check.set_defaults(run=_check)

    cache = _with_config(commands.add_parser("cache", help="encode images and prompts once, ahead of training"))
    cache.set_defaults(run=_cache)

    train = _with_config(commands.add_parser("train", help="train, and export the pair at the end"))
    train.add_argument("--no-cache", action="store_true", help="encode images and prompts at each use instead of once")
    train.set_defaults(run=_train)

    sample = _with_config(commands.add_parser("sample", help="sample prompts with a checkpoint: the base with CFG, the pair with CHATS"))
    sample.add_argument("--prompt", action="append", required=True, help="may be given several times, a row each")
    sample.add_argument("--form", choices=("proxy", "exact"), default="proxy", help="Eq. 17 or Eq. 16 (default: %(default)s)")
    sample.add_argument("--output", type=Path, default=Path("sample.png"), help="the picture to write (default: %(default)s)")
    _with_checkpoint(sample).set_defaults(run=_sample)

    export = _with_config(commands.add_parser("export", help="write a checkpoint's pair as files that ComfyUI loads"))
    export.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the weights (default: %(default)s)")
    export.add_argument("--output", type=Path, help="the folder to write to (default: the run's output_dir)")
    _with_checkpoint(export).set_defaults(run=_export)

    demo = commands.add_parser("demo", help="see it all in minutes: a tiny base, a pair trained on its pictures, figures")
    demo.add_argument("--output", type=Path, default=Path("chats-demo"), help="the folder to write, a new one (default: %(default)s)")
    demo.set_defaults(run=_demo)

    inspect = commands.add_parser("inspect", help="say what a .safetensors file is, from its header")
    inspect.add_argument("file", nargs="+", type=Path)
    inspect.set_defaults(run=_inspect)
    return parser


def _with_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("config", type=Path, help="the run's YAML")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, such as data.strict=true")
    return command


def _with_checkpoint(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--checkpoint", default="latest", help="a checkpoint's folder (default: the newest whole one)")
    return command


def _init(args: argparse.Namespace) -> None:
    from .config_file import config_template
    from .files import write_text

    if args.output.exists():
        raise UserError(f"`--output` is {args.output}, which is there already; remove it or choose another name")
    write_text(args.output, config_template(args.family))
    print(f"{args.output}: set `output_dir`, `pretrained_model` and `data`, then run `python -m chats_train check {args.output}`")


def _check(args: argparse.Namespace) -> None:
    config = _read_config(args)
    print(f"config: {config.family}, {config.objective}, {config.training_method}, {config.max_train_steps} steps")
    family = _open_family(config)
    size = _model_size(config, family)
    dataset = _open_dataset(config)
    _print_memory(config, size)
    _print_disk(config, size, dataset)


def _cache(args: argparse.Namespace) -> None:
    from .cache import fill_cache

    config = _read_config(args)
    family = _open_family(config)
    dataset = _open_dataset(config)
    fill_cache(config.cache_dir, dataset.samples, family, config.sample_prompts)
    print(f"cached in {config.cache_dir}: {len(dataset.samples)} pairs")


def _train(args: argparse.Namespace) -> None:
    from .training.run import train

    print(train(_read_config(args), use_cache=not args.no_cache))


def _sample(args: argparse.Namespace) -> None:
    from .files import replacing
    from .training.run import sample

    picture = sample(_read_config(args), args.checkpoint, args.prompt, args.form)
    with replacing(args.output) as temporary:
        picture.save(temporary, format="png")
    print(args.output)


def _export(args: argparse.Namespace) -> None:
    from .training.run import export

    for path in export(_read_config(args), args.checkpoint, args.output, args.dtype):
        print(path)


def _demo(args: argparse.Namespace) -> None:
    from .demo.run import demo

    demo(args.output)


def _inspect(args: argparse.Namespace) -> None:
    from .inspection import describe

    for file in args.file:
        print("\n".join(describe(file)))


def _read_config(args: argparse.Namespace) -> RunConfig:
    from .config_file import load_config

    return load_config(args.config, args.set)


def _open_family(config: RunConfig) -> Family:
    from .inspection import count_text
    from .wiring import open_family

    family = open_family(config)
    parts = family.parameter_counts()
    sizes = ", ".join(f"{part} {count_text(count)}" for part, count in parts.items())
    print(f"base: {config.pretrained_model} ({family.prediction_type}, null prompt {family.null_prompt_kind}): {sizes}")
    return family


def _open_dataset(config: RunConfig) -> PairDataset:
    """The run's pairs; what is wrong with them is printed, and listed whole in a file of the run."""
    from .data import open_dataset
    from .files import write_text

    dataset = open_dataset(config)
    print("\n".join(["data: " + dataset.report()[0], *dataset.report()[1:]]))
    if dataset.problems:
        write_text(config.output_dir / PROBLEMS_FILE, "".join(f"{problem}\n" for problem in dataset.problems))
        print(f"  all {len(dataset.problems)} problems are listed in {config.output_dir / PROBLEMS_FILE}")
    return dataset


def _model_size(config: RunConfig, family: Family) -> ModelSize:
    from .estimate import ModelSize, adapter_parameters

    shapes = family.source.shapes(family.denoiser_part)
    targets = tuple(config.network_target_modules or family.lora_targets)
    adapter = adapter_parameters(shapes, targets, config.network_rank)
    denoiser = family.parameter_counts()[family.denoiser_part]
    return ModelSize(denoiser, adapter, family.latent_channels, family.vae_scale_factor)


def _print_memory(config: RunConfig, size: ModelSize) -> None:
    import torch

    from .estimate import memory_bytes
    from .inspection import bytes_text

    print(f"memory of weights, gradients and {config.optimizer}, activations on top:")
    for method, weight_dtype in (("lora", "fp32"), ("full", "fp32"), ("full", "bf16")):
        chosen = method == config.training_method and (method == "lora" or weight_dtype == config.weight_dtype)
        name = "lora" if method == "lora" else f"full, weight_dtype {weight_dtype}"
        print(f"  {name}: {bytes_text(memory_bytes(config, size, method, weight_dtype))}{' (this run)' if chosen else ''}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"  this GPU has {bytes_text(total)}, {bytes_text(free)} of it free")


def _print_disk(config: RunConfig, size: ModelSize, dataset: PairDataset) -> None:
    """Room wanted beyond what is there already, and room free; UserError where it cannot suffice."""
    from .estimate import cache_bytes, checkpoint_bytes, disk_of, folder_bytes
    from .inspection import bytes_text

    # One more than are kept: the new one is whole before the oldest goes. Where all are kept, all of the run's.
    checkpoints = 1 + (config.checkpoints_total_limit or config.max_train_steps // config.checkpointing_steps)
    wanted = {"cache_dir": cache_bytes(config, size, dataset), "output_dir": checkpoint_bytes(config, size) * checkpoints}
    cached = folder_bytes(config.cache_dir)
    saved = folder_bytes(config.output_dir) - (cached if config.cache_dir.is_relative_to(config.output_dir) else 0)
    present = {"cache_dir": cached, "output_dir": saved}
    missing: dict[int, float] = {}
    for setting, bytes_wanted in wanted.items():
        folder = getattr(config, setting)
        disk, free = disk_of(folder)
        # The two folders may share a disk, and then their wants add up.
        missing[disk] = missing.get(disk, 0) + max(0, bytes_wanted - present[setting])
        print(f"disk: `{setting}` {folder} takes up to {bytes_text(bytes_wanted)}, {bytes_text(free)} are free")
        if missing[disk] > free:
            raise UserError(f"`{setting}` is {folder}, which lacks {bytes_text(missing[disk] - free)}; make room or choose another disk")
