"""The server's side of rating: `/chats/datasets`, and each data set's pair, rating and guideline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from server import PromptServer

if TYPE_CHECKING:
    from aiohttp import web

ROUTES = (
    ("get", "/chats/datasets", "list_datasets"),
    ("get", "/chats/{dataset}/pair", "next_pair"),
    ("post", "/chats/{dataset}/rating", "rate"),
    ("post", "/chats/{dataset}/guideline", "write_guideline"),
)


def register() -> None:
    """Adds the routes to ComfyUI's server, where there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    for method, path, name in ROUTES:
        getattr(server.routes, method)(path)(_handler(name))


def _handler(name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The function of :mod:`.answers`, which is loaded with the first request: most sessions rate nothing."""

    async def handle(request: web.Request) -> web.StreamResponse:
        from . import answers

        return await answers.answer(getattr(answers, name), request)

    return handle
