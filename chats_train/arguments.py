"""What each command takes: options, their help and their defaults.

Nothing heavy is imported, so that help is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

SCORERS = "pickscore, hpsv2 or imagereward, with a local folder, or a hub id, which is fetched"
BENCHMARKS = "geneval=SEGMENTER,CLIP and dpg=VQA_MODEL,QUESTIONS.csv score the benchmarks' own prompts"


def parser(runs: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """The parser of the command line. The arguments that it reads have as `run` what ``runs`` has for their command."""
    whole = argparse.ArgumentParser(
        "python -m chats_train",
        description="Trains a preferred and a dispreferred model from pairs of images (CHATS, arXiv 2502.12579).",
    )
    commands = whole.add_subparsers(title="commands", metavar="command", required=True)

    init = commands.add_parser("init", help="write a commented config to start from")
    init.add_argument("family", help="the kind of the base model, such as sdxl; any other word lists them")
    init.add_argument(
        "--recipe",
        metavar="NAME",
        help="settings for one purpose instead of the defaults: paper, paper-pickapic (Pick-a-Pic v2), or a card's "
        "memory, 8gb, 12gb, 16gb or 24gb",
    )
    init.add_argument("--output", type=Path, default=Path("run.yaml"), help="the file to write (default: %(default)s)")

    _with_config(commands.add_parser("check", help="check config, base, data, disk and memory before anything heavy"))

    _with_config(commands.add_parser("cache", help="encode images and prompts once, ahead of training"))

    train = _with_config(commands.add_parser("train", help="train, and export the pair at the end"))
    train.add_argument("--no-cache", action="store_true", help="encode images and prompts at each use instead of once")

    sample = _with_config(
        commands.add_parser("sample", help="sample prompts with a checkpoint: the base with CFG, the pair with CHATS")
    )
    sample.add_argument("--prompt", action="append", required=True, help="may be given several times, a row each")
    sample.add_argument(
        "--form",
        choices=("proxy", "exact"),
        help="Eq. 17 or Eq. 16 (default: proxy, where the family has one)",
    )
    sample.add_argument(
        "--output", type=Path, default=Path("sample.png"), help="the picture to write (default: %(default)s)"
    )
    _with_checkpoint(sample)

    export = _with_config(commands.add_parser("export", help="write a checkpoint's pair as files that ComfyUI loads"))
    export.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the weights (default: %(default)s)"
    )
    export.add_argument("--output", type=Path, help="the folder to write to (default: the run's output_dir)")
    _with_checkpoint(export)

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

    _add_distill(commands)
    _add_evaluate(commands)
    _add_score(commands)
    _add_rate(commands)

    demo = commands.add_parser(
        "demo", help="see it all in minutes: a tiny base, a pair trained on its pictures, figures"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("chats-demo"), help="the folder to write, a new one (default: %(default)s)"
    )

    inspect = commands.add_parser("inspect", help="say what a .safetensors file is, from its header")
    inspect.add_argument("file", nargs="+", type=Path)

    for command, run in runs.items():
        commands.choices[command].set_defaults(run=run)
    return whole


def _add_distill(commands: argparse._SubParsersAction) -> None:
    distill = commands.add_parser(
        "distill",
        help="make one ordinary LoRA (or whole model) out of a finished run's pair, to sample at cfg 1",
        description="Makes one ordinary LoRA, or one whole model, out of a finished run's pair and its guidance, to be "
        "sampled alone at cfg 1, where cfg and negative prompts no longer act. It trains on the run's cached latents; "
        "stopped at any time, the same command goes on.",
    )
    add = distill.add_argument
    add("run_path", type=Path, metavar="RUN", help="the run's folder or YAML")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the run, such as train_batch_size=1 where memory is short",
    )
    _with_checkpoint(distill)
    teacher = distill.add_argument_group("what the pair does that is learned")
    teacher.add_argument(
        "--form",
        choices=("proxy", "exact"),
        help="Eq. 17 or Eq. 16 (default: proxy, unless the family has none or the run's probe objects)",
    )
    teacher.add_argument("--guidance-scale", type=float, help="the paper's s, cfg − 1 (default: the run's)")
    teacher.add_argument("--alpha", type=float, help="(default: the run's, and 0 with `--negative base`)")
    teacher.add_argument(
        "--negative",
        choices=("dispreferred", "base"),
        default="dispreferred",
        help="the model that guidance leads away from (default: %(default)s)",
    )
    for option, default, words in (("start", 0.0, "from"), ("end", 1.0, "up to")):
        teacher.add_argument(
            f"--{option}-percent",
            type=float,
            default=default,
            help=f"share of the noise schedule {words} which it guides (default: {default:g})",
        )
    student = distill.add_argument_group("what learns it")
    student.add_argument("--method", choices=("lora", "full"), help="(default: as the pair)")
    student.add_argument("--rank", type=int, default=16, help="of a LoRA (default: %(default)s)")
    student.add_argument(
        "--layers",
        choices=("all", "pair"),
        default="all",
        help="of a LoRA: every linear layer and convolution, or those of the pair's LoRAs (default: %(default)s)",
    )
    student.add_argument("--steps", type=int, default=160, help="optimizer steps (default: %(default)s)")
    student.add_argument("--learning-rate", type=float, help="(default: 2e-3 for a LoRA, 3e-4 for a whole model)")
    student.add_argument("--batch-size", type=int, default=16, help="pairs in a step (default: %(default)s)")
    student.add_argument("--seed", type=int, help="(default: the run's)")
    add("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the file (default: %(default)s)")
    add("--output", type=Path, help="the folder to write to (default: distilled/ in the run's output_dir)")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="compare base, preferred model and CHATS on a prompt file, with scores"
    )
    _with_config(evaluate, needed=False)
    add = evaluate.add_argument
    add(
        "--pair",
        type=Path,
        nargs=2,
        metavar=("PREFERRED", "DISPREFERRED"),
        help="instead of a run: two whole models (diffusers folders, or .safetensors) or two LoRAs; how to sample them "
        "is said with --set",
    )
    add("--base", metavar="BASE", help="with --pair: the base of both, a diffusers folder, a checkpoint or a hub id")
    add(
        "--table",
        nargs="+",
        choices=("1", "2", "3", "4", "6", "7", "8", "9", "figure5"),
        default=[],
        help="make tables of the paper, in its rows and columns with its figures beside ours, at its s and alpha",
    )
    add(
        "--model",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="with --table: the model of a further row, diffusion_dpo, supervised_all, supervised_chosen or "
        "two_models_without_reference; a run's YAML, or files as --pair takes them (two with a comma)",
    )
    add(
        "--prompts",
        type=Path,
        nargs="+",
        default=[],
        help=".txt (one prompt a line), GenEval's .jsonl, HPS v2's .json for each style, or DPG-Bench's folder of .txt",
    )
    add(
        "--seeds",
        type=int,
        metavar="COUNT",
        help="pictures for each prompt; 0 draws none, for --probe alone (default: 4; of a table its own)",
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
        default=[],
        help="of CHATS, Eq. 17 or Eq. 16 or both (default: proxy, where the family has one)",
    )
    add("--batch-size", type=int, default=1, help="pictures that are sampled at once (default: %(default)s)")
    add(
        "--probe",
        action="store_true",
        help="measure how well the pair's proxy form stands for the exact one, before any picture",
    )
    add(
        "--scorer",
        nargs="+",
        default=[],
        metavar="KIND=FOLDER_OR_HUB_ID",
        help=f"{SCORERS}; {BENCHMARKS}; pictures are drawn without one too",
    )
    add(
        "--output",
        type=Path,
        help="pictures and scores are kept there and used again (default: evaluation/ in the run's output_dir)",
    )
    _with_checkpoint(evaluate)


def _add_score(commands: argparse._SubParsersAction) -> None:
    score = commands.add_parser(
        "score",
        help="let GenEval or DPG-Bench score pictures that were drawn elsewhere",
        description="Scores pictures in a benchmark's own folders: for GenEval NUMBER/metadata.jsonl beside "
        "NUMBER/samples/, for DPG-Bench a picture or a grid for each prompt, ITEM_ID.png. It can be stopped and goes "
        "on.",
    )
    score.add_argument("pictures", type=Path, help="their folder")
    score.add_argument("--scorer", required=True, metavar="BENCHMARK", help=BENCHMARKS)
    score.add_argument(
        "--grid",
        type=int,
        default=1,
        metavar="N",
        help="DPG-Bench's files are grids of N × N pictures (default: 1, single ones)",
    )
    score.add_argument("--output", type=Path, help="scores are kept there (default: scores/ in the folder)")


def _add_rate(commands: argparse._SubParsersAction) -> None:
    rate = commands.add_parser(
        "rate",
        help="let scorers rate the candidates that ComfyUI drew, and see how often they agree with you",
        description="Lets scorers rate the candidates that ComfyUI drew, beside the ratings of people, which count "
        "before theirs. Of a prompt with up to nine candidates all pairs are rated, of more each candidate with eight "
        "others, and what a person rated. It can be stopped and goes on; other weights or another margin replace what "
        "the same scorer said before.",
    )
    rate.add_argument("dataset", type=Path, help="its folder: chats/NAME in ComfyUI's output folder")
    rate.add_argument("--scorer", nargs="+", required=True, metavar="KIND=FOLDER_OR_HUB_ID", help=SCORERS)
    rate.add_argument(
        "--margin",
        type=float,
        nargs="+",
        default=[],
        metavar="NUMBER",
        help="scores that are less apart are a tie; one for each scorer, in its own unit (default: 0)",
    )


def _with_config(command: argparse.ArgumentParser, needed: bool = True) -> argparse.ArgumentParser:
    command.add_argument("config", type=Path, nargs=None if needed else "?", help="the run's YAML")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, such as data.strict=true"
    )
    return command


def _with_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", default="latest", help="a checkpoint's folder (default: the newest whole one)")
