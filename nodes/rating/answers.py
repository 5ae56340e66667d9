"""What the dialog asks: the data sets, the next pair, and what is done with an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from server import PromptServer

from ...chats.taste.dataset import TasteDataset
from ...chats.taste.names import Conflict, NotThere, NotWritten, TasteError, is_id
from ...chats.taste.plan import Shown
from ...chats.taste.sentence import Sentence
from ...chats.words import shown_error
from .data_sets import data_set, names
from .requests import MOST_AVOIDED, Refused, check_origin, field, json_body

STATUSES = {NotThere: 404, Conflict: 409, NotWritten: 507}
DERIVE_SECONDS = 1.0
_to_derive: set[TasteDataset] = set()

Answer = dict[str, Any]


async def answer(handler: Callable[[web.Request], Awaitable[Answer]], request: web.Request) -> web.Response:
    """What a handler says, as JSON; every refusal is a sentence with its status."""
    try:
        check_origin(request.headers)
        return web.json_response(await handler(request))
    except Refused as refused:
        status, sentence = refused.status, refused.sentence
    except TasteError as error:
        status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 400)
        sentence = error.sentence
    except OSError as error:
        status, sentence = (
            507,
            Sentence(
                "unreadable", "the data set cannot be read ({reason}); see to its folder", reason=shown_error(error)
            ),
        )
    return web.json_response({"error": sentence, **_translatable(sentence)}, status=status)


def _translatable(sentence: Sentence) -> Answer:
    """What a page needs to say a sentence in its own language."""
    return {"key": sentence.key, "values": sentence.values}


def rater_of(request: web.Request) -> str:
    """The user, under `--multi-user`; else everybody is the same one."""
    try:
        return PromptServer.instance.user_manager.get_request_user_id(request)
    except KeyError as error:
        raise Refused(403, "noUser", "the request names no user of this server; choose one in ComfyUI") from error


def _existing(name: str) -> TasteDataset:
    found = data_set(name)
    if not found.exists():
        raise Refused(
            404,
            "noDataSet",
            "there is no data set `{name}` in `chats` of the output folder; put it back where it was renamed or moved",
            name=name,
        )
    return found


async def list_datasets(request: web.Request) -> Answer:
    rater = rater_of(request)

    def described(name: str) -> Answer:
        one = data_set(name)
        counts, progress = one.counts(), one.progress(rater)
        return {"name": name, **counts, **{key: progress[key] for key in ("pairs", "rated", "waiting")}}

    return {"datasets": await asyncio.to_thread(lambda: [described(name) for name in names()])}


async def next_pair(request: web.Request) -> Answer:
    rater, tab = rater_of(request), request.query.get("tab", "")
    if tab and not is_id(tab):
        raise Refused(400, "badTab", "`tab` is not 16 hex digits")
    avoid = [tuple(pair.split("-")) for pair in request.query.get("avoid", "").split(",") if pair]
    if len(avoid) > MOST_AVOIDED or not all(len(pair) == 2 and all(map(is_id, pair)) for pair in avoid):
        raise Refused(
            400,
            "badAvoid",
            "`avoid` is not a list of at most {most} pairs of ids, <id>-<id>,<id>-<id>",
            most=MOST_AVOIDED,
        )

    def look() -> tuple[TasteDataset, Answer]:
        one = _existing(request.match_info["dataset"])
        shown = one.next_pair(rater, avoid, tab)
        with one.at_once():
            return one, {
                "pair": shown and _shown(shown),
                "progress": one.progress(rater),
                "alone": one.alone(),
                "guideline": one.guideline(),
                "last": one.last(rater),
                "notes": [{"text": note, **_translatable(note)} for note in one.notes()],
            }

    one, answered = await asyncio.to_thread(look)
    _derive_soon(one)
    return answered


async def rate(request: web.Request) -> Answer:
    rater, content = rater_of(request), await json_body(request)
    keep = _undo(rater, content) if "undo" in content else _vote(rater, content)

    def look() -> tuple[TasteDataset, Answer]:
        one = _existing(request.match_info["dataset"])
        return one, {**keep(one), "progress": one.progress(rater)}

    one, answered = await asyncio.to_thread(look)
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
    _to_derive.discard(one)
    try:
        one.derive()
    except TasteError as error:
        logging.warning("CHATS: %s", error)
