"""The loop of a run: move requests from the input to a batch, and results to the journal."""

from __future__ import annotations

import functools
import heapq
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from parallel_core.control import Controls, LimitChange, Progress, RouterMeter, Stopping
from parallel_core.engine import ParallelBatch
from parallel_core.errors import (
    BatchTimeoutError,
    BudgetExceededError,
    InputFileError,
    JournalError,
    NotSentError,
    StoppedError,
    WorkersLostError,
)
from parallel_core.failures import FINAL, FailureKind, classify
from parallel_core.files import (
    InputFile,
    InputProblem,
    InputRequest,
    InputSummary,
    LineFailure,
    Redactor,
    call_statistics,
    failure_in,
    problem_line,
    result_line,
    unwritable_line,
)
from parallel_core.journal import (
    CallStatistics,
    Journal,
    JournalEntry,
    LimitStatistics,
    RunPaths,
    statistics_line,
)
from parallel_core.router import add_finish
from parallel_core.types import RouterParallelRequest, RouterParallelResult, Usage
from parallel_core.uninterrupted import wait_until

from .failure_groups import FailureGroups, blocked_message
from .records import Ending, RunOpening, RunProgress, RunStop, RunStraggler, RunSummary

T = TypeVar("T")

# The batch ended these requests, not a provider. They have no result; the next run sends them.
_UNFINISHED = (StoppedError, BatchTimeoutError, BudgetExceededError)
_MOST_HELD_BACK = 256  # failures of a model kept in memory; the next run sends further requests
_FEW_LEFT = 0.02  # share of unfinished requests below which a run names its stragglers
# Nothing was paid for, and the same request may succeed in the next run.
_UNPAID_KINDS: frozenset[FailureKind] = frozenset(("unreachable", "cooling_down", "local"))
# These may affect every request of a model.
_SHARED_KINDS: frozenset[FailureKind] = frozenset(("account", "overloaded"))


class RunScope:
    """The part of the input that a run must finish: its requests and, on request, invalid lines."""

    def __init__(
        self, source: InputFile, summary: InputSummary, limit: int | None, *, with_problems: bool
    ) -> None:
        self.limit = limit
        self._source = source
        self.bad_lines = summary.bad_lines if with_problems else 0
        self.named_by_line = summary.named_by_line
        self.total = summary.requests if limit is None else min(limit, summary.requests)
        self.total += self.bad_lines

    def problems(self) -> Iterator[InputProblem]:
        """Return the invalid lines that must be written as failures."""
        return self._source.problems() if self.bad_lines else iter(())

    def requests(self, finished: Callable[[str], bool] | None = None) -> Iterator[InputRequest]:
        """Return the requests that are not finished."""
        if self.limit is None:
            return self._source.requests() if finished is None else self._source.requests(finished)
        first = itertools.islice(self._source.requests(), self.limit)
        return (request for request in first if finished is None or not finished(request.custom_id))

    def names(self) -> Iterator[str]:
        """Return the output ids of all requests and invalid lines, in any order."""
        names: Iterator[str]
        if self.limit is None:
            names = self._source.names()
        else:
            names = (request.custom_id for request in self.requests())
        return itertools.chain(names, map(_id_of, self.problems()))

    def ids(self) -> Iterator[str]:
        """Return the output ids of all requests and invalid lines, in input order."""
        requests = ((request.line, request.custom_id) for request in self._source.requests())
        problems = ((problem.line, _id_of(problem)) for problem in self.problems())
        return (custom_id for _, custom_id in heapq.merge(requests, problems))


def _id_of(problem: InputProblem) -> str:
    return problem.custom_id or str(problem.line)


