"""The server's side of rating: `/chats/datasets`, and each data set's pair, rating and guideline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from server import PromptServer

from ...chats.words import shown_error
from .data_sets import data_set, names
from .requests import MOST_AVOIDED, Refused, check_origin, field, json_body

if TYPE_CHECKING:
    from aiohttp import web

    from ...chats.taste.dataset import TasteDataset
    from ...chats.taste.plan import Shown

DERIVE_SECONDS = 1.0
_to_derive: set[TasteDataset] = set()

Answer = dict[str, Any]


def register() -> None:
    """Adds the routes to ComfyUI's server, where there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/chats/datasets")(_answering(list_datasets))
    server.routes.get("/chats/{dataset}/pair")(_answering(next_pair))
    server.routes.post("/chats/{dataset}/rating")(_answering(rate))
    server.routes.post("/chats/{dataset}/guideline")(_answering(write_guideline))


def _answering(handler: Callable[[web.Request], Awaitable[Answer]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler, its answer as JSON, and every refusal as a sentence with its status."""

    async def answer(request: web.Request) -> web.Response:
        from aiohttp import web

        from ...chats.taste.names import TasteError

        try:
            check_origin(request.headers)
            return web.json_response(await handler(request))
        except Refused as refused:
            status, sentence = refused.status, str(refused)
        except TasteError as error:
            status, sentence = _status(error), str(error)
        except OSError as error:
            status, sentence = 507, f"the data set cannot be read ({shown_error(error)}); see to its folder"
        return web.json_response({"error": sentence}, status=status)

    return answer


def _status(error: Exception) -> int:
    from ...chats.taste.names import Conflict, NotThere, NotWritten

    statuses = {NotThere: 404, Conflict: 409, NotWritten: 507}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 400)


def rater_of(request: web.Request) -> str:
    """The user, under `--multi-user`; else everybody is the same one."""
    try:
        return PromptServer.instance.user_manager.get_request_user_id(request)
    except KeyError as error:
        raise Refused(403, "the request names no user of this server; choose one in ComfyUI") from error


def _existing(name: str) -> TasteDataset:
    found = data_set(name)
    if not found.exists():
        raise Refused(404, "there is no such data set; draw candidates with CHATS Save Candidates")
    return found


async def list_datasets(request: web.Request) -> Answer:
    rater = rater_of(request)

    def described(name: str) -> Answer:
        one = data_set(name)
        return {
            "name": name,
            **one.counts(),
            **{key: one.progress(rater)[key] for key in ("pairs", "rated", "waiting")},
        }

    return {"datasets": await asyncio.to_thread(lambda: [described(name) for name in names()])}


async def next_pair(request: web.Request) -> Answer:
    from ...chats.taste.names import is_id

    rater, tab = rater_of(request), request.query.get("tab", "")
    if tab and not is_id(tab):
        raise Refused(400, "`tab` is not 16 hex digits")
    avoid = [tuple(pair.split("-")) for pair in request.query.get("avoid", "").split(",") if pair]
    if len(avoid) > MOST_AVOIDED or not all(len(pair) == 2 and all(map(is_id, pair)) for pair in avoid):
        raise Refused(400, f"`avoid` is not a list of at most {MOST_AVOIDED} pairs of ids, <id>-<id>,<id>-<id>")

    def answer() -> tuple[TasteDataset, Answer]:
        one = _existing(request.match_info["dataset"])
        shown = one.next_pair(rater, avoid, tab)
        return one, {
            "pair": shown and _shown(shown),
            "progress": one.progress(rater),
            "guideline": one.guideline(),
            "last": one.last(rater),
            "notes": one.notes(),
        }

    one, answered = await asyncio.to_thread(answer)
    _derive_soon(one)
    return answered


async def rate(request: web.Request) -> Answer:
    rater, content = rater_of(request), await json_body(request)
    keep = _undo(rater, content) if "undo" in content else _vote(rater, content)

    def answer() -> tuple[TasteDataset, Answer]:
        one = _existing(request.match_info["dataset"])
        return one, {**keep(one), "progress": one.progress(rater)}

    one, answered = await asyncio.to_thread(answer)
    _derive_soon(one)
    return answered


def _vote(rater: str, content: Answer) -> Callable[[TasteDataset], Answer]:
    rating, left, right, choice = (field(content, name, str) for name in ("rating", "left", "right", "choice"))
    seconds = field(content, "seconds", int, float, type(None))
    repeat = field({"repeat": False, **content}, "repeat", bool)
    return lambda one: {"rating": rating, "stands": one.vote(rating, left, right, choice, rater, seconds, repeat)}


def _undo(rater: str, content: Answer) -> Callable[[TasteDataset], Answer]:
    rating = field(content, "undo", str)
    return lambda one: {"undone": rating, "pair": _shown(one.undo(rating, rater))}


async def write_guideline(request: web.Request) -> Answer:
    rater_of(request)
    text = field(await json_body(request), "guideline", str)
    kept = await asyncio.to_thread(lambda: _existing(request.match_info["dataset"]).write_guideline(text))
    return {"guideline": kept}


def _shown(shown: Shown) -> Answer:
    return {"left": shown.left, "right": shown.right, "prompt": shown.prompt, "repeat": shown.repeat}


def _derive_soon(one: TasteDataset) -> None:
    """Derives metadata.jsonl in a moment, once for all votes until then."""
    if one in _to_derive or not one.stale:
        return
    _to_derive.add(one)
    loop = asyncio.get_running_loop()
    loop.call_later(DERIVE_SECONDS, lambda: loop.run_in_executor(None, _derive, one))


def _derive(one: TasteDataset) -> None:
    from ...chats.taste.names import TasteError

    _to_derive.discard(one)
    try:
        one.derive()
    except TasteError as error:
        logging.warning("CHATS: %s", error)
