"""Types that make up the report of a run."""

from __future__ import annotations

import msgspec

# A longer time without a call in flight is a pause between two runs, and is not counted.
LONGEST_GAP = 60.0  # seconds


class ReportError(ValueError):
    """A report cannot be made: a file cannot be read, or is not the output of a run.

    Raised by :func:`parallel_core.report.summarize`. The command ``parallel-core report`` prints it
    and exits with code 2. The message names the file, and the line if there is one.
    """


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles of a duration.

    Attributes:
        count: number of measured values.
        p50, p95, p99, maximum: seconds; interpolated between two measured values.
    """

    count: int
    p50: float
    p95: float
    p99: float
    maximum: float


class FailureReport(msgspec.Struct, frozen=True):
    """Requests that failed in the same way.

    Attributes:
        kind: kind, as in ``ModelReport.failures``.
        requests: number of requests.
        message: message of the first failure, without contents of requests; empty if it was not
            recorded (results of other programs and of earlier versions).
        custom_ids: ids of at most three of them.
    """

    kind: str
    requests: int
    message: str
    custom_ids: list[str]


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one model, or of all models.

    A request that was sent again in a later run is one request and several calls. The last call
    decides how the request ended; all calls count for tokens and cost.

    Attributes:
        model: name of the model; empty for the total.
        requests: number of different ids.
        ok: number of requests with an answer.
        failed: number of requests without an answer.
        failures: number of failed requests by kind, the most frequent first, with the HTTP status
            in brackets if there is one. If no kind was recorded, it is the class of the exception
            or the code of the error.
        finish_reasons: number of requests with an answer by finish reason, the most frequent first,
            where the reason is known. An answer with several choices counts once, by the worst.
        without_text: number of requests whose answer has a choice without text, and nothing in
            place of it.
        calls: number of calls whose time was measured; 0 without statistics.
        attempts: number of calls to a provider that these took, including those that the batch and
            the Router sent again.
        calls_per_second: calls per second of the run's active time; None if there is none.
        latency: latency of the calls with an answer; None if nothing was measured.
        first_chunk: seconds to the first chunk of the streamed calls; None if nothing was streamed.
        prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens: as in ``Usage``.
        estimated_calls: number of calls whose tokens are estimated.
        cost: USD of the calls whose price is known.
        unpriced_calls: number of calls whose price is unknown; ``cost`` does not include them.
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
        minimum, median, maximum: values of the limit; for half of the active time it was at most
            the median.
        changes: number of changes, not counting the beginnings of runs.
    """

    minimum: int
    median: int
    maximum: int
    changes: int


class Pause(msgspec.Struct, frozen=True):
    """A time of more than a minute without a call in flight, as between a run and its resumption.

    Attributes:
        at: its position in the active time, in seconds.
        seconds: its length.
    """

    at: float
    seconds: float


class WaitReport(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which no call of a model got through, and its requests waited.

    Attributes:
        model: name of the model.
        reason: why the last call failed.
        started_at: time of the first of these failures, in seconds since the epoch.
        seconds: its length; None if no end was recorded: it lasts, or the run was killed meanwhile.
        at, until: positions of its beginning and its end in the active time, in seconds.
    """

    model: str
    reason: str
    started_at: float
    seconds: float | None
    at: float
    until: float


class CallReport(msgspec.Struct, frozen=True):
    """A call, or a request that failed, by its id. It has neither the prompt nor the answer.

    Attributes:
        custom_id: id of the request.
        model: name of the model.
        kind: kind of the failure, as in ``ModelReport.failures``; empty for an answer.
        started_at: seconds since the epoch; None if nothing was measured.
        seconds: duration of the call; None if nothing was measured.
        attempts: number of calls to a provider that it took; None if unknown.
    """

    custom_id: str
    model: str
    kind: str
    started_at: float | None
    seconds: float | None
    attempts: int | None


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The course of a run, in equal parts of its active time.

    Attributes:
        step: length of a part, in seconds.
        ended: number of calls that ended in each part.
        in_flight: mean number of calls in flight in each part.
        limit: mean limit in each part; None before the first known one.
        errors: number of calls that failed in each part, by kind.
        cost: USD spent up to the end of each part.
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
    """Histogram of the durations of calls.

    Attributes:
        edges: bin edges in seconds, in geometric progression; one more than there are bins.
        ok: number of calls with an answer in each bin.
        failed: number of calls without an answer in each bin.
    """

    edges: list[float]
    ok: list[int]
    failed: list[int]


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report of a run so far, including its resumptions.

    Attributes:
        name: name of the output file.
        expected: number of requests in the input; None if it was not recorded.
        ending: how the last part of the run ended, as ``RunSummary.ending``; None while it goes on,
            after it was killed, and if it was not recorded.
        started_at: start of the first call, in seconds since the epoch; None if unknown.
        ended_at: end of the last call.
        active_seconds: seconds between them, without gaps of more than a minute in which no call
            was in flight.
        peak_in_flight: largest number of calls in flight at once.
        total: total of all models.
        models: each model, the one with the most requests first.
        failures: failed requests by kind, the most frequent first.
        failed: some of the failed requests: as many as are shown one by one, of each kind some.
        slowest: the calls that took longest, of each of the largest models some.
        waits: times in which nothing of a model got through, the earliest first; the last 1,000.
        limit: the limit of calls in flight; None if it was not recorded.
        timeline: the course of the run; None if no time was measured.
        latency: distribution of the durations; None if none was measured.
        notes: remarks for readers of the numbers.
    """

    name: str
    expected: int | None
    ending: str | None
    started_at: float | None
    ended_at: float | None
    active_seconds: float
    peak_in_flight: int
    total: ModelReport
    models: list[ModelReport]
    failures: list[FailureReport]
    failed: list[CallReport]
    slowest: list[CallReport]
    waits: list[WaitReport]
    limit: LimitReport | None
    timeline: Timeline | None
    latency: Histogram | None
    notes: list[str]
