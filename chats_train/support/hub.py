"""A source by its path or by its id on the Hugging Face hub: what counts as an id, and every failure of fetching one as
a sentence.

An id (owner/name) asks for the hub; nothing else does, and what looks like a path is never looked for there. Where
HF_HUB_OFFLINE is set, only what the hub's cache already holds is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chats.words import shown, shown_error

from .errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
# What files are called, and repositories are not.
FILE_SUFFIXES = frozenset(
    {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".tar", ".zip"}
    | {".json", ".jsonl", ".yaml", ".yml", ".txt", ".csv", ".parquet", ".arrow"}
)
UNAUTHORIZED = (401, 403)


@dataclass(frozen=True)
class Wanted:
    """What a source is to be.

    Attributes:
        folder: how to call the folder in an error.
        forms: what else a source can be, for the way out.
        mark: a file that every such folder has; by it a folder is found in the hub's cache.
        choose: of the names of a repository's files those to fetch.
    """

    folder: str
    forms: str
    mark: str
    choose: Callable[[Iterable[str]], list[str]]


def is_hub_id(source: str) -> bool:
    """Whether a source that is not on the disk names a repository: owner/name, and no ending that files have."""
    return HUB_ID.fullmatch(source) is not None and Path(source).suffix.lower() not in FILE_SUFFIXES


def local_or_fetched(subject: str, source: str, wanted: Wanted, error: type[UserError] = UserError) -> Path:
    """The folder that a source names: one on the disk, or a repository's, which is then fetched.

    Args:
        subject: the setting, as a sentence begins with it.
        source: a path or a hub id.
        wanted: what it is to be.
        error: the kind of error to raise.

    Raises:
        ``error``: when it is neither, or cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise error(
            f"{subject} is `{shown(source)}`, which is no {wanted.folder} and no hub id (owner/name); correct the path"
        )
    require_hub_id(subject, source, wanted.forms, error)
    begun = f"{subject} is {source}, which is no {wanted.folder} here and"
    with fetching(begun, source, "fetch it yourself and give its folder", error):
        from huggingface_hub import constants, hf_hub_download, list_repo_files, snapshot_download

        if constants.HF_HUB_OFFLINE:
            return Path(hf_hub_download(source, wanted.mark, local_files_only=True)).parent
        return Path(snapshot_download(source, allow_patterns=wanted.choose(list_repo_files(source))))


def require_hub_id(subject: str, source: str, forms: str, error: type[UserError] = UserError) -> None:
    """Raises ``error`` for a source that is not on the disk and names no repository."""
    if not is_hub_id(source):
        raise error(f"{subject} is `{shown(source)}`, which is not there; correct the path, or give {forms}")


@contextmanager
def fetching(
    begun: str, repository: str, instead: str, error: type[UserError] = UserError, *more: type[Exception]
) -> Iterator[None]:
    """Turns whatever keeps a repository from coming into one sentence. Only a library's calls belong inside.

    Args:
        begun: the sentence until "could not be fetched".
        repository: its id.
        instead: the way out that always is, after "or".
        error: the kind of error to raise.
        more: errors of the library that is called, beside the hub's and the system's.
    """
    try:
        yield
    except (*_failures(), *more) as problem:
        reason, way_out = _explained(problem, repository)
        raise error(f"{begun} could not be fetched ({reason}); {way_out}, or {instead}") from problem


def _failures() -> tuple[type[Exception], ...]:
    """The system's errors and the hub's. Beside the latter stands the base class of the HTTP library beneath, which is
    another in each generation (requests, httpx, httpx2)."""
    from huggingface_hub import errors

    known = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    # RuntimeError: of the hub's own transfer of files. ImportError: of proxies that want a further package.
    return (OSError, RuntimeError, ImportError, *known)


def _explained(problem: BaseException, repository: str) -> tuple[str, str]:
    """Why a repository did not come, and the way out. Libraries wrap the hub's errors, so the causes count too."""
    from huggingface_hub import constants, errors

    causes = list(_causes(problem))

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    is_lost = any_is(errors.LocalEntryNotFoundError)
    if constants.HF_HUB_OFFLINE and (is_lost or any_is(errors.OfflineModeIsEnabled)):
        return "HF_HUB_OFFLINE is set, and the hub's cache does not hold it", "unset HF_HUB_OFFLINE once"
    if any_is(errors.GatedRepoError):
        return "it is gated", f"accept its terms at {constants.ENDPOINT}/{repository}, log in with `hf auth login`"
    if any_is(errors.RevisionNotFoundError):
        return "it has no such revision", "correct the revision"
    if any_is(errors.RepositoryNotFoundError):
        return "the hub has none of this name, or it is private", "correct it, log in with `hf auth login`"
    if statuses := [status for status in map(_status, causes) if status is not None]:
        way_out = "log in anew with `hf auth login`" if statuses[0] in UNAUTHORIZED else "try again later"
        return f"the hub answers with HTTP status {statuses[0]}", way_out
    reason = shown_error(problem).removesuffix(".")
    if isinstance(problem, FileNotFoundError) and not is_lost:
        # How `datasets` says that a data set or a revision is not there, or gated; it drops what that came from.
        return reason, "correct that, log in with `hf auth login`"
    if not isinstance(problem, _failures()):
        return reason, "correct that"  # such as a split that the data set has not
    return reason, "check the connection"


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from, whether stated or not."""
    yield problem
    for cause in (problem.__cause__, problem.__context__):
        if cause is not None:
            yield from _causes(cause)


def _status(problem: BaseException) -> object:
    """The HTTP status that the error of a request has."""
    return getattr(getattr(problem, "response", None), "status_code", None)