class Run:
    """One run: moves requests from the source to the batch, and results to the journal."""

    def __init__(
        self,
        journal: Journal,
        scope: RunScope,
        stopping: Stopping,
        *,
        fail_fast: bool,
        grace: float,
        redactor: Redactor,
        meter: RouterMeter,
        on_progress: Callable[[RunProgress], object] | None,
    ) -> None:
        self.stopping = stopping
        self._journal = journal
        self._scope = scope
        self._fail_fast = fail_fast
        self._grace = grace
        self._redactor = redactor
        self._meter = meter
        self._on_progress = on_progress
        # Requests in the batch, by index: their ids, and the members copied to their result lines.
        self._drawn: dict[int, tuple[str, Mapping[str, msgspec.Raw] | None]] = {}
        # Results on disk beyond these counts are from this run.
        self._ok_before = journal.succeeded
        self._failed_before = journal.failed
        # Counts of requests in the scope of this run; the output may have results of others.
        self._earlier_ok = 0
        self._earlier_failed = 0
        self._earlier_final = 0
        self._to_retry = 0
        self._others = 0
        self._failed_first = False
        self.input_error: str | None = None  # why the input could not be read to its end
        self._seen = Counter[type[Exception]]()  # errors of unfinished requests
        self._failures = FailureGroups(redactor)
        self._finish_reasons = Counter[str]()
        self._without_text = 0
        # The error for which requests of a model do not get through.
        self._blocked: dict[str, BaseException] = {}
        self._held_back = defaultdict[str, list[Any]](list)  # failures not written yet, by model
        self._stopped = set[str]()  # models whose requests are not sent any more
        self._failed_deployments: dict[str, str] = {}
        self._failure: BaseException | None = None
        self._ended = anyio.Event()
        self._changes = 0
        self._began_at = time.time()
        self._elapsed = 0.0
        self._usage = Usage()

    # --- into the batch ---

    def count_earlier(self) -> None:
        """Count the requests in scope that earlier runs finished.

        With a limit, or after a change of the input, the output also has results of other requests.
        """
        found = self._journal.opening
        if not found.resumed:
            return
        for name in self._scope.names():
            if self._journal.has_answer(name):
                self._earlier_ok += 1
            elif self._journal.is_finished(name):
                self._earlier_failed += 1
                self._earlier_final += self._journal.failure_kind(name) in FINAL
            elif self._journal.is_retried(name):
                self._to_retry += 1
        if self._scope.limit is None:
            in_all = found.succeeded + found.failed + found.retried
            self._others = in_all - self._earlier_ok - self._earlier_failed - self._to_retry

    def opening(self) -> RunOpening:
        """Return what the run found and has to do."""

        def requests() -> Iterator[RouterParallelRequest]:
            unfinished = self._scope.requests(self._journal.is_finished)
            return (request.request for request in unfinished)

        return RunOpening(
            self._scope.total,
            self._scope.total - self._done,
            msgspec.structs.replace(self._journal.opening, retried=self._to_retry),
            requests,
            others=self._others,
            named_by_line=self._scope.named_by_line,
            earlier_failed=self._earlier_failed,
        )

    async def write_problems(self) -> None:
        """Write the invalid lines as failures, without a call."""
        problems = self._scope.problems()
        # Read the file in parts, in a thread.
        while part := await in_thread(lambda: list(itertools.islice(problems, 1000))):
            for problem in part:
                custom_id = _id_of(problem)
                if not self._journal.is_finished(custom_id):
                    line = problem_line(problem)
                    await self._journal.append(JournalEntry(custom_id, line, ok=False))
                    message = f"{problem.code}: line {problem.line}: {problem.message}"
                    failure = LineFailure("request", None, problem.code, message)
                    self._failures.add(custom_id, failure)

    def requests(self) -> Iterator[RouterParallelRequest]:
        """Yield the requests to send, up to where the input was changed."""
        unfinished = self._scope.requests(self._journal.is_finished)
        try:
            for index, request in enumerate(unfinished):
                self._drawn[index] = request.custom_id, request.returned
                yield request.request
        except InputFileError as error:
            self.input_error = str(error)

    def watched(self, controls: Controls) -> Controls:
        """Return the controls with the progress callback of this run added."""
        if self._on_progress is None:
            return controls
        own = controls.get("on_progress")

        def on_progress(progress: Progress) -> None:
            if own is not None:
                own(progress)
            if not progress.finished:  # results in the channel are not on disk yet
                self._report(progress)

        self._last_progress: Progress | None = None
        return {**controls, "on_progress": on_progress}

    # --- out of the batch ---

    async def to_the_end(
        self, batch: ParallelBatch[RouterParallelResult], stop: RunStop | None
    ) -> None:
        """Write results until the batch ends.

        A cancellation must not lose an answer that arrived: it stops the batch, and is raised when
        all results are written.
        """
        began = time.perf_counter()
        self._began_at = time.time()
        self._record(batch.limit, self._began_at, "")
        if stop is not None:
            stop.watch(functools.partial(self._stop_asked, stop))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._consume, batch)
                try:
                    await self._ended.wait()
                except BaseException:
                    self.stopping.cancel()
                    await wait_until(self._ended.is_set, self._ended.wait)
                    raise
        finally:
            if stop is not None:
                stop.watch(None)
        self._elapsed = time.perf_counter() - began
        if self._failure is not None:
            raise self._failure
        self._report_last()

    def _stop_asked(self, stop: RunStop) -> None:
        if stop.requests == 1:
            self.stopping.stop(self._grace)
        else:
            self.stopping.cancel()

    async def _consume(self, batch: ParallelBatch[RouterParallelResult]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with batch:
                    async for result in batch:
                        await self._take(result)
                        self._record_limit(batch.limit_changes)
                    await self._write_held_back()
                self._usage = batch.usage
                self._failed_deployments = {
                    name: self._redactor.redact(why)
                    for name, why in batch.failed_deployments.items()
                }
                await in_thread(self._journal.flush)
        except BaseException as error:  # noqa: BLE001 - raised by to_the_end, outside of the group
            if self._failure is None:
                self._failure = error
        finally:
            self._ended.set()

    async def _take(self, result: RouterParallelResult) -> None:
        custom_id, returned = self._drawn.pop(result.index)
        error = result.exception
        if isinstance(error, WorkersLostError):  # not the failure of a single request
            if self._failure is None:
                self._failure = error
            self.stopping.cancel()
        elif not await self._stays_unfinished(custom_id, result, returned):
            await self._write(custom_id, result, returned)

    async def _write(
        self,
        custom_id: str,
        result: RouterParallelResult,
        returned: Mapping[str, msgspec.Raw] | None,
    ) -> None:
        measured, line = self._measured(custom_id, result, returned)
        entry = JournalEntry(custom_id, line, measured.ok, statistics_line(measured))
        if measured.ok:
            add_finish(self._finish_reasons, measured.finish_reason)
            self._without_text += measured.without_text
        elif self._fail_fast and not self.stopping.stopped:
            self._failed_first = True
            self.stopping.stop(self._grace)
        try:
            await self._journal.append(entry)
        except JournalError as failure:
            # The journal still keeps results that arrive; cancel, so that nothing more is paid for.
            self._failure = failure
            self.stopping.cancel()

    async def _stays_unfinished(
        self,
        custom_id: str,
        result: RouterParallelResult,
        returned: Mapping[str, msgspec.Raw] | None,
    ) -> bool:
        """Return True if no line is written for a request now; without one, the next run sends it.

        Account faults and overload are not failures of a request if they affect every request. So
        these failures are held back until a request of the model that was sent later succeeds.
        Overload failures are also written at the end, unless the model was stopped.
        """
        error = result.exception
        model = result.request.model
        if error is None:
            await self._got_through(model, result.started_at)
            return False
        if isinstance(error, _UNFINISHED):
            self._seen[type(error)] += 1
            return True
        if isinstance(error, NotSentError):
            self._blocked[model] = error
            self._stopped.add(model)
            return True
        kind = classify(error).kind
        if self._fail_fast or not (kind in _UNPAID_KINDS or kind in _SHARED_KINDS):
            return False
        if kind != "overloaded" and (kind != "cooling_down" or model not in self._blocked):
            self._blocked[model] = error  # keep an earlier cause: a cooldown does not say why
        held_back = self._held_back[model]
        if kind in _SHARED_KINDS:
            if len(held_back) < _MOST_HELD_BACK:
                held_back.append((custom_id, result, returned))
            elif kind == "overloaded":
                return False
        return True

    async def _got_through(self, model: str, began: float) -> None:
        """Write held-back failures that ended before ``began``, the start of a successful request.

        A request that was sent before a failure proves nothing: the key may have been refused
        meanwhile.
        """
        held_back = self._held_back.pop(model, [])
        for entry in held_back:
            _, failed, _ = entry
            if began < failed.started_at + failed.duration:
                self._held_back[model].append(entry)
            else:
                await self._write(*entry)
        if model not in self._held_back:
            self._blocked.pop(model, None)

    async def _write_held_back(self) -> None:
        """Write held-back overload failures of models that were not stopped."""
        for model, held_back in self._held_back.items():
            if model not in self._stopped:
                for entry in held_back:
                    if classify(entry[1].exception).kind == "overloaded":
                        await self._write(*entry)

    def _measured(
        self,
        custom_id: str,
        result: RouterParallelResult,
        returned: Mapping[str, msgspec.Raw] | None,
    ) -> tuple[CallStatistics, bytes]:
        """Return the statistics of a call, and its result line."""
        try:
            usage = result.usage
            if usage is None and result.response is not None:
                usage = self._meter.usage_of(result.request, result.response)
            failure = failure_in(result)
            measured = call_statistics(custom_id, result, usage)
            line = result_line(custom_id, result, self._redactor, returned)
            message = None if failure is None else self._failures.add(custom_id, failure, result)
        except Exception as error:  # noqa: BLE001 - one strange answer must not lose the others
            line, failure = unwritable_line(custom_id, error, returned)
            message = self._failures.add(custom_id, failure)
            measured = CallStatistics(
                custom_id=custom_id,
                model=result.request.model,
                started_at=result.started_at,
                duration=result.duration,
                ok=False,
                error=type(error).__name__,
                failure_kind=failure.kind,
            )
        return msgspec.structs.replace(measured, message=message), line

    def _record_limit(self, changes: list[LimitChange]) -> None:
        for change in itertools.islice(changes, self._changes, None):
            if change.key is None:
                self._record(change.limit, self._began_at + change.elapsed, "adaptive")
        self._changes = len(changes)

    def _record(self, limit: int, at: float, reason: str) -> None:
        record = LimitStatistics(at=at, limit=limit, reason=reason)
        self._journal.record(statistics_line(record))

    # --- reporting ---

    @property
    def is_complete(self) -> bool:
        """True if every request is finished."""
        return self._done == self._scope.total

    @property
    def _done(self) -> int:
        return self._earlier_ok + self._earlier_failed + self._succeeded + self._failed

    @property
    def _succeeded(self) -> int:
        return self._journal.succeeded - self._ok_before

    @property
    def _failed(self) -> int:
        return self._journal.failed - self._failed_before

    def _report(self, progress: Progress) -> None:
        self._last_progress = progress
        assert self._on_progress is not None
        self._on_progress(self._snapshot(progress, finished=False))

    def _report_last(self) -> None:
        if self._on_progress is not None and self._last_progress is not None:
            self._on_progress(self._snapshot(self._last_progress, finished=True))

    def _snapshot(self, progress: Progress, *, finished: bool) -> RunProgress:
        left = self._scope.total - self._done
        rate = 0.0 if progress.waiting else progress.rate  # a waiting run makes no progress
        eta = left / rate if rate > 0 else None
        return RunProgress(
            total=self._scope.total,
            started=progress.started,
            earlier=self._earlier_ok + self._earlier_failed,
            succeeded=self._succeeded,
            failed=self._failed,
            in_flight=0 if finished else progress.in_flight,
            elapsed=self._elapsed if finished else progress.elapsed,
            rate=progress.rate,
            token_rate=progress.token_rate,
            eta=0.0 if not left else None if finished or self.stopping.stopped else eta,
            usage=self._usage if finished else progress.usage,
            limit=progress.limit,
            failures=self._failures.first(self._failed),
            stopping=self.stopping.stopped,
            finished=finished,
            waiting=() if finished else progress.waiting,
            stragglers=() if finished else self._stragglers(progress, left),
        )

    def _stragglers(self, progress: Progress, left: int) -> tuple[RunStraggler, ...]:
        """Return the calls that take long, if the run waits for little else."""
        if not is_near_the_end(self._scope.total, left, len(progress.stragglers)):
            return ()
        return tuple(
            RunStraggler(
                straggler.index,
                straggler.seconds,
                straggler.median,
                custom_id=self._drawn[straggler.index][0],
            )
            for straggler in progress.stragglers
            if straggler.index in self._drawn
        )

    def summary(
        self,
        paths: RunPaths,
        *,
        lost_workers: int,
        resent_requests: int,
        not_sorted: str | None,
    ) -> RunSummary:
        """Return the outcome of the run."""
        failures = self._failures.all()
        final = sum(group.count for group in failures if group.kind in FINAL)
        return RunSummary(
            ending=self._ending(),
            total=self._scope.total,
            earlier_succeeded=self._earlier_ok,
            earlier_failed=self._earlier_failed,
            succeeded=self._succeeded,
            failed=self._failed,
            failures=failures,
            unfinished=self._scope.total - self._done,
            cut_off=self.stopping.cut_off,
            usage=self._usage,
            elapsed=self._elapsed,
            paths=paths,
            lost_workers=lost_workers,
            resent_requests=resent_requests,
            not_sorted=not_sorted,
            blocked={
                model: blocked_message(model, error, self._redactor)
                for model, error in self._blocked.items()
            },
            failed_deployments=self._failed_deployments,
            input_error=self.input_error,
            finish_reasons=dict(self._finish_reasons.most_common()),
            without_text=self._without_text,
            final_failures=self._earlier_final + final,
        )

    def _ending(self) -> Ending:
        if self.is_complete:
            return "complete"
        if self._failed_first:
            return "failure"
        if self.input_error is not None:
            return "input"
        if self._seen[BatchTimeoutError]:
            return "total_timeout"
        if self._seen[BudgetExceededError]:
            return "budget"
        return "blocked" if self._blocked and not self.stopping.stopped else "stopped"


def is_near_the_end(total: int, left: int, stragglers: int) -> bool:
    """Return True if a run waits for little else than its stragglers."""
    return left < _FEW_LEFT * total or left <= stragglers


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread. A cancellation waits for it, so that a lock which it
    takes is not lost."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=False)
