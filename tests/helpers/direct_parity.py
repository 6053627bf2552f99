"""The same requests twice: once as litellm sends them, and once on the direct lane.

Each way has a server, a Router and ids of deployments of its own, so that neither learns of the
failures of the other. What is compared has no ids, times and ports.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import parallel_core
from parallel_core import RouterParallelResult, classify_failure
from parallel_core.router.answers import PROVIDER_BODY

# Members of the hidden parameters that differ from call to call.
OF_ONE_CALL = ("_response_ms", "litellm_overhead_time_ms", "callback_duration_ms")
# And headers.
OF_ONE_ANSWER = ("date", "llm_provider-date")

# Litellm copies a callback into several of these, and leaves it there.
LISTENERS = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "_async_success_callback",
    "_async_failure_callback",
)

Groups = Mapping[str, Sequence[Mapping[str, Any]]]

_UUID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}(-\d)?")
_PORT = re.compile(r"(127\.0\.0\.1|localhost):\d+")
_TIME_TAKEN = re.compile(rb"time taken=[\d.]+ seconds")
_SECONDS = re.compile(r"\d+\.\d+")
_CREATED = re.compile(r'"created": \d+')
_ADDRESS = re.compile(r"0x[0-9a-f]+")


@dataclass
class Way:
    """What has become of some requests that were sent in one way.

    Attributes:
        outcomes: what a user sees of each result (:func:`outcome_of`).
        direct_calls, indirect_calls, differences: as the batch counts them.
    """

    outcomes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    direct_calls: int = 0
    indirect_calls: Counter[str] = field(default_factory=Counter[str])
    differences: Counter[str] = field(default_factory=Counter[str])


def router_of(url: str, groups: Groups, **settings: Any) -> Any:
    """A litellm Router with deployments of a server, and with litellm's retries and cooldowns.

    ``groups`` has the parameters of the deployments of each model name.
    """
    from litellm import Router

    own = uuid.uuid4()
    return Router(
        model_list=[
            {
                "model_name": name,
                "litellm_params": {"api_base": url, "api_key": f"sk-{number}", **parameters},
                "model_info": {"id": f"{name}/{own}-{number}"},
            }
            for name, deployments in groups.items()
            for number, parameters in enumerate(deployments)
        ],
        **settings,
    )


async def send(router: Any, requests: Any, direct: Any, **options: Any) -> Way:
    """Send requests and note what has become of them."""
    way = Way()
    options = {"concurrency": 1, "preserve_order": True, **options}
    async with parallel_core.iter_parallel_acompletions(
        router, requests, direct=direct, **options
    ) as batch:
        async for result in batch:
            way.outcomes.append(outcome_of(result))
        way.direct_calls = batch.direct_calls
        way.indirect_calls = Counter(batch.indirect_calls)
        way.differences = Counter(batch.direct_differences)
    return way


def outcome_of(result: RouterParallelResult) -> dict[str, Any]:
    """What a user sees of a result, without what differs from call to call anyway."""
    if result.exception is not None:
        return failure_of(result.exception)
    response: Any = result.response
    hidden = {
        name: value for name, value in response._hidden_params.items() if name != PROVIDER_BODY
    }
    types = {name: type(hidden.pop(name, None)) for name in OF_ONE_CALL}
    assert hidden.pop("litellm_call_id", "")
    assert response._response_ms > 0
    for headers in (hidden.get("headers"), hidden.get("additional_headers")):
        for name in OF_ONE_ANSWER:
            if headers is not None:
                headers.pop(name, None)
    outcome: dict[str, Any] = normal(
        {
            "class": type(response),
            "response": response.model_dump(warnings=False),
            "set": sorted(response.model_fields_set),
            # With the order of the members.
            "json": json.dumps(response.model_dump(exclude_unset=True, warnings=False)),
            "hidden": hidden,
            "types": types,
        }
    )
    return outcome


def failure_of(error: BaseException) -> dict[str, Any]:
    """What a user sees of a failure."""
    failure = classify_failure(error) if isinstance(error, Exception) else None
    shown: dict[str, Any] = {
        "class": type(error),
        # litellm quotes objects in some messages, with what differs from call to call.
        "message": str(error).split("received_args=")[0],
        "kind": failure and failure.kind,
        "retry_after": failure and failure.retry_after,
        "notes": getattr(error, "__notes__", []),
    }
    for name in ("status_code", "model", "llm_provider", "code", "type", "body", "num_retries"):
        shown[name] = getattr(error, name, None)
    for name in ("litellm_response_headers", "headers"):
        headers: Any = getattr(error, name, None)
        # The body is compared by itself. Its length depends on the times that it quotes.
        shown[name] = headers and {
            key: headers[key] for key in headers if key.lower() not in ("date", "content-length")
        }
    response: Any = getattr(error, "response", None)
    shown["response"] = response is not None and (
        response.status_code,
        _TIME_TAKEN.sub(b"", response.content),  # of litellm's proxy, which quotes its own litellm
    )
    shown["cause"] = type(error.__cause__)
    outcome: dict[str, Any] = normal(shown)
    return outcome


def normal(value: Any) -> Any:
    """Replace ids, times and ports."""
    if isinstance(value, str):
        value = _UUID.sub("ID", value)
        value = _PORT.sub("HOST", value)
        return _ADDRESS.sub("ADDRESS", _CREATED.sub('"created": 0', value))
    if isinstance(value, Mapping):
        return {
            normal(key): 0 if key == "created" else normal(member) for key, member in value.items()
        }
    if isinstance(value, list | tuple):
        return [normal(member) for member in value]
    return value


def without_seconds(text: str) -> str:
    """Replace durations in a message."""
    return _SECONDS.sub("SECONDS", text)


def unlike(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The members in which two outcomes differ, by their paths."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        is_alike = one == other or (one != one and other != other)  # NaN
        return {} if is_alike else {path: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(one.keys() | other.keys()):
        found |= unlike(one.get(name, "missing"), other.get(name, "missing"), f"{path}/{name}")
    return found
