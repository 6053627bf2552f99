"""Requests of the moderations API: check the body of a line."""

from __future__ import annotations

from typing import Any, Final

from parallel_core.types import RouterParallelRequest

from . import bodies
from .endpoint import Endpoint

_OPERATION: Final = "amoderation"
_PATH: Final = "/moderations"
_as_request = bodies.builder(_OPERATION, "input")


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    bodies.check_model(body)
    bodies.check_texts("input", body["input"], objects=True)
    bodies.refuse_what_is_not_sent(body, _OPERATION, _PATH)
    return _as_request(line, body)


def _of_text(model: str, text: str) -> RouterParallelRequest:
    return RouterParallelRequest(model, (), {"input": text}, None, _OPERATION)


MODERATIONS: Final = Endpoint(
    name="moderations",
    operation=_OPERATION,
    paths=(_PATH,),
    refuse_other_shapes=bodies.required("input", '"input": "a text", or an array of texts'),
    request_of=_request_of,
    as_request=_as_request,
    of_text=_of_text,
    fixed=frozenset(("model", "input")),
)
