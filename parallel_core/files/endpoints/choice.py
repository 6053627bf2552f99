"""The endpoint of a line: by its url, by the option, or by its members."""

from __future__ import annotations

import functools
from typing import Any, Final, cast

from parallel_core.files.input_records import LineError, kind_of, shown
from parallel_core.files.parameters import parameters_of

from .chat_completions import CHAT_COMPLETIONS
from .completions import COMPLETIONS
from .embeddings import EMBEDDINGS
from .endpoint import Endpoint, EndpointName
from .moderations import MODERATIONS
from .rerank import RERANK
from .responses import RESPONSES

ENDPOINTS: Final[dict[EndpointName, Endpoint]] = {
    endpoint.name: endpoint
    for endpoint in (CHAT_COMPLETIONS, RESPONSES, EMBEDDINGS, COMPLETIONS, MODERATIONS, RERANK)
}
_URLS: Final = (
    '"/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions", '
    '"/v1/moderations" and "/v1/rerank"'
)


def endpoint_named(name: str) -> Endpoint:
    """Return the endpoint of a name.

    Raises:
        ValueError: there is no such endpoint. The message lists those that there are.
    """
    found = ENDPOINTS.get(cast("EndpointName", name))
    if found is None:
        raise ValueError(f"endpoint must be one of {', '.join(ENDPOINTS)}, not {name!r}")
    return found


def endpoint_of_operation(operation: str) -> Endpoint:
    """Return the endpoint that a method of a Router serves."""
    return next(one for one in ENDPOINTS.values() if one.operation == operation)


@functools.lru_cache(maxsize=1024)
def endpoint_of_url(url: str) -> Endpoint | None:
    """Return the endpoint of a url, or of a path; None if it is unknown."""
    path = url.lower().rstrip("/")
    # "/chat/completions" also ends like the path of completions.
    fitting = [
        (len(ending), endpoint)
        for endpoint in ENDPOINTS.values()
        for ending in endpoint.paths
        if path.endswith(ending)
    ]
    return max(fitting, key=lambda one: one[0])[1] if fitting else None


def endpoint_of_line(
    record: dict[str, Any], body: dict[str, Any], chosen: Endpoint | None
) -> Endpoint:
    """Return the endpoint of a line.

    Args:
        record: the line.
        body: its body; the line itself, if it has none.
        chosen: the endpoint of lines without a url; None: their members say it.

    Raises:
        LineError: the url is unknown, or the members fit several endpoints.
    """
    if body is not record and "url" in record:
        url = record["url"]
        found = endpoint_of_url(url) if type(url) is str else None
        if found is None:
            raise LineError(
                "unsupported_url",
                f"url {shown(url)} is not one of those that can be sent"
                if type(url) is str
                else f"url must be a string, not {kind_of(url)}",
                f"these can be sent: {_URLS}",
            )
        return found
    return chosen or endpoint_of_members(body)


def endpoint_of_members(body: dict[str, Any]) -> Endpoint:
    """Return the endpoint that the members of a body say.

    An ``input`` is that of embeddings, the usual bulk job, if nothing else speaks for responses. A
    moderation looks the same, and needs its url or the option.

    Raises:
        LineError: they fit several endpoints.
    """
    if "messages" in body:
        return CHAT_COMPLETIONS
    fitting: list[Endpoint] = []
    if "input" in body:
        fitting.append(EMBEDDINGS)
        if _speaks_for_responses(body):
            fitting.append(RESPONSES)
    if "prompt" in body:
        fitting.append(COMPLETIONS)
    if "query" in body and "documents" in body:
        fitting.append(RERANK)
    if len(fitting) > 1:
        names = [endpoint.name for endpoint in fitting]
        raise LineError(
            "ambiguous_endpoint",
            f"the members of the line fit {' and '.join(names)}",
            f"give --endpoint {names[0]}, or the name of another endpoint",
        )
    return fitting[0] if fitting else CHAT_COMPLETIONS


def _speaks_for_responses(body: dict[str, Any]) -> bool:
    given = body["input"]
    if type(given) is list and any(type(item) is dict for item in cast("list[object]", given)):
        return True
    return not _parameters_of_responses_alone().isdisjoint(body)


@functools.cache
def _parameters_of_responses_alone() -> frozenset[str]:
    others = parameters_of(EMBEDDINGS.operation) | {"metadata", "prompt"}
    return parameters_of(RESPONSES.operation) - others
