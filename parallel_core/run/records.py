"""Options, progress and summary of a run, and the handle that stops it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from parallel_core.control import Concurrency, Controls, Progress, Straggler
from parallel_core.failures import FailureKind
from parallel_core.journal import JournalOpening, OnChanged, RunPaths
from parallel_core.types import RouterParallelRequest, Usage

Ending = Literal["complete", "stopped", "total_timeout", "budget", "failure", "input", "blocked"]


class RunOptions(Controls):
    """The options of :func:`run_file`, which documents them, and of the command ``run``."""

    concurrency: Concurrency
    error_file: Path | str | None
    retry_failed: bool | Collection[FailureKind]
    force_new: bool
    allow_changed: bool
    changed: OnChanged | None
    skip_invalid: bool
    limit: int | None
    only: Collection[str] | Path | str | None
    shard: tuple[int, int] | None
    pack: int | None
    fail_fast: bool
    order: Literal["completion", "input"]
    grace: float


class FailureGroup(msgspec.Struct, frozen=True):
    """Failures of a run with the same kind and status.

    Attributes:
        kind: kind of the failures (see ``docs/failures.md``).
        count: number of failures.
        message: message of the first failure: the status and the provider's words, shortened;
            without keys, and without contents of requests.
        custom_ids: ids of the first three.
        status_code: HTTP status; None if there was no HTTP response.
    """

    kind: FailureKind
    count: int
    message: str
    custom_ids: list[str]
    status_code: int | None = None


class RunStraggler(Straggler, frozen=True, kw_only=True):
    """A call near the end of a run that takes much longer than the others.

    Attributes:
        custom_id: id of its request.
    """

    custom_id: str


class RunProgress(Progress, frozen=True, kw_only=True):
    """A snapshot of the progress of a run: of its batch, with what is on disk.

    The attributes that are not listed here are those of :class:`~parallel_core.Progress`.

    Attributes:
        total: number of requests of the file that the run must finish, including those that
            earlier runs finished.
        earlier: number of requests that earlier runs finished.
        succeeded: number of answers of this run on disk.
        failed: number of failures of this run on disk.
        eta: seconds until the run is done, at this rate. None if it is unknown, if the run is
            stopping, or if it waits for a model or for its last slow calls.
        failures: failures of this run by kind and status, the most frequent first.
        stopping: True if no new calls are made any more.
        stragglers: calls that take 10 times longer than the median, if less than 2 % of the
            requests, or only such calls, are left; the longest ones first, at most five.
        direct_calls, indirect_calls: as in :class:`RunSummary`.
    """

    total: int
    earlier: int
    failures: list[FailureGroup]
    stopping: bool
    stragglers: tuple[RunStraggler, ...] = ()
    direct_calls: int = 0
    indirect_calls: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it

    @property
    def done(self) -> int:
        """Number of requests that are finished, in this run and in earlier ones."""
        return self.earlier + self.succeeded + self.failed


class RunOpening(NamedTuple):
    """The state of a run before its first call.

    Attributes:
        total: number of requests of the file that the run must finish.
        left: number of those that earlier runs did not finish.
        journal: the state of the output when it was opened; its ``input_change`` says which
            requests have changed since their results.
        requests: returns a new iterator over the unfinished requests each time it is called.
        others: number of results in the output whose requests are not in the input. They stay.
        named_by_line: True if some requests of the input have their line number as id.
        earlier_failed: number of requests that failed in earlier runs and are not sent again.
    """

    total: int
    left: int
    journal: JournalOpening
    requests: Callable[[], Iterator[RouterParallelRequest]]
    others: int = 0
    named_by_line: bool = False
    earlier_failed: int = 0


class Losses(NamedTuple):
    """Numbers of workers that a Router of workers has lost, and of requests that it has resent."""

    workers: int = 0
    requests: int = 0


class RunSummary(msgspec.Struct, frozen=True):
    """The outcome of a run.

    Attributes:
        ending: ``"complete"``: every request is finished. ``"stopped"``: the run was stopped on
            request. ``"total_timeout"``, ``"budget"``: it was used up. ``"failure"``: the first
            failure, with ``fail_fast``. ``"input"``: the input could not be read to its end.
            ``"blocked"``: requests of a model do not get through.
        total: number of requests of the file that are selected, up to ``limit``.
        earlier_succeeded, earlier_failed: numbers of requests that earlier runs finished.
        succeeded, failed: numbers of results of this run; all of them are on disk.
        failures: failures of this run by kind and status, the most frequent first.
        unfinished: number of requests without a result from this run or, if failures are not sent
            again, an earlier one. Resuming the run sends them.
        cut_off: number of those whose call was in flight; they may have to be paid for.
        usage: tokens, and USD, of this run.
        elapsed: seconds from the first call to the last.
        paths: the files.
        lost_workers: number of Ray workers that died in this run and were replaced.
        resent_requests: number of requests that were in flight in those workers and were sent
            again; they may have to be paid for twice.
        not_sorted: why the output is not in input order, if that was requested. It has all results.
        input_error: why the input could not be read to its end: it was changed after the check.
            Nothing unchecked was sent.
        blocked: by model, why its requests did not get through, and where they were sent: the key
            was refused, the credit is used up, the server is away. The requests are unfinished.
        failed_deployments: by deployment id, why its requests went to other deployments of the
            model: its key was refused, for instance.
        finish_reasons: number of answers of this run by finish reason, the most frequent first. An
            answer with several choices counts once, by the worst: ``content_filter``, then
            ``length`` (it was cut at ``max_tokens``), then any other.
        without_text: number of answers of this run with a choice that has no text, and nothing in
            place of it: no tool call, no refusal, no audio, no image.
        final_failures: number of failures, of this run and of earlier ones, that would fail again:
            the request itself is wrong, too large or refused.
        direct_calls: with ``direct``, number of attempts that were sent without litellm. What
            workers that died had sent is unknown, and not counted.
        indirect_calls: with ``direct``, numbers of attempts that litellm sent, by reason.
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
    direct_calls: int = 0
    indirect_calls: dict[str, int] = {}

    @property
    def failures_that_may_pass(self) -> int:
        """Number of failures, of this run and earlier ones, that ``retry_failed`` sends again."""
        return self.failed + self.earlier_failed - self.final_failures

    @property
    def ok(self) -> bool:
        """True if every request of the input has an answer, and the input was not changed."""
        left = self.earlier_failed or self.failed or self.unfinished
        return not left and self.input_error is None


class RunStop:
    """Ends a run early: pass it to :func:`run_file`, and call :meth:`request`.

    Use it only in the thread of the run; a signal handler of asyncio's event loop may call it.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._on_request: Callable[[], None] | None = None

    def request(self) -> None:
        """Stop the run.

        The first call stops sending, and lets calls in flight finish within the grace period. The
        second call cancels them.
        """
        self.requests += 1
        if self._on_request is not None:
            self._on_request()

    def watch(self, on_request: Callable[[], None] | None) -> None:
        """Set a function to call at each request; call it now if there was one already."""
        self._on_request = on_request
        if self.requests and on_request is not None:
            on_request()
