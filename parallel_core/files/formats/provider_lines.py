"""Batch lines of providers whose requests are no chat completions: which they are."""

from __future__ import annotations

from typing import Any, Final

from parallel_core.files.input_records import missing

from .anthropic_lines import chat_of_anthropic
from .batch_lines import NOT_GIVEN
from .gemini_lines import chat_of_gemini

# A line with one of these is of OpenAI's kind, whatever it has besides.
_OF_OPENAI: Final = frozenset(("body", "messages", "url", "method", "input", "prompt"))


def translated_body(record: dict[str, Any], custom_id: object) -> dict[str, Any] | None:
    """Return the body of a line of Anthropic or Gemini as one of chat completions.

    Args:
        record: the line, without its id.
        custom_id: its id; ``NOT_GIVEN`` if it has none.

    Returns:
        A new object; None if the line is of another kind.

    Raises:
        LineError: the line is invalid, or chat completions cannot express a part of it.
    """
    if is_anthropic_line(record):
        if custom_id is NOT_GIVEN:
            raise missing("custom_id", "give each line a different custom_id")
        return chat_of_anthropic(record["params"])
    if is_gemini_line(record):
        return chat_of_gemini(record["request"], record.get("model"))
    return None


def is_anthropic_line(record: dict[str, Any]) -> bool:
    """Return True if a line is of Anthropic's batches."""
    return "params" in record and not _is_of_openai(record)


def is_gemini_line(record: dict[str, Any]) -> bool:
    """Return True if a line is of Gemini's batches."""
    return "request" in record and not _is_of_openai(record)


def _is_of_openai(record: dict[str, Any]) -> bool:
    return not _OF_OPENAI.isdisjoint(record)
