"""Requests of the completions API, the one before chat: check the body of a line."""

from __future__ import annotations

from typing import Any, Final

from parallel_core.files.input_records import LineError
from parallel_core.types import RouterParallelRequest

from . import bodies
from .endpoint import Endpoint

_OPERATION: Final = "atext_completion"
_NUMBERS: Final = (
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logprobs"),
    *("max_tokens",),
)
_as_request = bodies.builder(_OPERATION, "prompt")


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    bodies.check_model(body)
    bodies.check_texts("prompt", body["prompt"], tokens=True)
    bodies.check_numbers(body, _NUMBERS)
    bodies.check_numbers(body, ("n", "best_of"), 1)
    if body.get("stop") is not None:
        bodies.check_texts("stop", body["stop"])
    bodies.refuse_streams(body, "a completion")
    if "messages" in body:
        raise LineError(
            "invalid_request",
            "messages is not a parameter of completions",
            'use the url "/v1/chat/completions" for messages',
        )
    return _as_request(line, body)


def _of_text(model: str, text: str) -> RouterParallelRequest:
    return RouterParallelRequest(model, (), {"prompt": text}, None, _OPERATION)


COMPLETIONS: Final = Endpoint(
    name="completions",
    operation=_OPERATION,
    paths=("/completions",),
    refuse_other_shapes=bodies.required("prompt", '"prompt": "a text"'),
    request_of=_request_of,
    as_request=_as_request,
    of_text=_of_text,
    fixed=frozenset(("model", "prompt", "stream", "n", "best_of", "max_tokens")),
)
