"""A file of requests in, a file of answers out: each one exactly once, whatever happens meanwhile.

``parallel-core run`` is this with options and a view around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Unpack

import anyio
import anyio.to_thread
import msgspec
import sniffio
import trio

from ._handle import ParallelBatch
from .batch_input import InputFile, InputProblem, InputRequest, InputSummary
from .batch_output import (
    Redactor,
    call_statistics,
    has_answer,
    problem_line,
    result_line,
    unwritable_line,
)
from .control._checks import checked_callback, checked_count, checked_number
from .control._metering import RouterMeter
from .control.adaptive import LimitChange
from .control.options import Concurrency, Controls, check_controls, checked_concurrency
from .control.stopping import Stopping
from .dispatch import stoppable_completions
from .errors import (
    BatchDeadlineError,
    BudgetExceededError,
    InputFileError,
    JournalError,
    StoppedError,
)
from .journal import Journal, JournalEntry, JournalOpening
from .progress import Progress
from .router_call import unknown_models
from .run_statistics import CallStatistics, LimitStatistics, RunPaths, statistics_line
from .trio_router import RouterHost, RouterHostName
from .types import RouterParallelRequest, RouterParallelResult, SupportsAcompletion, Usage

T = TypeVar("T")
Ending = Literal["complete", "stopped", "deadline", "budget", "failure"]

# Failures of ours, not of a provider: nothing came of these requests, and the next run sends them.
_UNFINISHED = (StoppedError, BatchDeadlineError, BudgetExceededError)

_PROBLEMS_IN_A_MESSAGE = 20


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
        last_error: the kind of the last failure; None where there was none.
        stopping: whether no new calls are made any more.
        finished: whether this is the last snapshot.
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
    last_error: str | None
    stopping: bool
    finished: bool

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
    """

    total: int
    left: int
    journal: JournalOpening
    requests: Callable[[], Iterator[RouterParallelRequest]]


class RunSummary(msgspec.Struct, frozen=True):
    """How a run has ended.

    Attributes:
        ending: ``"complete"``: every request has come to an end. ``"stopped"``: somebody asked for
            it. ``"deadline"``, ``"budget"``: that was used up. ``"failure"``: the first one, where
            that ends the run.
        total: requests of the file, as far as ``limit`` let them.
        earlier_succeeded, earlier_failed: what earlier runs had finished.
        succeeded, failed: of this run; all of them are on disk.
        errors: failures of this run by kind, the most frequent first.
        unfinished: requests without a line; the next run sends them.
        cut_off: those among them whose call was on its way, and may have to be paid for.
        usage: tokens, and USD, of this run.
        elapsed: seconds from the first call to the last.
        paths: the files.
    """

    ending: Ending
    total: int
    earlier_succeeded: int
    earlier_failed: int
    succeeded: int
    failed: int
    errors: dict[str, int]
    unfinished: int
    cut_off: int
    usage: Usage
    elapsed: float
    paths: RunPaths

    @property
    def ok(self) -> bool:
        """Whether there is an answer to every request."""
        return not (self.earlier_failed or self.failed or self.unfinished)


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


