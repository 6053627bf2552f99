"""Statistics of a run: one line per call, in a separate file.

The output file has the format of OpenAI's Batch API, which has no fields for latency, attempts or
cost. They are in the statistics file beside it (``RunPaths.statistics``), which
``parallel-core report`` reads. Its lines are objects with a ``kind``; a reader ignores unknown
kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from .json_lines import json_line, read_json_line


class CallStatistics(
    msgspec.Struct, frozen=True, tag="call", tag_field="kind", omit_defaults=True, kw_only=True
):
    """Statistics of one call of a run.

    Attributes:
        custom_id: id of the request.
        model: model that the request asked for.
        started_at: seconds since the epoch.
        duration: seconds, including the Router's retries and fallbacks.
        ok: True if there is an answer.
        status_code: HTTP status, if there was one.
        error: name of the exception's class; None if ``ok``.
        failure_kind: kind of the failure (``docs/failures.md``); None if ``ok``, and in files of
            earlier versions.
        message: why it failed, without keys and without contents of the request. Only the first
            failure of each kind and status in a run has one.
        attempts: number of calls to a provider that this one took, as far as the Router reports it.
        time_to_first_chunk: seconds; only for a streamed call.
        prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens: as in ``Usage``.
        estimated: True if the tokens are estimated.
        cost: USD; None if the price is unknown.
        finish_reason: finish reason of the answer; with several choices the worst one
            (``content_filter``, then ``length``); None if unknown, as in files of earlier versions.
        without_text: True if a choice has no text, and nothing in place of it.
    """

    custom_id: str
    model: str
    started_at: float
    duration: float
    ok: bool
    status_code: int | None = None
    error: str | None = None
    failure_kind: str | None = None
    message: str | None = None
    attempts: int = 1
    time_to_first_chunk: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost: float | None = None
    finish_reason: str | None = None
    without_text: bool = False


class LimitStatistics(msgspec.Struct, frozen=True, tag="limit", tag_field="kind", kw_only=True):
    """The limit of calls in flight, from a given time on.

    Attributes:
        at: seconds since the epoch.
        limit: maximum number of calls in flight.
        reason: why it changed; empty at the beginning of a run.
    """

    at: float
    limit: int
    reason: str = ""


RunStatistics: TypeAlias = CallStatistics | LimitStatistics

_DECODER = msgspec.json.Decoder(RunStatistics)


def statistics_line(record: RunStatistics) -> bytes:
    """Return a line of the statistics file, without the newline."""
    return json_line(record)


def read_statistics(path: Path) -> Iterator[RunStatistics]:
    """Read the records of a statistics file, in file order.

    Lines that are torn (after a loss of power), of an unknown kind or not JSON are skipped: the
    file is a by-product, and no answer depends on it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield read_json_line(_DECODER.decode, line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
