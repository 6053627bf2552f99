"""Inspect an answer: its choices, their finish reasons, and choices without text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

import msgspec

from parallel_core.control import BatchMeter, Call
from parallel_core.errors import EmptyResponseError, text_of
from parallel_core.failures import WITHOUT_CHOICES
from parallel_core.types import RouterParallelRequest, StreamedResponse

CUT, FILTERED = "length", "content_filter"
# Finish reasons from worst to best. Any other reason ranks between the two groups.
_WORST = (FILTERED, CUT)
_USUAL = ("tool_calls", "function_call", "stop")
_LONGEST_REASON = 64  # characters: providers can send any text
MOST_REASONS = 32
OTHER_REASONS = "another reason"
# Fields that a message may have instead of text.
_INSTEAD_OF_TEXT = ("tool_calls", "function_call", "refusal", "audio", "images")
# Reasons for which OpenAI's responses are incomplete, by the finish reason of a chat.
_INCOMPLETE = {"max_output_tokens": CUT, "content_filter": FILTERED}
_TEXT_PARTS = ("text", "refusal")
_MISSING = object()

PROVIDER_BODY = "parallel_core_body"
"""Hidden parameter of an answer on the direct lane: the provider's JSON, as bytes."""

_decode: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode


def read_provider_json(content: bytes) -> Any:
    """Return what ``json.loads`` returns, sooner.

    msgspec returns the same values. It refuses some documents that ``json`` accepts: NaN, infinite
    numbers, lone surrogates (half a UTF-16 pair), other encodings than UTF-8.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return _decode(content)
    except (ValueError, RecursionError):
        return json.loads(content)


class Finish(NamedTuple):
    """End of an answer.

    Attributes:
        reason: the finish reason. If there are several choices, it is the worst one:
            ``content_filter``, then ``length``, then any other except ``tool_calls`` and ``stop``.
            None if there is none.
        without_text: True if a choice has no text and nothing instead of it: no tool call, no
            refusal, no audio, no image.
    """

    reason: str | None
    without_text: bool


def finish_of(response: Any) -> Finish:
    """Return how an answer ended: an object of litellm, or a mapping of that shape.

    A response of OpenAI's responses API gets the finish reason that a chat would have. An answer
    that has no text, such as an embedding, has none.
    """
    found = _field(response, "choices")
    if found.__class__ is not list:
        return _finish_of_output(response)
    choices: list[Any] = found
    reasons = [
        reason[:_LONGEST_REASON]
        for choice in choices
        if isinstance(reason := _field(choice, "finish_reason"), str) and reason
    ]
    without_text = any(map(_has_no_text, choices))
    return Finish(min(reasons, key=_badness, default=None), without_text)


def _finish_of_output(response: Any) -> Finish:
    """Return how a response of the responses API ended; no reason if it is none."""
    output, status = _field(response, "output"), _field(response, "status")
    if output.__class__ is not list or not isinstance(status, str):
        return Finish(None, False)
    reason = "stop" if status == "completed" else status
    why = _field(_field(response, "incomplete_details"), "reason")
    if isinstance(why, str):
        reason = _INCOMPLETE.get(why, why)
    items: list[Any] = output
    return Finish(reason[:_LONGEST_REASON], not any(map(_says_something, items)))


def _says_something(item: Any) -> bool:
    """Return True if an item of a response is a text, or something else than a reasoning."""
    kind = _field(item, "type")
    if kind != "message":
        return bool(kind != "reasoning")
    content = _field(item, "content")
    parts: list[Any] = content if content.__class__ is list else []
    return any(_field(part, name) for part in parts for name in _TEXT_PARTS)


def add_finish(reasons: Counter[str], reason: str | None) -> None:
    """Count a finish reason.

    Providers invent reasons. After 32 different ones, new reasons are counted as `OTHER_REASONS`.
    """
    if reason is not None:
        is_known = reason in reasons or len(reasons) < MOST_REASONS
        reasons[reason if is_known else OTHER_REASONS] += 1


def describe_finishes(reasons: Mapping[str, int], without_text: int) -> str:
    """Describe the answers that did not end as usual; empty if there are none.

    Args:
        reasons: number of answers by finish reason.
        without_text: number of answers without any text.
    """
    others = {
        reason: count
        for reason, count in reasons.items()
        if reason not in _WORST and reason not in _USUAL
    }
    counts = [
        (reasons.get(CUT, 0), "cut at max_tokens"),
        (reasons.get(FILTERED, 0), "filtered"),
        *((count, f"ended with {reason}") for reason, count in others.items()),
        (without_text, "without text"),
    ]
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


def require_choices(call: Call, meter: BatchMeter) -> Call:
    """Wrap a Router's call: it raises ``EmptyResponseError`` if its answer has no choices."""

    async def answered(index: int, request: RouterParallelRequest) -> Any:
        try:
            value = await call(index, request)
        except Exception as error:
            if any(text in text_of(error) for text in WITHOUT_CHOICES):
                raise EmptyResponseError(index, request.model) from error
            raise
        response = value.response if type(value) is StreamedResponse else value
        choices = _field(response, "choices", _MISSING)
        if choices is None or (choices.__class__ is list and not choices):
            raise _empty(index, request, value, meter)
        return value

    return answered


def _empty(
    index: int, request: RouterParallelRequest, value: Any, meter: BatchMeter
) -> EmptyResponseError:
    try:
        return EmptyResponseError(index, request.model, meter.usage_of(request, value))
    except Exception as problem:  # noqa: BLE001 - from a user's meter, which may need a choice
        error = EmptyResponseError(index, request.model)
        error.__cause__ = problem
        return error


def _badness(reason: str) -> int:
    for group, offset in ((_WORST, 0), (_USUAL, len(_WORST) + 1)):
        if reason in group:
            return offset + group.index(reason)
    return len(_WORST)


def _has_no_text(choice: Any) -> bool:
    message = _field(choice, "message", _MISSING)
    if message is _MISSING:  # a text completion
        text = _field(choice, "text", _MISSING)
        return text is None or (isinstance(text, str) and not text.strip())
    content = _field(message, "content")
    if content.strip() if isinstance(content, str) else content:
        return False
    if any(_field(message, name) for name in _INSTEAD_OF_TEXT):
        return False
    # Older versions of litellm put the refusal here.
    return not _field(_field(message, "provider_specific_fields"), "refusal")


def _field(value: Any, name: str, missing: Any = None) -> Any:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(name, missing)
    return getattr(value, name, missing)
