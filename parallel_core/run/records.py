"""What a run of a file tells of itself, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from parallel_core.control import Concurrency, Controls, Waiting
from parallel_core.failures import FailureKind
from parallel_core.journal import JournalOpening, RunPaths
from parallel_core.types import RouterParallelRequest, Usage

Ending = Literal["complete", "stopped", "total_timeout", "budget", "failure", "input", "blocked"]


class RunOptions(Controls):
    """The options of :func:`run_file`, which describes them, and of the command ``run``."""

    concurrency: Concurrency
    error_file: Path | str | None
    retry_failed: bool | Collection[FailureKind]
    force_new: bool
    allow_changed: bool
    skip_invalid: bool
    limit: int | None
    fail_fast: bool
    order: Literal["completion", "input"]
    grace: float


class FailureGroup(msgspec.Struct, frozen=True):
    """Failures of a run that have their kind and their status in common.

    Attributes:
        kind: what they mean (``docs/failures.md``).
        count: how many there are.
        message: what the first of them said: the status and the provider's words, shortened;
            without keys, and without contents of requests.
        custom_ids: of the first three.
        status_code: of HTTP; None where there was no answer.
    """

    kind: FailureKind
    count: int
    message: str
    custom_ids: list[str]
    status_code: int | None = None


class RunStraggler(msgspec.Struct, frozen=True):
    """A call near the end of a run that takes much longer than the others.

    Attributes:
        custom_id: of its request.
        seconds: for which this attempt has been running.
        median: seconds that half of the last 1,000 calls that succeeded took at most.
    """

    custom_id: str
    seconds: float
    median: float


class RunProgress(msgspec.Struct, frozen=True):
    """How far a run is: a snapshot. What is counted as done is on disk.

    Attributes:
        total: requests of the file that the run is to bring to an end, those that earlier runs
            have finished among them.
        earlier: requests that earlier runs have finished.
        succeeded: answers of this run that are on disk.
        failed: failures of this run that are on disk.
        in_flight: calls that are running now.
        elapsed: seconds since the first call.
        rate: calls that finished per second, of about the last ten seconds.
        token_rate: tokens of those calls per second.
        eta: seconds until all is done, at this rate; None where that cannot be told.
        usage: tokens, and USD, of the calls of this run.
        limit: calls that may be in flight now.
        failures: failures of this run by kind and status, the most frequent first.
        stopping: whether no new calls are made any more.
        finished: whether this is the last snapshot.
        waiting: the models none of whose calls gets through at the moment.
        stragglers: calls that take 10 times longer than the median, if less than 2 % of the
            requests, or only such calls, are left; the longest ones first, five at most.
    """

    total: int
    earlier: int
    succeeded: int
    failed: int
    in_flight: int
    elapsed: float
    rate: float
    token_rate: float
    eta: float | None
    usage: Usage
    limit: int
    failures: list[FailureGroup]
    stopping: bool
    finished: bool
    waiting: tuple[Waiting, ...] = ()
    stragglers: tuple[RunStraggler, ...] = ()

    @property
    def done(self) -> int:
        """Requests that have come to an end, in this run and before."""
        return self.earlier + self.succeeded + self.failed


class RunOpening(NamedTuple):
    """What a run finds, and has to do, before its first call.

    Attributes:
        total: requests of the file that the run is to bring to an end.
        left: those that have not come to one in earlier runs.
        journal: what was found in the output, and what has become of it.
        requests: gives those that are left, once more each time it is called.
        others: results in the output of requests that are not in the input, which stay.
        named_by_line: whether the input has requests that are named by the number of their line.
        earlier_failed: those that have failed in earlier runs, and are not sent again.
    """

    total: int
    left: int
    journal: JournalOpening
    requests: Callable[[], Iterator[RouterParallelRequest]]
    others: int = 0
    named_by_line: bool = False
    earlier_failed: int = 0


class RunSummary(msgspec.Struct, frozen=True):
    """How a run has ended.

    Attributes:
        ending: ``"complete"``: every request has come to an end. ``"stopped"``: somebody asked for
            it. ``"total_timeout"``, ``"budget"``: that was used up. ``"failure"``: the first one,
            where that ends the run. ``"input"``: it could not be read to its end. ``"blocked"``:
            requests of a model cannot get through.
        total: requests of the file, as far as ``limit`` let them.
        earlier_succeeded, earlier_failed: what earlier runs had finished.
        succeeded, failed: of this run; all of them are on disk.
        failures: failures of this run by kind and status, the most frequent first.
        unfinished: requests without a result of this run or, where failures are not sent again, of
            an earlier one; the same run sends them when it is resumed.
        cut_off: those among them whose call was on its way, and may have to be paid for.
        usage: tokens, and USD, of this run.
        elapsed: seconds from the first call to the last.
        paths: the files.
        lost_workers: workers on Ray that died in this run, and were replaced.
        resent_requests: requests that were in flight in those, and were sent again: they may have
            to be paid for twice.
        not_sorted: why the output is not in the order of the input, where that was asked for. All
            results are in it.
        input_error: why the input could not be read to its end: it is not what was checked any
            more. Nothing that was not checked has been sent.
        blocked: why requests of a model could not get through, and where they were sent, by model:
            its key was refused, its credit is used up, its server is away. They are unfinished.
        failed_deployments: why requests were sent past a deployment, by its id: its key was refused
            or the like, and others of its model got them.
        finish_reasons: answers of this run by finish reason, the most frequent first. An answer
            with several choices counts once, by the worst: ``content_filter``, then ``length`` (it
            was cut at ``max_tokens``), then any other.
        without_text: answers of this run with a choice that has no text, and nothing in place of
            it: no call of a tool, no refusal, no audio, no image.
        final_failures: failures, of this run and of earlier ones, that would fail again: the
            request itself is wrong, too large or refused.
    """

    ending: Ending
    total: int
    earlier_succeeded: int
    earlier_failed: int
    succeeded: int
    failed: int
    failures: list[FailureGroup]
    unfinished: int
    cut_off: int
    usage: Usage
    elapsed: float
    paths: RunPaths
    lost_workers: int = 0
    resent_requests: int = 0
    not_sorted: str | None = None
    input_error: str | None = None
    blocked: dict[str, str] = {}
    failed_deployments: dict[str, str] = {}
    finish_reasons: dict[str, int] = {}
    without_text: int = 0
    final_failures: int = 0

    @property
    def failures_that_may_pass(self) -> int:
        """Failures, of this run and of earlier ones, that ``retry_failed`` sends again."""
        return self.failed + self.earlier_failed - self.final_failures

    @property
    def ok(self) -> bool:
        """Whether there is an answer to every request of the input as it is."""
        left = self.earlier_failed or self.failed or self.unfinished
        return not left and self.input_error is None


class RunStop:
    """Ends a run before its time: give it to :func:`run_file`, and call :meth:`request`.

    Belongs to the thread in which the run is: a signal handler of asyncio's event loop may call it.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._on_request: Callable[[], None] | None = None

    def request(self) -> None:
        """The first time: send nothing more, and let calls in flight end within the grace. The
        second time: cancel them."""
        self.requests += 1
        if self._on_request is not None:
            self._on_request()

    def watch(self, on_request: Callable[[], None] | None) -> None:
        """Have a function called at each request, and now if there was one."""
        self._on_request = on_request
        if self.requests and on_request is not None:
            on_request()
