"""A Router that answers in virtual time."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import trio

Answer = Callable[[str, int], Exception | None]


class StatusError(Exception):
    """An answer of HTTP, as litellm raises it."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.body = {"error": {"message": "no", "code": None}}
        self.litellm_response_headers = {
            "server": "test",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }


class CoolingDownError(ValueError):
    """Named as the Router's own."""

    cooldown_time = 5.0


CoolingDownError.__name__ = "RouterRateLimitError"


class FakeRouter:
    """Answers after a second, or raises what ``answer`` gives for a model and an attempt number."""

    def __init__(self, answer: Answer, seconds: float = 1.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.sent = list[tuple[float, str]]()
        self.of_text = Counter[str]()
        self.in_flight = 0
        self.most_in_flight = 0

    async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        text = messages[0]["content"]
        self.of_text[text] += 1
        self.sent.append((trio.current_time(), model))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            error = self.answer(model, self.of_text[text])
            if error is None:
                await anyio.sleep(self.seconds)
                return {"choices": [{"message": {"content": text}}]}
            await anyio.sleep(0.01)
            raise error
        finally:
            self.in_flight -= 1


def requests(number: int, *models: str) -> Iterator[dict[str, Any]]:
    models = models or ("m",)
    for n in range(number):
        message = {"role": "user", "content": f"{models[n % len(models)]} {n}"}
        yield {"model": models[n % len(models)], "messages": [message]}
