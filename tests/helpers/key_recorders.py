"""Providers that keep the keys that they were sent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

OPENAI_KEY = "sk-openai-0123456789"
ANTHROPIC_KEY = "sk-ant-0123456789"
GROQ_KEY = "gsk-groq-0123456789"


class Sent(NamedTuple):
    """A request as it arrived."""

    path: str
    model: str
    keys: set[str]
    body: dict[str, Any]


class Recorder:
    """A provider that keeps what it was sent, and speaks as OpenAI's, Anthropic's, Gemini's API."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = (self.headers.get("Authorization", ""), self.headers.get("x-api-key", ""))
                keys = {text.removeprefix("Bearer ") for text in headers if text}
                model = body.get("model", "")  # Gemini's API has it in the path
                recorder.sent.append(Sent(self.path, model, keys, body))
                answer = json.dumps(_answer(self.path, model)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _answer(path: str, model: str) -> dict[str, Any]:
    if path.endswith("/messages"):
        return {
            "id": "1", "type": "message", "role": "assistant", "model": model,
            "content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }  # fmt: skip
    if path.endswith(":generateContent"):
        content = {"role": "model", "parts": [{"text": "yes"}]}
        return {
            "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {
                "promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2,
            },
        }  # fmt: skip
    message = {"role": "assistant", "content": "yes"}
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": model,
        "service_tier": "default",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip
