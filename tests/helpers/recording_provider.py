"""A provider that keeps each request byte for byte, and gives the answer that it names."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias


class Kept(NamedTuple):
    """A request as it came."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Canned:
    """An answer.

    Attributes:
        body: bytes as they are; anything else is sent as JSON.
    """

    body: Any
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Answer: TypeAlias = Callable[[str, Any], Canned]

USAGE: Mapping[str, Any] = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def completion(**members: Any) -> dict[str, Any]:
    """The JSON of an answer."""
    message = {"role": "assistant", "content": "answer"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return {**whole, "choices": [choice], "usage": dict(USAGE), **members}


def by_last_message(answers: Mapping[str, Canned]) -> Answer:
    """Give the answer that the last message names."""

    def answer(path: str, body: Any) -> Canned:
        return answers[body["messages"][-1]["content"]]

    return answer


class RecordingProvider(http.server.ThreadingHTTPServer):
    """Answers what ``answer`` returns for the path and the body of a request.

    Attributes:
        kept: all requests, in the order of their arrival.
    """

    daemon_threads = True

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer or (lambda path, body: Canned(completion()))
        self.kept: list[Kept] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has gone


class _Handler(http.server.BaseHTTPRequestHandler):
    server: RecordingProvider
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # otherwise the body waits until the client has confirmed the headers

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = [pair for pair in self.headers.items() if pair[0].lower() != "host"]
        self.server.kept.append(Kept(self.path, headers, body))
        answer = self.server.answer(self.path, json.loads(body))
        content = answer.content()
        self.send_response(answer.status)
        names = {name.lower() for name, _ in answer.headers}
        if "content-type" not in names:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def recording_provider(
    answer: Answer | None = None,
) -> Iterator[RecordingProvider]:
    with RecordingProvider(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
