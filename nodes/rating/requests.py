"""What a request may be: from this server's own pages, JSON of a bounded size, by a known user."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from aiohttp import web

from ...chats.taste.sentence import Sentence

MOST_BYTES = 16 * 1024
BODY_SECONDS = 5
MOST_AVOIDED = 200
PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """A request that is not answered; the status and a sentence."""

    def __init__(self, status: int, key: str, english: str, **values: str | int) -> None:
        self.status, self.sentence = status, Sentence(key, english, **values)
        super().__init__(self.sentence)


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuses what another site's page sends. ComfyUI itself looks only where it is reached as localhost."""
    origin = headers.get("Origin")
    foreign = origin is not None and not _is_at(origin, headers.get("Host", ""))
    if foreign or headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
        raise Refused(403, "foreignPage", "the request comes from a page of another site; open ComfyUI itself")


def _is_at(origin: str, host: str) -> bool:
    """Whether an origin is at a host; some proxies state a scheme's own port, which browsers leave out."""
    scheme, separator, place = origin.lower().partition("://")
    return bool(separator and place) and host.lower() in (place, f"{place}:{PORTS.get(scheme)}")


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(415, "compressed", "the request is compressed; send it as it is")
    if request.content_type != "application/json":
        raise Refused(415, "notJson", "the content type is not application/json; send JSON")
    try:
        body = await asyncio.wait_for(_body(request), BODY_SECONDS)
        content = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except asyncio.TimeoutError as error:
        raise Refused(
            408, "unfinished", "the request did not end within {seconds} s; send it again", seconds=BODY_SECONDS
        ) from error
    except (ValueError, RecursionError, web.RequestPayloadError) as error:
        raise Refused(400, "brokenJson", "the request is not JSON in UTF-8; send one JSON object") from error
    if not isinstance(content, dict):
        raise Refused(400, "noObject", "the request is no JSON object; send one")
    return content


async def _body(request: web.Request) -> bytes:
    """What was sent. A broken chunk after the headers is never said by aiohttp: the rest is waited for."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(MOST_BYTES):
        body += chunk
        if len(body) > MOST_BYTES:
            raise Refused(413, "tooManyBytes", "the request has more than {most} bytes; send less", most=MOST_BYTES)
    return bytes(body)


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def field(content: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A field of one of the kinds; true and false are no numbers."""
    value = content.get(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise Refused(400, "badField", "`{setting}` is missing or of the wrong kind; see docs/taste.md", setting=name)
    return value
