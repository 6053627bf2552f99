"""What the report of a run consists of."""

from __future__ import annotations

import msgspec

# A time longer than this without a call in flight lies between two runs: it is not counted.
LONGEST_GAP = 60.0  # seconds


class ReportError(ValueError):
    """There is nothing to report of: a file cannot be read, or is not the output of a run.

    Raised by :func:`parallel_core.report.summarize`; the command ``parallel-core report`` prints it
    and ends with exit code 2. The text names the file, and the line as far as it is one.
    """


class Percentiles(msgspec.Struct, frozen=True):
    """How long something took.

    Attributes:
        count: of what was measured.
        p50, p95, p99, maximum: seconds; between two measured values they are interpolated.
    """

    count: int
    p50: float
    p95: float
    p99: float
    maximum: float


class FailureReport(msgspec.Struct, frozen=True):
    """Requests that failed in the same way.

    Attributes:
        kind: as in ``ModelReport.failures``.
        requests: how many there are.
        message: what the first of them said, without contents of requests; empty where nobody wrote
            it down (results of others, and of earlier versions).
        custom_ids: of some of them, at most three.
    """

    kind: str
    requests: int
    message: str
    custom_ids: list[str]


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one model has done, or all of them.

    A request that was tried again in a later run is one request and several calls: the last of them
    tells how it ended, and all of them took tokens and money.

    Attributes:
        model: its name; empty for all of them together.
        requests: different ids.
        ok: requests that have an answer.
        failed: requests that have none.
        failures: failed requests by kind, the most frequent first, with the status code of HTTP in
            brackets where there is one. Where no kind was recorded, it is the class of the
            exception, or the code of the error.
        finish_reasons: requests with an answer by finish reason, the most frequent first, as far as
            it is known. An answer with several choices counts once, by the worst of them.
        without_text: requests with an answer that has a choice without text, and nothing in place
            of it.
        calls: calls whose time was measured; 0 where there are no statistics of them.
        attempts: calls to a provider that these took: what the batch and the Router sent again is
            among them.
        calls_per_second: calls for each second of the run's active time; None where there is none.
        latency: of the calls with an answer; None where nothing was measured.
        first_chunk: seconds to the first chunk of the streamed calls; None where nothing streamed.
        prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens: as in ``Usage``.
        estimated_calls: calls whose tokens are estimated.
        cost: USD, of those calls whose price is known.
        unpriced_calls: calls whose price is unknown; ``cost`` is without them.
    """

    model: str
    requests: int
    ok: int
    failed: int
    failures: dict[str, int]
    finish_reasons: dict[str, int]
    without_text: int
    calls: int
    attempts: int
    calls_per_second: float | None
    latency: Percentiles | None
    first_chunk: Percentiles | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    estimated_calls: int
    cost: float
    unpriced_calls: int


class LimitReport(msgspec.Struct, frozen=True):
    """The limit of calls in flight, over the active time of a run.

    Attributes:
        minimum, median, maximum: calls in flight at most; half of the active time the limit was at
            most the median.
        changes: how often it has changed, beginnings of runs not counted.
    """

    minimum: int
    median: int
    maximum: int
    changes: int


class Pause(msgspec.Struct, frozen=True):
    """A time without any call in flight, longer than a minute: between a run and its next part.

    Attributes:
        at: where it is in the active time, in seconds.
        seconds: how long it was.
    """

    at: float
    seconds: float


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The course of a run, in equal parts of its active time.

    Attributes:
        step: seconds that a part is long.
        ended: calls that ended in each part.
        in_flight: calls in flight in each part, on average.
        limit: the limit in each part, on average; None before the first one known.
        errors: calls that failed in each part, by kind.
        cost: USD that have been spent up to the end of each part.
        pauses: times that were left out.
    """

    step: float
    ended: list[int]
    in_flight: list[float]
    limit: list[float | None]
    errors: dict[str, list[int]]
    cost: list[float]
    pauses: list[Pause]


class Histogram(msgspec.Struct, frozen=True):
    """How many calls took how long.

    Attributes:
        edges: seconds; each is the same multiple of the one before. One more than there are counts.
        ok: calls with an answer, between each edge and the next.
        failed: calls without.
    """

    edges: list[float]
    ok: list[int]
    failed: list[int]


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has done so far, with all of its parts.

    Attributes:
        name: of the output file.
        started_at: when the first call began, in seconds since the epoch; None if not known.
        ended_at: when the last call ended.
        active_seconds: the time between, without gaps of more than a minute in which no call was in
            flight.
        peak_in_flight: calls that were in flight at once, at most.
        total: all models together.
        models: each model, the one with the most requests first.
        failures: failed requests by kind, the most frequent first.
        limit: the limit of calls in flight; None if it was not recorded.
        timeline: the course of the run; None where no time was measured.
        latency: how the times are distributed; None where none was measured.
        notes: what a reader of the numbers should know, one sentence each.
    """

    name: str
    started_at: float | None
    ended_at: float | None
    active_seconds: float
    peak_in_flight: int
    total: ModelReport
    models: list[ModelReport]
    failures: list[FailureReport]
    limit: LimitReport | None
    timeline: Timeline | None
    latency: Histogram | None
    notes: list[str]
