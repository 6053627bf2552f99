"""Requests of the embeddings API: check the body of a line."""

from __future__ import annotations

from typing import Any, Final

from parallel_core.files.input_records import LineError
from parallel_core.types import RouterParallelRequest

from . import bodies
from .endpoint import Endpoint

_OPERATION: Final = "aembedding"
_as_request = bodies.builder(_OPERATION, "input")


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    bodies.check_model(body)
    bodies.refuse_streams(body, "an embedding")
    bodies.check_texts("input", body["input"], tokens=True, objects=True)
    bodies.check_numbers(body, ("dimensions",), 1)
    bodies.check_kinds(body, "encoding_format", (str,), 'a string: "float" or "base64"')
    if "messages" in body:
        raise LineError(
            "invalid_request",
            "messages is not a parameter of embeddings that litellm sends",
            "write the text as input",
        )
    return _as_request(line, body)


def _of_text(model: str, text: str) -> RouterParallelRequest:
    return RouterParallelRequest(model, (), {"input": text}, None, _OPERATION)


EMBEDDINGS: Final = Endpoint(
    name="embeddings",
    operation=_OPERATION,
    paths=("/embeddings",),
    refuse_other_shapes=bodies.required("input", '"input": "a text", or an array of texts'),
    request_of=_request_of,
    as_request=_as_request,
    of_text=_of_text,
    fixed=frozenset(("model", "input")),
)
