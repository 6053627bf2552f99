"""An endpoint of providers, as the lines of a file may ask for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from parallel_core.types import RouterParallelRequest

EndpointName: TypeAlias = Literal[
    "chat", "responses", "embeddings", "completions", "moderations", "rerank"
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint.

    Attributes:
        name: its name in ``--endpoint`` and in summaries.
        operation: the method of a Router that serves it.
        paths: endings of the ``url`` of its lines, in lower case.
        refuse_other_shapes: refuses a body without its required members, before other members are
            checked. Raises LineError.
        request_of: returns the request of a body, checked, given the number of its line. Raises
            LineError.
        as_request: returns the request of a body that was checked before. Raises
            InvalidRequestError.
        of_text: returns the request of a model and one text; None if a text is not enough.
        fixed: members that ``extra_body`` must not replace, because they are checked, or used to
            estimate the cost of a request.
    """

    name: EndpointName
    operation: str
    paths: tuple[str, ...]
    refuse_other_shapes: Callable[[dict[str, Any]], None]
    request_of: Callable[[int, dict[str, Any]], RouterParallelRequest]
    as_request: Callable[[int, dict[str, Any]], RouterParallelRequest]
    of_text: Callable[[str, str], RouterParallelRequest] | None
    fixed: frozenset[str]
