"""Requests to the routes of rating, down to the header; and graphs that draw candidates without a model."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

TAB = "0123456789abcdef"
PROMPTS = ["a cat", "a dog", "a fish"]
TRACES = ("Traceback", "site-packages", 'File "', ".py")


def graph(index: int, dataset: str = "my taste", size: int = 64, batch: int = 1) -> dict[str, dict]:
    """A picture of one colour, a candidate for the prompt of an index; the colour is the index's own."""
    return {
        "1": {"class_type": "CHATSPromptLines", "inputs": {"text": "\n".join(PROMPTS), "index": index}},
        "2": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": batch, "color": 7919 * 33 * (index + 1) % 2**24},
        },
        "3": {
            "class_type": "CHATSSaveCandidates",
            "inputs": {"images": ["2", 0], "prompt": ["1", 0], "dataset": dataset},
        },
    }


@dataclass
class Answer:
    status: int
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    def assert_a_sentence(self, *statuses: int) -> str:
        """The error of a request that is refused: of one of the statuses, and one sentence."""
        assert self.status in statuses, (self.status, self.body[:500])
        sentence = self.content["error"]
        assert set(self.content) == {"error", "key", "values"}
        assert 10 < len(sentence) < 500
        assert "\n" not in sentence
        self.assert_no_traceback()
        return sentence

    def assert_no_traceback(self) -> None:
        assert not [trace for trace in TRACES if trace in self.body.decode("utf-8", "replace")], self.body[:500]


class Client:
    """One that sends what it is told, letter by letter."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port, self.headers = port, headers

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Answer:
        """A request; `content_type` becomes Content-Type, and None leaves a header out."""
        stated = {"host": f"127.0.0.1:{self.port}", **self.headers, **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in stated.items():
                if value is not None:
                    connection.putheader(name.replace("_", "-").title(), value)
            if body is not None and not {"transfer_encoding", "content_length"} & stated.keys():
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.send("GET", path, **headers)

    def post(self, path: str, content: object, **headers: str | None) -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.send("POST", path, body, **{"content_type": "application/json", **headers})
