"""Answers of one structure that litellm prices or reads in different ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from helpers.recording_provider import Canned, completion


def _tokens(prompt: int, answer: int, **members: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return completion(usage={**usage, **members})


def _details(cached: int, reasoning: int) -> dict[str, Any]:
    return _tokens(
        1000,
        10,
        prompt_tokens_details={"cached_tokens": cached},
        completion_tokens_details={"reasoning_tokens": reasoning},
    )


def _text(content: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return completion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])


_SEQUENCES: Final[Mapping[str, list[dict[str, Any]]]] = {
    "no tokens at first": [_tokens(0, 0), _tokens(5, 7), _tokens(9, 0), _tokens(50, 7)],
    "no answer at first": [_tokens(9, 0), _tokens(5, 7), _tokens(50, 7)],
    "details": [_details(0, 0), _details(900, 0), _details(0, 5), _details(1000, 5)],
    "many": [_tokens(count, count) for count in (10, 100_000, 130_000, 250_000)],
    "tiers": [completion(service_tier=tier) for tier in ("default", "flex", "priority", "odd")] * 2,
    "models": [
        completion(model=model)
        for model in ("gpt-4o-mini-2024-07-18", "gpt-4o", "odd", "openai/gpt-5-mini")
    ]
    * 2,
    "thoughts": [_text("a"), _text("<think>hm</think>a"), _text("<thinking>hm</thinking>a")],
    "costs": [_tokens(5, 7, cost=cost) for cost in (0.5, 0.25, 0.0)],
}
SEQUENCES: Final[Mapping[str, Canned]] = {
    f"{name} {number}": Canned(answer)
    for name, answers in _SEQUENCES.items()
    for number, answer in enumerate(answers)
}
"""Each answer, by its name: they are to be asked for in this order, in a batch for each name."""


def names() -> list[str]:
    return list(_SEQUENCES)


def of_sequence(name: str) -> list[str]:
    return [each for each in SEQUENCES if each.rpartition(" ")[0] == name]
