"""The loop of a run: move requests from the input to a batch, and results to the journal."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import anyio
import msgspec

from parallel_core.control import Controls, LimitChange, Progress, RouterMeter, Stopping, eta_range
from parallel_core.engine import ParallelBatch
from parallel_core.errors import (
    BatchTimeoutError,
    BudgetExceededError,
    InputFileError,
    JournalError,
    StoppedError,
    WorkersLostError,
)
from parallel_core.failures import FINAL
from parallel_core.files import InputRequest
from parallel_core.journal import (
    BeginStatistics,
    EndStatistics,
    Journal,
    LimitStatistics,
    RunPaths,
    RunStatistics,
    statistics_line,
)
from parallel_core.types import RouterParallelRequest, RouterParallelResult, Usage
from parallel_core.uninterrupted import wait_until

from .blocked_models import BlockedModels, CallOutcome
from .failure_groups import blocked_message
from .packing import Packing
from .plan import RunPlan
from .records import Ending, Losses, RunOpening, RunProgress, RunStop, RunStraggler, RunSummary
from .results import RunResults
from .scope import EarlierResults, RunScope, problem_id
from .threads import in_thread
from .wait_records import WaitRecords

# The batch ended these requests, not a provider. They have no result; the next run sends them.
_UNFINISHED: Final = (StoppedError, BatchTimeoutError, BudgetExceededError)
_FEW_LEFT: Final = 0.02  # share of unfinished requests below which a run names its stragglers


class Run:
    """One run: moves requests from the source to the batch, and results to the journal.

    Attributes:
        input_error: why the input could not be read to its end.
    """

    def __init__(
        self,
        plan: RunPlan,
        scope: RunScope,
        journal: Journal,
        stopping: Stopping,
        meter: RouterMeter,
    ) -> None:
        self._packing = None if plan.pack is None else Packing(plan.pack, meter)
        self.input_error: str | None = None
        self._plan = plan
        self._scope = scope
        self._journal = journal
        self._stopping = stopping
        self._earlier = EarlierResults()
        self._results = RunResults(journal, meter, plan.redactor)
        self._blocked = BlockedModels(holds_back=not plan.fail_fast)
        # Requests in the batch, by index: their ids, and the members copied to their result lines.
        self._drawn: dict[int, tuple[str, Mapping[str, msgspec.Raw] | None]] = {}
        self._failed_first = False
        self._seen = Counter[type[Exception]]()  # errors of unfinished requests
        self._failure: BaseException | None = None
        self._ended = anyio.Event()
        self._changes = 0  # of the limit, that are in the statistics
        self._began_at = time.time()
        self._last_progress: Progress | None = None
        # Known at the end:
        self._elapsed = 0.0
        self._usage = Usage()
        self._direct_calls = 0
        self._indirect_calls: dict[str, int] = {}
        self._failed_deployments: dict[str, str] = {}

    # --- into the batch ---

    def count_earlier(self) -> None:
        """Count the requests in scope that earlier runs finished."""
        self._earlier = EarlierResults.of(self._journal, self._scope)

    def opening(self) -> RunOpening:
        """Return what the run found and has to do."""

        def requests() -> Iterator[RouterParallelRequest]:
            unfinished = self._scope.requests(self._journal.is_finished)
            return (request.request for request in unfinished)

        return RunOpening(
            self._scope.total,
            self._scope.total - self._done,
            msgspec.structs.replace(self._journal.opening, retried=self._earlier.retried),
            requests,
            others=self._earlier.others,
            named_by_line=self._scope.named_by_line,
            earlier_failed=self._earlier.failed,
        )

    async def write_problems(self) -> None:
        """Write the invalid lines as failures, without a call."""
        problems = self._scope.problems()
        # Read the file in parts, in a thread.
        while part := await in_thread(lambda: list(itertools.islice(problems, 1000))):
            for problem in part:
                if not self._journal.is_finished(problem_id(problem)):
                    await self._journal.append(self._results.entry_of_problem(problem))

    def requests(self) -> Iterator[RouterParallelRequest] | Packing:
        """Return the requests to send, up to where the input was changed."""
        lines = self._lines_to_send()
        return self._noted(lines) if self._packing is None else self._packing.of(lines)

    def _lines_to_send(self) -> Iterator[InputRequest]:
        try:
            yield from self._scope.requests(self._journal.is_finished)
        except InputFileError as error:
            self.input_error = str(error)

    def _noted(self, lines: Iterator[InputRequest]) -> Iterator[RouterParallelRequest]:
        for index, line in enumerate(lines):
            self._drawn[index] = line.custom_id, line.returned
            yield line.request

    def controls(self) -> Controls:
        """Return the controls of the batch, with the progress callback of this run."""
        controls = self._plan.controls
        own = controls.get("on_progress")
        waits = WaitRecords(self._record, self._plan.redactor.redact)

        def on_progress(progress: Progress) -> None:
            if own is not None:
                own(progress)
            waits.note(progress.waiting, self._began_at + progress.elapsed)
            # Results in the channel are not on disk yet.
            if not progress.finished and self._plan.on_run_progress is not None:
                self._last_progress = progress
                self._report(progress, finished=False)

        return {**controls, "on_progress": on_progress}

    # --- out of the batch ---

    async def write_results(self, batch: ParallelBatch[RouterParallelResult]) -> None:
        """Write results until the batch ends.

        A cancellation must not lose an answer that arrived: it stops the batch, and is raised when
        all results are written.
        """
        stop = self._plan.stop
        began = time.perf_counter()
        self._began_at = time.time()
        self._record(BeginStatistics(at=self._began_at, total=self._scope.total))
        self._record(LimitStatistics(at=self._began_at, limit=batch.limit))
        if stop is not None:
            stop.watch(functools.partial(self._stop_asked, stop))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._consume, batch)
                try:
                    await self._ended.wait()
                except BaseException:
                    self._stopping.cancel()
                    await wait_until(self._ended.is_set, self._ended.wait)
                    raise
        finally:
            if stop is not None:
                stop.watch(None)
            self._elapsed = time.perf_counter() - began
            ending = "error" if self._failure is not None else self._ending()
            self._record(EndStatistics(at=self._began_at + self._elapsed, ending=ending))
        if self._failure is not None:
            raise self._failure
        if self._last_progress is not None:
            self._report(self._last_progress, finished=True)

    def _stop_asked(self, stop: RunStop) -> None:
        if stop.requests == 1:
            self._stopping.stop(self._plan.grace)
        else:
            self._stopping.cancel()

    async def _consume(self, batch: ParallelBatch[RouterParallelResult]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with batch:
                    async for result in batch:
                        await self._take(result)
                        self._record_limit(batch.limit_changes)
                        self._direct_calls = batch.direct_calls
                        self._indirect_calls = batch.indirect_calls
                    for outcome in self._blocked.at_the_end():
                        await self._write(outcome)
                self._usage = batch.usage
                self._failed_deployments = {
                    name: self._plan.redactor.redact(why)
                    for name, why in batch.failed_deployments.items()
                }
                await in_thread(self._journal.flush)
        except BaseException as error:  # noqa: BLE001 - raised by write_results, outside of the group
            if self._failure is None:
                self._failure = error
        finally:
            self._ended.set()

    async def _take(self, result: RouterParallelResult) -> None:
        if self._packing is None:
            await self._take_line(CallOutcome(*self._drawn.pop(result.index), result))
            return
        for line, part in self._packing.results_of(result):
            await self._take_line(CallOutcome(line.custom_id, line.returned, part))

    async def _take_line(self, outcome: CallOutcome) -> None:
        result = outcome.result
        error = result.exception
        if error is None:
            for held_back in self._blocked.got_through(result):
                await self._write(held_back)
            await self._write(outcome)
        elif isinstance(error, WorkersLostError):  # not the failure of a single request
            if self._failure is None:
                self._failure = error
            self._stopping.cancel()
        elif isinstance(error, _UNFINISHED):
            self._seen[type(error)] += 1
        elif not self._blocked.takes(outcome, error):
            await self._write(outcome)

    async def _write(self, outcome: CallOutcome) -> None:
        entry = self._results.entry_of(outcome)
        if not entry.ok and self._plan.fail_fast and not self._stopping.stopped:
            self._failed_first = True
            self._stopping.stop(self._plan.grace)
        try:
            await self._journal.append(entry)
        except JournalError as failure:
            # The journal still keeps results that arrive; cancel, so that nothing more is paid for.
            self._failure = failure
            self._stopping.cancel()

    def _record_limit(self, changes: list[LimitChange]) -> None:
        for change in itertools.islice(changes, self._changes, None):
            if change.key is None:
                at = self._began_at + change.elapsed
                self._record(LimitStatistics(at=at, limit=change.limit, reason="adaptive"))
        self._changes = len(changes)

    def _record(self, record: RunStatistics) -> None:
        self._journal.record(statistics_line(record))

    # --- reporting ---

    @property
    def is_complete(self) -> bool:
        """True if every request is finished."""
        return self._done == self._scope.total

    @property
    def _done(self) -> int:
        earlier, results = self._earlier, self._results
        return earlier.succeeded + earlier.failed + results.succeeded + results.failed

    def _report(self, progress: Progress, *, finished: bool) -> None:
        assert self._plan.on_run_progress is not None
        self._plan.on_run_progress(self._snapshot(progress, finished=finished))

    def _snapshot(self, progress: Progress, *, finished: bool) -> RunProgress:
        left = self._scope.total - self._done
        stragglers = () if finished else self._stragglers(progress, left)
        lines = self._lines_per_request(progress)
        rate_range = progress.rate_range[0] * lines, progress.rate_range[1] * lines
        # A waiting run makes no progress, and the rate says nothing about its last slow calls.
        rate = 0.0 if progress.waiting or stragglers else progress.rate * lines
        eta = left / rate if rate > 0 else None
        if finished or self._stopping.stopped:
            eta = None
        budget = self._plan.controls.get("budget")
        return RunProgress(
            total=self._scope.total,
            started=progress.started,
            earlier=self._earlier.succeeded + self._earlier.failed,
            succeeded=self._results.succeeded,
            failed=self._results.failed,
            in_flight=0 if finished else progress.in_flight,
            elapsed=self._elapsed if finished else progress.elapsed,
            rate=progress.rate * lines,
            token_rate=progress.token_rate,
            eta=eta if left else 0.0,
            eta_range=None if left and eta is None else eta_range(left, rate_range),
            rate_range=rate_range,
            usage=self._usage if finished else progress.usage,
            limit=progress.limit,
            failures=self._results.failures.first(self._results.failed),
            stopping=self._stopping.stopped,
            finished=finished,
            waiting=() if finished else progress.waiting,
            delays=() if finished else progress.delays,
            budget=None if budget is None else budget.use(),
            stragglers=stragglers,
            direct_calls=self._direct_calls,
            indirect_calls=self._indirect_calls,
        )

    def _lines_per_request(self, progress: Progress) -> float:
        """Return how many lines a finished request had, on average."""
        if self._packing is None or not progress.done:
            return 1.0
        return (self._results.succeeded + self._results.failed) / progress.done

    def _stragglers(self, progress: Progress, left: int) -> tuple[RunStraggler, ...]:
        """Return the calls that take long, if the run waits for little else."""
        if not is_near_the_end(self._scope.total, left, len(progress.stragglers)):
            return ()
        return tuple(
            RunStraggler(straggler.index, straggler.seconds, straggler.median, custom_id=custom_id)
            for straggler in progress.stragglers
            if (custom_id := self._id_of(straggler.index)) is not None
        )

    def _id_of(self, index: int) -> str | None:
        """Return the id of a request in the batch: that of its first line."""
        if self._packing is not None:
            return self._packing.first_id(index)
        return self._drawn[index][0] if index in self._drawn else None

    def summary(self, paths: RunPaths, losses: Losses, *, not_sorted: str | None) -> RunSummary:
        """Return the outcome of the run."""
        failures = self._results.failures.all()
        final = sum(group.count for group in failures if group.kind in FINAL)
        return RunSummary(
            ending=self._ending(),
            total=self._scope.total,
            earlier_succeeded=self._earlier.succeeded,
            earlier_failed=self._earlier.failed,
            succeeded=self._results.succeeded,
            failed=self._results.failed,
            failures=failures,
            unfinished=self._scope.total - self._done,
            cut_off=self._stopping.cut_off,
            usage=self._usage,
            elapsed=self._elapsed,
            paths=paths,
            lost_workers=losses.workers,
            resent_requests=losses.requests,
            not_sorted=not_sorted,
            blocked={
                model: blocked_message(model, error, self._plan.redactor)
                for model, error in self._blocked.errors.items()
            },
            failed_deployments=self._failed_deployments,
            input_error=self.input_error,
            finish_reasons=dict(self._results.finish_reasons.most_common()),
            without_text=self._results.without_text,
            direct_calls=self._direct_calls,
            indirect_calls=self._indirect_calls,
            final_failures=self._earlier.final + final,
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
        return "blocked" if self._blocked.errors and not self._stopping.stopped else "stopped"


def is_near_the_end(total: int, left: int, stragglers: int) -> bool:
    """Return True if a run waits for little else than its stragglers."""
    return left < _FEW_LEFT * total or left <= stragglers
