"""Statistics of a run: one line per call, in a separate file.

Between them are lines of its limit, its waits, its beginning and its end.

The output file has the format of OpenAI's Batch API, which has no fields for latency, attempts or
cost. They are in the statistics file beside it (``RunPaths.statistics``), which
``parallel-core report`` reads. Its lines are objects with a ``kind``; a reader ignores unknown
kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        duration: seconds, as in :class:`RouterParallelResult`.
        ok: True if there is an answer.
        status_code: HTTP status, if there was one.
        error: name of the exception's class; None if ``ok``.
        failure_kind: kind of the failure (see ``docs/failures.md``); None if ``ok``, and in files
            of earlier versions.
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


class WaitStatistics(msgspec.Struct, frozen=True, tag="wait", tag_field="kind", kw_only=True):
    """A time in which no call of a model got through, and its requests waited.

    It has a line when it begins and one when it ends, with the same ``at`` and ``model``. The later
    line replaces the earlier one.

    Attributes:
        at: time of the first of these failures, in seconds since the epoch.
        model: model that the requests ask for; None for requests without one.
        reason: why the last call failed, without keys.
        seconds: how long it lasted; None while it lasts.
    """

    at: float
    model: str | None
    reason: str
    seconds: float | None = None


class BeginStatistics(msgspec.Struct, frozen=True, tag="begin", tag_field="kind", kw_only=True):
    """The beginning of a run, or of its resumption.

    Attributes:
        at: seconds since the epoch.
        total: number of requests in the input.
    """

    at: float
    total: int


class EndStatistics(msgspec.Struct, frozen=True, tag="end", tag_field="kind", kw_only=True):
    """The end of a run. A run that was killed has none.

    Attributes:
        at: seconds since the epoch.
        ending: how it ended, as ``RunSummary.ending``; ``error`` if it raised an exception.
    """

    at: float
    ending: str


RunStatistics: TypeAlias = (
    CallStatistics | LimitStatistics | WaitStatistics | BeginStatistics | EndStatistics
)

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
        yield from read_statistics_lines(lines)


def read_statistics_lines(lines: Iterable[bytes]) -> Iterator[RunStatistics]:
    """Read the records of lines, as :func:`read_statistics` reads those of a file."""
    for line in lines:
        try:
            yield read_json_line(_DECODER.decode, line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