async def run_file(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    source: InputFile | Path | str,
    output: Path | str,
    *,
    concurrency: Concurrency = 8,
    error_file: Path | str | None = None,
    retry_failed: bool = False,
    force_new: bool = False,
    skip_invalid: bool = False,
    limit: int | None = None,
    fail_fast: bool = False,
    order: Literal["completion", "input"] = "completion",
    grace: float = 10.0,
    stop: RunStop | None = None,
    redactor: Redactor | None = None,
    description: Mapping[str, str | int | float | bool | None] | None = None,
    may_send: Callable[[RunOpening], bool] | None = None,
    on_open: Callable[[RunOpening], object] | None = None,
    on_run_progress: Callable[[RunProgress], object] | None = None,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> RunSummary:
    """Send the requests of a file and write the answers to another, in asyncio and in trio.

    The output file is the checkpoint (:mod:`parallel_core.journal`): called again with the same
    files, it sends what has no line yet. Lines have the form of OpenAI's Batch API.

    Args:
        router: a ``litellm.Router``, or an async callable ``(model=, messages=, **kwargs)``.
        source: the file of requests (``docs/file-formats.md``), or its path.
        output: where the answers go, and the failures too unless there is an ``error_file``.
        concurrency: calls in flight at most, or ``"auto"``.
        error_file: where the failures go.
        retry_failed: send those again that have failed before.
        force_new: set aside what another run has left, and begin anew.
        skip_invalid: write bad lines as failures instead of refusing the file.
        limit: take so many requests of the file only, for a trial.
        fail_fast: the first failure ends the run; calls in flight get the grace.
        order: ``"input"`` sorts the output when every request has come to an end.
        grace: seconds that calls in flight get to end when the run is stopped.
        stop: ends the run before its time.
        redactor: hides secrets in what is written; None: one that knows what keys look like.
        description: of what the answers depend on beside the file, the Router above all; a run with
            another one is not mixed into this output. No keys: it is kept in the manifest.
        may_send: called with what there is to do, before anything is changed on disk that would
            not have to be. If it gives False, nothing is.
        on_open: called before the first call, with what was found.
        on_run_progress: called with a :class:`RunProgress` at most ten times a second, and at the
            end. What it raises ends the run.
        router_host: for trio, as in ``parallel_acompletions``.
        controls: ``timeout``, ``deadline``, ``rate_limit``, ``budget``, ``hedge``, …: those of
            every batch.

    Returns:
        What has become of the requests. When it is cancelled instead, the calls in flight are
        cancelled, and what had come before is on disk.

    Raises:
        InputFileError: the file is bad; nothing was sent.
        ValueError, TypeError: an option is out of range, or a model of the file is not one of the
            Router's; nothing was sent.
        DifferentRunError: ``output`` is of another run; nothing was sent.
        JournalError: an answer could not be written. Calls were cancelled; the error tells where
            what was paid for is.
        OSError: a file cannot be read.
    """
    if limit is not None:
        checked_count("limit", limit)
    checked_number("grace", grace, zero=True)
    checked_concurrency(concurrency)
    check_controls(controls)
    if order not in ("completion", "input"):
        raise ValueError(f"order must be 'completion' or 'input', not {order!r}")
    if on_run_progress is not None:
        checked_callback("on_run_progress", on_run_progress)
    opened = source if isinstance(source, InputFile) else InputFile(source)
    try:
        summary = await _in_thread(opened.check)
        if summary.problems and not skip_invalid:
            raise InputFileError(describe_problems(summary.problems))
        paths = RunPaths.of(output, error_file)
        _check_paths(opened, paths)
        await _in_thread(
            functools.partial(check_requests, router, opened, summary, controls, limit)
        )
        manifest = {
            "input": summary.fingerprint,
            **(description or {}),
        }
        scope = _Scope(opened, summary, limit, with_problems=skip_invalid)
        if may_send is not None and (retry_failed or force_new):
            # These change what is there.
            looked = await _looked(None if force_new else (paths, manifest), scope)
            if not may_send(looked):
                return _declined(looked, paths)
            may_send = None
        stopping = Stopping()
        in_this_loop = _caller_from_other_threads()
        journal = await _in_thread(
            functools.partial(
                Journal.open,
                paths,
                manifest,
                retry_failed=retry_failed,
                force_new=force_new,
                on_failure=lambda _: in_this_loop(stopping.cancel),
            )
        )
        run = _Run(
            journal,
            scope,
            stopping,
            fail_fast=fail_fast,
            grace=grace,
            redactor=Redactor(()) if redactor is None else redactor,
            meter=RouterMeter(
                getattr(router, "router", router),
                budget.prices if (budget := controls.get("budget")) is not None else None,
            ),
            on_progress=on_run_progress,
        )
        try:
            await _in_thread(run.count_earlier)
            if may_send is not None and not may_send(run.opening()):
                return _declined(run.opening(), paths)
            await run.write_problems()
            if on_open is not None:
                on_open(run.opening())
            batch = stoppable_completions(
                router,
                run.requests(),
                concurrency=concurrency,
                router_host=router_host,
                controls=run.watched(controls),
                stopping=run.stopping,
            )
            await run.to_the_end(batch, stop)
            if order == "input" and run.is_complete:
                await _in_thread(functools.partial(journal.rewrite_in_order, scope.ids()))
        finally:
            await journal.aclose()
        return run.summary(paths)
    finally:
        if opened is not source:
            opened.close()


def describe_problems(problems: Iterable[InputProblem]) -> str:
    """Bad lines as a text for people, the first of many."""
    lines: list[str] = []
    more = 0
    for problem in problems:
        if len(lines) < _PROBLEMS_IN_A_MESSAGE:
            lines.append(f"line {problem.line}: {problem.code}: {problem.message}; {problem.hint}")
        else:
            more += 1
    if more:
        lines.append(f"and {more} more")
    return "\n".join(lines)


def check_requests(
    router: object,
    source: InputFile,
    summary: InputSummary,
    controls: Controls,
    limit: int | None = None,
) -> None:
    """Refuse what could not be sent, before anything is.

    Raises:
        ValueError: the Router lacks a model of the file, or the budget cannot tell what a request
            may cost.
    """
    unknown = unknown_models(router, summary.models)
    if unknown:
        line = next(
            request.line for request in source.requests() if request.request.model in unknown
        )
        raise ValueError(
            f"the Router has no model {', '.join(map(repr, unknown))} (first asked for in line "
            f"{line} of the input); add it to the model_list, or correct the line"
        )
    budget = controls.get("budget")
    if budget is not None:
        meter = RouterMeter(
            getattr(router, "router", router), budget.prices, budget.assume_output_tokens
        )
        requests = itertools.islice(source.requests(), limit)
        budget.check(meter, summary.models, (request.request for request in requests))


def _check_paths(source: InputFile, paths: RunPaths) -> None:
    """Refuse to write to what is read.

    Raises:
        InputFileError: one of the files of the run is its input.
    """
    for path in (paths.output, paths.errors, paths.statistics, paths.manifest, paths.rescue):
        if path is not None and _are_the_same(path, source.path):
            raise InputFileError(
                f"{path} is the input, and the run would write to it: give another output, or "
                "another name to the input"
            )


def _are_the_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


class _Scope:
    """What of the input a run is to bring to an end."""

    def __init__(
        self, source: InputFile, summary: InputSummary, limit: int | None, *, with_problems: bool
    ) -> None:
        self.limit = limit
        self.problems = summary.problems if with_problems else []
        self._source = source
        self.total = summary.requests if limit is None else min(limit, summary.requests)
        self.total += len(self.problems)

    def requests(self, finished: Callable[[str], bool] | None = None) -> Iterator[InputRequest]:
        """Those that are to be sent, and are not finished."""
        if self.limit is None:
            return self._source.requests() if finished is None else self._source.requests(finished)
        first = itertools.islice(self._source.requests(), self.limit)
        return (request for request in first if finished is None or not finished(request.custom_id))

    def ids(self) -> Iterator[str]:
        """The names in the output, in the order of the input."""
        requests = ((request.line, request.custom_id) for request in self._source.requests())
        problems = ((problem.line, _id_of(problem)) for problem in self.problems)
        return (custom_id for _, custom_id in heapq.merge(requests, problems))


def _id_of(problem: InputProblem) -> str:
    return problem.custom_id or str(problem.line)


async def _looked(
    journal_of: tuple[RunPaths, Mapping[str, Any]] | None, scope: _Scope
) -> RunOpening:
    """What there will be to do when failures are sent again; or all, where that begins anew."""
    if journal_of is None:

        def all_of_them() -> Iterator[RouterParallelRequest]:
            return (request.request for request in scope.requests())

        return RunOpening(scope.total, scope.total, JournalOpening(), all_of_them)
    journal = await _in_thread(functools.partial(Journal.open, *journal_of))
    async with journal:

        def without_answer() -> Iterator[RouterParallelRequest]:
            return (request.request for request in scope.requests(journal.has_answer))

        left = await _in_thread(lambda: sum(1 for _ in without_answer()))
        return RunOpening(scope.total, left, journal.opening, without_answer)


def _declined(opening: RunOpening, paths: RunPaths) -> RunSummary:
    found = opening.journal
    return RunSummary(
        ending="stopped",
        total=opening.total,
        earlier_succeeded=found.succeeded,
        earlier_failed=found.failed,
        succeeded=0,
        failed=0,
        errors={},
        unfinished=opening.left,
        cut_off=0,
        usage=Usage(),
        elapsed=0.0,
        paths=paths,
    )


class _Run:
    """One run: from the source into the batch, from the batch into the journal."""

    def __init__(
        self,
        journal: Journal,
        scope: _Scope,
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
        self._ids: dict[int, str] = {}  # of the requests that have been drawn, by index
        # What is on disk is this run's as far as it is more.
        self._ok_before = journal.succeeded
        self._failed_before = journal.failed
        # Of those that are to be brought to an end now: with a limit, others may be finished too.
        self._earlier_ok = journal.succeeded
        self._earlier_failed = journal.failed
        self._failed_first = False
        self._seen = Counter[type[Exception]]()  # of requests that did not come to an end
        self._errors = Counter[str]()
        self._last_error: str | None = None
        self._failure: BaseException | None = None
        self._ended = anyio.Event()
        self._changes = 0
        self._began_at = time.time()
        self._elapsed = 0.0
        self._usage = Usage()

    # --- into the batch ---

    def count_earlier(self) -> None:
        """How many of those that are to be brought to an end are finished."""
        if self._scope.limit is None:
            return
        names = [request.custom_id for request in self._scope.requests()]
        names += map(_id_of, self._scope.problems)
        finished = [name for name in names if self._journal.is_finished(name)]
        self._earlier_ok = sum(map(self._journal.has_answer, finished))
        self._earlier_failed = len(finished) - self._earlier_ok

    def opening(self) -> RunOpening:
        """What there is to do."""

        def requests() -> Iterator[RouterParallelRequest]:
            unfinished = self._scope.requests(self._journal.is_finished)
            return (request.request for request in unfinished)

        total = self._scope.total
        return RunOpening(total, total - self._done, self._journal.opening, requests)

    async def write_problems(self) -> None:
        """Bad lines are failures that need no call."""
        for problem in self._scope.problems:
            custom_id = _id_of(problem)
            if not self._journal.is_finished(custom_id):
                line = problem_line(problem)
                await self._journal.append(JournalEntry(custom_id, line, ok=False))
                self._errors[problem.code] += 1

    def requests(self) -> Iterator[RouterParallelRequest]:
        """What is to be sent."""
        unfinished = self._scope.requests(self._journal.is_finished)
        for index, request in enumerate(unfinished):
            self._ids[index] = request.custom_id
            yield request.request

    def watched(self, controls: Controls) -> Controls:
        """The controls, with our progress among them."""
        if self._on_progress is None:
            return controls
        own = controls.get("on_progress")

        def on_progress(progress: Progress) -> None:
            if own is not None:
                own(progress)
            if not progress.finished:  # what is in the channel still is not on disk
                self._tell(progress)

        self._last_progress: Progress | None = None
        return {**controls, "on_progress": on_progress}

    # --- out of the batch ---

    async def to_the_end(
        self, batch: ParallelBatch[RouterParallelResult], stop: RunStop | None
    ) -> None:
        """Write what comes, until nothing more does.

        A cancellation is no reason to lose an answer that is there: it stops the batch, and goes on
        when all is written.
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
                    with anyio.CancelScope(shield=True):
                        await self._ended.wait()
                    raise
        finally:
            if stop is not None:
                stop.watch(None)
        self._elapsed = time.perf_counter() - began
        if self._failure is not None:
            raise self._failure
        self._tell_the_last()

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
                self._usage = batch.usage
                await _in_thread(self._journal.flush)
        except BaseException as error:  # noqa: BLE001 - raised by to_the_end, outside of the group
            self._failure = self._failure or error
        finally:
            self._ended.set()

    async def _take(self, result: RouterParallelResult) -> None:
        custom_id = self._ids.pop(result.index)
        error = result.exception
        if isinstance(error, _UNFINISHED):
            self._seen[type(error)] += 1
            return
        entry = self._entry(custom_id, result)
        if not entry.ok:
            self._last_error = "NoAnswerError" if error is None else type(error).__name__
            self._errors[self._last_error] += 1
            if self._fail_fast and not self.stopping.stopped:
                self._failed_first = True
                self.stopping.stop(self._grace)
        try:
            await self._journal.append(entry)
        except JournalError as failure:
            # The journal keeps what comes still; nothing more is paid for.
            self._failure = failure
            self.stopping.cancel()

    def _entry(self, custom_id: str, result: RouterParallelResult) -> JournalEntry:
        try:
            usage = result.usage
            if usage is None and result.response is not None:
                usage = self._meter.usage_of(result.request, result.response)
            statistics = call_statistics(custom_id, result, usage)
            line, ok = result_line(custom_id, result, self._redactor), has_answer(result)
        except Exception as error:  # noqa: BLE001 - one strange answer is no reason to lose others
            statistics = CallStatistics(
                custom_id=custom_id,
                model=result.request.model,
                started_at=result.started_at,
                duration=result.duration,
                ok=False,
                error=type(error).__name__,
            )
            line, ok = unwritable_line(custom_id, error), False
        return JournalEntry(custom_id, line, ok, statistics_line(statistics))

    def _record_limit(self, changes: list[LimitChange]) -> None:
        for change in itertools.islice(changes, self._changes, None):
            if change.key is None:
                self._record(change.limit, self._began_at + change.elapsed, "adaptive")
        self._changes = len(changes)

    def _record(self, limit: int, at: float, reason: str) -> None:
        record = LimitStatistics(at=at, limit=limit, reason=reason)
        self._journal.record(statistics_line(record))

    # --- what is told ---

    @property
    def is_complete(self) -> bool:
        """Whether every request has come to an end."""
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

    def _tell(self, progress: Progress) -> None:
        self._last_progress = progress
        assert self._on_progress is not None
        self._on_progress(self._snapshot(progress, finished=False))

    def _tell_the_last(self) -> None:
        if self._on_progress is not None and self._last_progress is not None:
            self._on_progress(self._snapshot(self._last_progress, finished=True))

    def _snapshot(self, progress: Progress, *, finished: bool) -> RunProgress:
        left = self._scope.total - self._done
        eta = left / progress.rate if progress.rate > 0 else None
        return RunProgress(
            total=self._scope.total,
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
            last_error=self._last_error,
            stopping=self.stopping.stopped,
            finished=finished,
        )

    def summary(self, paths: RunPaths) -> RunSummary:
        return RunSummary(
            ending=self._ending(),
            total=self._scope.total,
            earlier_succeeded=self._earlier_ok,
            earlier_failed=self._earlier_failed,
            succeeded=self._succeeded,
            failed=self._failed,
            errors=dict(self._errors.most_common()),
            unfinished=self._scope.total - self._done,
            cut_off=self.stopping.cut_off,
            usage=self._usage,
            elapsed=self._elapsed,
            paths=paths,
        )

    def _ending(self) -> Ending:
        if self.is_complete:
            return "complete"
        if self._failed_first:
            return "failure"
        if self._seen[BatchDeadlineError]:
            return "deadline"
        return "budget" if self._seen[BudgetExceededError] else "stopped"


async def _in_thread(function: Callable[[], T]) -> T:
    """Run what blocks, and wait for it whatever happens: a lock that it takes must not be lost."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=False)


def _caller_from_other_threads() -> Callable[[Callable[[], object]], None]:
    """What calls a function soon where the current task runs, from any thread."""
    if sniffio.current_async_library() == "trio":
        in_trio = trio.lowlevel.current_trio_token().run_sync_soon
        return lambda function: in_trio(function)
    in_asyncio = asyncio.get_running_loop().call_soon_threadsafe

    def call(function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs in it
            in_asyncio(function)

    return call
