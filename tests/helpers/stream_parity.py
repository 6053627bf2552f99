"""The same streams twice: as litellm reads them, and on the direct lane."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import parallel_core
from helpers.direct_parity import OF_ONE_ANSWER, Way, normal, outcome_of, router_of, unlike
from helpers.recording_provider import Canned, by_last_message, recording_provider
from parallel_core import RouterParallelResult, StreamEnd


def chunk_of(piece: Any) -> dict[str, Any]:
    """What a user sees of a chunk."""
    chunk = piece.chunk
    hidden = {**chunk._hidden_params}
    assert hidden.pop("created_at") > 0
    hidden["additional_headers"] = {
        name: value
        for name, value in hidden["additional_headers"].items()
        if name not in OF_ONE_ANSWER
    }
    return {
        "text": piece.text,
        "choice": piece.choice,
        "class": type(chunk),
        "dump": normal(chunk.model_dump(warnings=False)),
        # With the order of the members.
        "json": json.dumps(normal(chunk.model_dump(exclude_unset=True, warnings=False))),
        "hidden": normal(hidden),
    }


async def read(
    bodies: Mapping[str, bytes],
    direct: Any,
    *,
    model: str = "openai/fast",
    content_type: str = "text/event-stream",
    then: Callable[[Any], object] | None = None,
    **options: Any,
) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any], Way]]:
    """Read each stream in a batch of its own. Return its chunks, its result and the counts.

    ``then`` is called with each chunk after it was noted.
    """
    headers = [("Content-Type", content_type)]
    answers = {name: Canned(one, 200, headers) for name, one in bodies.items()}
    seen: dict[str, tuple[list[dict[str, Any]], dict[str, Any], Way]] = {}
    with recording_provider(by_last_message(answers)) as provider:
        settings = {"num_retries": 0, "disable_cooldowns": True}
        router = router_of(provider.url, {"group": [{"model": model}]}, **settings)
        for name in bodies:
            chunks: list[dict[str, Any]] = []
            outcome: dict[str, Any] = {}
            request = {"model": "group", "messages": [{"role": "user", "content": name}]}
            async with parallel_core.iter_parallel_streams(
                router, [request], concurrency=1, direct=direct, retry=None, **options
            ) as batch:
                async for piece in batch:
                    if isinstance(piece, StreamEnd):
                        outcome = outcome_of_stream(piece.result)
                    else:
                        chunks.append(chunk_of(piece))
                        if then is not None:
                            then(piece.chunk)
                way = Way([], batch.direct_calls, Counter(batch.indirect_calls))
                way.differences = Counter(batch.direct_differences)
            seen[name] = chunks, outcome, way
    return seen


def outcome_of_stream(result: RouterParallelResult) -> dict[str, Any]:
    if result.exception is not None:
        return outcome_of(result)
    response: Any = result.response
    outcome: dict[str, Any] = normal(
        {"response": response.model_dump(warnings=False), "usage": result.usage}
    )
    return outcome


def differences(plain: Any, ours: Any) -> dict[Any, Any]:
    """What differs in two streams: by the number of the chunk, and in the result."""
    pairs = enumerate(zip(plain[0], ours[0], strict=False))
    found: dict[Any, Any] = {number: unlike(one, other) for number, (one, other) in pairs}
    found["result"] = unlike(plain[1], ours[1])
    found["chunks"] = len(plain[0]) != len(ours[0]) and (len(plain[0]), len(ours[0]))
    return {name: difference for name, difference in found.items() if difference}
