"""Requests of the rerank API of Cohere, Jina, vLLM and others: check the body of a line."""

from __future__ import annotations

from typing import Any, Final

from parallel_core.files.input_records import missing
from parallel_core.types import RouterParallelRequest

from . import bodies
from .endpoint import Endpoint

_OPERATION: Final = "arerank"
_PATH: Final = "/rerank"
_EXAMPLE: Final = 'for instance "query": "a text", "documents": ["one text", "another"]'
_as_request = bodies.builder(_OPERATION, "query", "documents")


def _refuse_other_shapes(body: dict[str, Any]) -> None:
    for name in ("query", "documents"):
        if body.get(name) is None:
            raise missing(name, _EXAMPLE)


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    bodies.check_model(body)
    bodies.check_kinds(body, "query", (str, dict), "a string")
    documents: object = body["documents"]
    if type(documents) is not list:
        raise bodies.wrong_type("documents", "an array of strings", documents)
    bodies.check_texts("documents", body["documents"], objects=True)
    bodies.check_numbers(body, ("top_n",), 1)
    bodies.check_kinds(body, "return_documents", (bool,), "true or false")
    bodies.refuse_what_is_not_sent(body, _OPERATION, _PATH)
    return _as_request(line, body)


RERANK: Final = Endpoint(
    name="rerank",
    operation=_OPERATION,
    paths=(_PATH,),
    refuse_other_shapes=_refuse_other_shapes,
    request_of=_request_of,
    as_request=_as_request,
    of_text=None,
    fixed=frozenset(("model", "query", "documents", "top_n")),
)
