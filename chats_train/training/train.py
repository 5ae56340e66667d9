"""A whole run, from its config to its pair: data, cache, steps, export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from chats.locks import locked
from chats.words import shown_error

from ..data import PairDataset, open_dataset, take_over
from ..data.listing import hand_over, handed_over
from ..encodings.cache import CachedEncodings, LiveEncodings, PairEncodings, fill_cache
from ..families import Family
from ..runs.checkpoint import RESUME, has_checkpoint, open_checkpoint
from ..runs.folder import CHECKPOINTS, CONFIG_FILE, LOCK
from ..runs.opening import open_family, open_pairs, settled
from ..runs.pair_export import export_pair
from ..runs.peers import peers_of
from ..runs.probe_file import read_probe
from ..runs.processes import Processes
from ..settings.config import RunConfig
from ..settings.config_file import save_resolved
from ..support.errors import UserError
from .last_probe import probe_trained
from .loop import run_steps
from .reference_errors import repeats_note
from .trainer import Trainer


def train(config: RunConfig, use_cache: bool = True) -> str:
    """Trains, and exports the pair into ``output_dir``; goes on where a checkpoint says so.

    SIGINT and SIGTERM end the run after the step at hand, with a checkpoint of it.

    Args:
        use_cache: encode once and keep it, or encode at each use.

    Returns:
        one line that says how it ended.

    Raises:
        UserError: for what the user can mend; a NaN among it, with the last good checkpoint named.
    """
    processes = Processes()
    with only_run_in(config.output_dir, processes):
        _refuse_to_take_over(config)
        return _train(config, processes, use_cache)


def _train(config: RunConfig, processes: Processes, use_cache: bool) -> str:
    family = open_family(config, processes.device)
    dataset = open_data(config, processes)
    config = settled(config, family)
    encodings = open_encodings(config, family, dataset, processes, use_cache)
    trainer = Trainer(config, family, dataset, encodings, processes)
    resume(trainer)
    if processes.is_main:
        save_resolved(config, config.output_dir / CONFIG_FILE)
        if (note := repeats_note(config, len(trainer.samples), trainer.pairs_per_step)) is not None:
            print(f"note: {note}", file=sys.stderr)
    if not run_steps(trainer):
        return f"stopped after step {trainer.step}; go on with `--set resume_from_checkpoint=latest`"
    if not processes.is_main:
        return f"trained {trainer.step} steps"
    probe = _probe(trainer)
    files = export_pair(
        config, family, trainer.weights(), trainer.step, dataset.fingerprint, config.output_dir, probe=probe
    )
    return f"trained {trainer.step} steps: " + ", ".join(map(str, files))


def _probe(trainer: Trainer) -> dict[str, float]:
    """What the probe adds to the pair's metadata. A probe that fails, of memory say, does not keep a trained pair from
    its export."""
    try:
        probe_trained(trainer)
    except RuntimeError as error:
        print(
            f"the pair is exported without a probe of its proxy prompt, which failed ({shown_error(error)}); try "
            "`evaluate --probe`"
        )
    return read_probe(trainer.config.output_dir, trainer.step)


def open_data(config: RunConfig, processes: Processes) -> PairDataset:
    """The data set; the main process looks at it and hands it over to the others.

    Raises:
        UserError: as :func:`..data.open_dataset`, and where the processes see different data.
    """
    if processes.count == 1:
        return open_pairs(config)
    path = handed_over(config.cache_dir, processes.one_number())
    with peers_of(processes) as peers:
        if processes.is_main:
            dataset = open_pairs(config)
            hand_over(dataset.samples, dataset.name, path)
        peers.wait()
        if not processes.is_main:
            # On a machine with a cache of its own they look themselves.
            dataset = take_over(path, config) or open_dataset(config, progress=False)
    if not processes.agree(int(dataset.fingerprint[:12], 16)):
        raise UserError("the processes see different data sets; put `data.path` where all machines see the same")
    if processes.is_main:
        # What the others have mapped stays theirs.
        with suppress(PermissionError):
            path.unlink()
    return dataset


def open_encodings(
    config: RunConfig, family: Family, dataset: PairDataset, processes: Processes, use_cache: bool
) -> PairEncodings:
    if not use_cache:
        return LiveEncodings(family)
    with peers_of(processes) as peers:
        fill_cache(
            config.cache_dir,
            dataset.samples,
            family,
            config.sample_prompts,
            process_index=processes.index,
            num_processes=processes.count,
            progress=processes.is_main,
            between=peers.check,
        )
        family.release_encoders()
    return CachedEncodings(config.cache_dir, family.fingerprint)


@contextmanager
def only_run_in(folder: Path, processes: Processes, setting: str = "output_dir") -> Iterator[None]:
    """Keeps other runs out of a folder, which ``setting`` names; the main process holds the lock for all of this
    run's."""
    with locked(folder / LOCK) if processes.is_main else nullcontext(True) as free:
        if processes.any(not free):
            raise UserError(
                f"`{setting}` is {folder}, where another run is at work now; wait for its end, stop it, or choose "
                f"another `{setting}`"
            )
        yield


def _refuse_to_take_over(config: RunConfig) -> None:
    if config.resume_from_checkpoint is None and has_checkpoint(config.output_dir / CHECKPOINTS):
        raise UserError(
            f"`output_dir` is {config.output_dir}, which has checkpoints of an earlier run; "
            "set `resume_from_checkpoint: latest` to go on, or choose another `output_dir`"
        )


def resume(trainer: Trainer) -> None:
    wanted, output_dir = trainer.config.resume_from_checkpoint, trainer.config.output_dir
    if wanted is None:
        return
    checkpoint = open_checkpoint(output_dir / CHECKPOINTS, wanted, RESUME)
    if checkpoint is not None:
        trainer.load_state(checkpoint)
    if not trainer.processes.agree(trainer.step):
        raise UserError(
            f"`output_dir` is {output_dir}, which has other checkpoints on other machines; set it to a folder that "
            "they share"
        )
    if checkpoint is not None and trainer.processes.is_main:
        print(f"going on from {checkpoint.path}")
