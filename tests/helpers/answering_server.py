"""A server of odd answers: empty, cut off, filtered, without text."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def choice(content: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **message}
    return {"index": 0, "message": message, "finish_reason": finish_reason}


CHOICES: dict[str, Any] = {
    "empty": [],
    "null": None,
    "none": None,
    "text": [choice("answer")],
    "cut": [choice("ans", "length")],
    "filtered": [choice("", "content_filter")],
    "no text": [choice(None)],
    "thought": [choice("", "length", reasoning_content="hm")],
    "refusal": [choice(None, refusal="no")],
}


class AnsweringServer(http.server.ThreadingHTTPServer):
    """Gives the answer that the last message names.

    Attributes:
        asked: how often each was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = Counter[str]()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: AnsweringServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = request["messages"][-1]["content"]
        self.server.asked[what] += 1
        answer = {"id": "1", "created": 1, "model": "m"}
        if request.get("stream"):
            answer["object"] = "chat.completion.chunk"
            chunks = [{**answer, **chunk} for chunk in _chunks(CHOICES[what] or [])]
            events = [*map(json.dumps, chunks), "[DONE]"]
            body = "".join(f"data: {event}\n\n" for event in events)
            self._send(body.encode(), "text/event-stream")
            return
        fields = {**answer, "object": "chat.completion", "choices": CHOICES[what], "usage": USAGE}
        if what == "none":
            del fields["choices"]
        self._send(json.dumps(fields).encode(), "application/json")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _chunks(choices: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in choices:
        yield {"choices": [{"index": 0, "delta": one["message"], "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": one["finish_reason"]}]}
    yield {"choices": [], "usage": USAGE}


@contextlib.contextmanager
def answering_server() -> Iterator[AnsweringServer]:
    with AnsweringServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
