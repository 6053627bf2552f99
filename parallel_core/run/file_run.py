"""Run a file of requests: send each request and write each answer exactly once, despite crashes.

``parallel-core run`` adds command-line options and a progress view to this.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Unpack

from parallel_core.api import stoppable_completions
from parallel_core.config import read_older_fields, unwrap_router
from parallel_core.control import (
    BatchOptions,
    Concurrency,
    Controls,
    Retry,
    RouterMeter,
    Stopping,
    check_controls,
    checked_callback,
    checked_concurrency,
    checked_count,
    checked_number,
    fit_open_files,
)
from parallel_core.errors import (
    NAMED_BY_LINE,
    DifferentRunError,
    InputFileError,
    JournalError,
    OrderError,
)
from parallel_core.event_loops import call_soon, current_event_loop
from parallel_core.failures import FailureKind, checked_kinds
from parallel_core.files import InputFile, InputSummary, Redactor, describe_columns
from parallel_core.journal import Journal, JournalOpening, ManifestFields, RunPaths
from parallel_core.router import calls_run_in_workers, unknown_models
from parallel_core.router_hosts import RouterHost, RouterHostName
from parallel_core.types import RouterParallelRequest, SupportsAcompletion, Usage

from .loop import Run, RunScope, in_thread
from .records import FailureGroup, RunOpening, RunProgress, RunStop, RunStraggler, RunSummary

logger = logging.getLogger("parallel_core")

__all__ = [
    "FailureGroup",
    "RunOpening",
    "RunProgress",
    "RunStop",
    "RunStraggler",
    "RunSummary",
    "check_requests",
    "describe_problems",
    "run_file",
]

LONGEST_OUTAGE = 900.0
"""Seconds that a run waits while no request of a model gets through."""

ATTEMPT_TIMEOUT = 600.0
"""Default timeout of an attempt in a run, in seconds."""


async def run_file(
    router: SupportsAcompletion
    | Callable[..., Awaitable[Any]]
    | AbstractAsyncContextManager[SupportsAcompletion],
    source: InputFile | Path | str,
    output: Path | str,
    *,
    concurrency: Concurrency = 8,
    error_file: Path | str | None = None,
    retry_failed: bool | Collection[FailureKind] = False,
    force_new: bool = False,
    allow_changed: bool = False,
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
    """Send the requests of a file and write the answers to another file, in asyncio and in trio.

    The output file is the checkpoint (:mod:`parallel_core.journal`): another call with the same
    files sends only requests that have no line yet. Lines have the form of OpenAI's Batch API.

    Args:
        router: a ``litellm.Router``; an async callable ``(model=, messages=, **kwargs)``; or an
            async context manager that returns one of these. The context manager has a Router for
            the checks as its ``router``, and is entered before the first call, if any call is made.
        source: the file of requests (``docs/file-formats.md``), or its path.
        output: file for the answers, and for the failures too unless there is an ``error_file``.
        concurrency: maximum number of calls in flight, or ``"auto"``. It is lowered, with a warning
            in the log, if this process may not open that many files.
        error_file: file for the failures.
        retry_failed: kinds of failures (:class:`Failure`) whose requests are sent again; True means
            every kind except ``request``, which would fail again. Each failure stays in its file
            until there is a newer result.
        force_new: move the files of an earlier run aside, and start over.
        allow_changed: resume a run although its input, models or parameters have changed. Its
            answers stay, even those to changed requests; the manifest says what changed.
        skip_invalid: write invalid lines as failures instead of refusing the file.
        limit: run only this many requests of the file, for a trial.
        fail_fast: end the run at the first failure; calls in flight get ``grace``.
        order: ``"input"`` sorts the output when every request is finished. If that fails,
            ``not_sorted`` of the summary says why; no answer is lost.
        grace: seconds that calls in flight get to finish when the run is stopped.
        stop: ends the run early.
        redactor: hides secrets in what is written; None uses one that recognizes keys.
        description: what the answers depend on besides the file, such as the models behind the
            Router. A run with another description is not mixed into this output. Leave out what
            does not change answers: addresses, retries, limits. Do not put keys in it: it is kept
            in the manifest.
        may_send: called with the :class:`RunOpening`, before any avoidable change on disk. If it
            returns False, nothing more is changed, and nothing is sent.
        on_open: called before the first call, with the :class:`RunOpening`.
        on_run_progress: called with a :class:`RunProgress` at most ten times a second, and at the
            end. An exception that it raises ends the run.
        router_host: for trio, as in ``parallel_acompletions``.
        controls: ``timeout``, ``total_timeout``, ``rate_limit``, ``budget``, ``hedge``, …, as for
            every batch. Defaults here: ``retry=Retry(max_wait=900)`` and ``attempt_timeout=600``.

    Returns:
        The outcome of the run. If the run is cancelled instead, the calls in flight are cancelled,
        and all earlier results are on disk.

    Raises:
        InputFileError: the file is invalid; nothing was sent. (A file that changes later ends the
            run without this error: see ``RunSummary.input_error``.)
        ValueError, TypeError: an option is out of range, or the Router lacks a model of the file;
            nothing was sent.
        DifferentRunError: ``output`` belongs to another run; nothing was sent.
        JournalError: an answer could not be written. Calls were cancelled; the error says where
            the paid results are.
        WorkersLostError: workers make the calls, and all of them are lost. Earlier results are on
            disk.
        OSError: a file cannot be read.
    """
    if limit is not None:
        checked_count("limit", limit)
    checked_number("grace", grace, zero=True)
    checked_concurrency(concurrency)
    kinds = checked_kinds("retry_failed", retry_failed)
    check_controls(controls)
    controls.setdefault("retry", Retry(max_wait=LONGEST_OUTAGE))
    controls.setdefault("attempt_timeout", ATTEMPT_TIMEOUT)
    if order not in ("completion", "input"):
        raise ValueError(f"order must be 'completion' or 'input', not {order!r}")
    if on_run_progress is not None:
        checked_callback("on_run_progress", on_run_progress)
    opened = source if isinstance(source, InputFile) else InputFile(source)
    try:
        summary = await in_thread(opened.check)
        if summary.bad_lines and not skip_invalid:
            raise InputFileError(describe_problems(summary))
        if summary.columns:
            raise InputFileError(f"{opened.path}: {describe_columns(summary.columns)}")
        paths = RunPaths.of(output, error_file)
        _check_paths(opened, paths)
        await in_thread(functools.partial(check_requests, router, opened, summary, controls, limit))
        manifest = {
            "input": summary.fingerprint,
            **(description or {}),
        }
        scope = RunScope(opened, summary, limit, with_problems=skip_invalid)

        def open_journal(**options: Any) -> Journal:
            def read_older(then: ManifestFields) -> ManifestFields:
                return read_older_fields(then, manifest, opened.fingerprint_of_format_1)

            try:
                return Journal.open(
                    paths, manifest, allow_changed=allow_changed, read_older=read_older, **options
                )
            except DifferentRunError as error:
                if "input" not in error.differences or not summary.named_by_line:
                    raise
                raise DifferentRunError(error.path, error.differences, NAMED_BY_LINE) from None

        if may_send is not None and (kinds or force_new):
            # These options change existing files: ask before opening the journal with them.
            preview = await _preview(None if force_new else open_journal, scope, kinds)
            if not may_send(preview):
                return _declined(preview, paths)
            may_send = None
        stopping = Stopping()
        loop = current_event_loop()

        def on_failure(_: JournalError) -> None:
            call_soon(loop, stopping.cancel)

        journal = await in_thread(
            functools.partial(
                open_journal,
                retry_failed=kinds,
                force_new=force_new,
                on_failure=on_failure,
            )
        )
        run = Run(
            journal,
            scope,
            stopping,
            fail_fast=fail_fast,
            grace=grace,
            redactor=Redactor(()) if redactor is None else redactor,
            meter=RouterMeter(
                unwrap_router(router),
                budget.prices if (budget := controls.get("budget")) is not None else None,
            ),
            on_progress=on_run_progress,
        )
        try:
            await in_thread(run.count_earlier)
            if may_send is not None and not may_send(run.opening()):
                return _declined(run.opening(), paths)
            await run.write_problems()
            if on_open is not None:
                on_open(run.opening())
            async with _opened(router, needed=run.opening().left > 0) as sender:
                if not calls_run_in_workers(sender):
                    # The output needs open files too; without them paid answers are not written.
                    per_call = 1 if controls.get("hedge") is None else 2
                    concurrency, note = fit_open_files(concurrency, per_call)
                    if note is not None:
                        logger.warning("%s", note)
                lost_workers, resent_requests = _losses(sender)
                batch = stoppable_completions(
                    sender,
                    run.requests(),
                    BatchOptions(
                        concurrency=concurrency,
                        controls=run.watched(controls),
                        stop_control=run.stopping,
                    ),
                    router_host,
                )
                await run.to_the_end(batch, stop)
                now_lost, now_resent = _losses(sender)
            not_sorted: str | None = None
            if order == "input" and run.is_complete and run.input_error is None:
                try:
                    await in_thread(functools.partial(journal.rewrite_in_order, scope.ids()))
                except OrderError as error:
                    not_sorted = str(error)
                except InputFileError as error:
                    run.input_error = str(error)
        finally:
            await journal.aclose()
        return run.summary(
            paths,
            lost_workers=now_lost - lost_workers,
            resent_requests=now_resent - resent_requests,
            not_sorted=not_sorted,
        )
    finally:
        if opened is not source:
            opened.close()


@asynccontextmanager
async def _opened(router: Any, *, needed: bool) -> AsyncGenerator[Any, None]:
    if hasattr(router, "acompletion") or not hasattr(router, "__aenter__"):
        yield router
    elif not needed:
        yield router.router  # no call will be made
    else:
        async with router as sender:
            yield sender


def _losses(router: Any) -> tuple[int, int]:
    """Return how many workers a Router of workers has lost, and how many requests it has resent."""
    if isinstance(router, RouterHost):
        router = router.router
    return getattr(router, "lost_workers", 0), getattr(router, "resent_requests", 0)


def describe_problems(summary: InputSummary) -> str:
    """Describe the first invalid lines as a text for people."""
    lines = [
        f"line {problem.line}: {problem.code}: {problem.message}; {problem.hint}"
        for problem in summary.problems
    ]
    if more := summary.bad_lines - len(lines):
        lines.append(f"and {more:,} more")
    return "\n".join(lines)


def check_requests(
    router: object,
    source: InputFile,
    summary: InputSummary,
    controls: Controls,
    limit: int | None = None,
) -> None:
    """Check that all requests can be sent, before the first one is.

    Raises:
        ValueError: the Router lacks a model of the file, or the budget cannot determine the
            maximum cost of a request.
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
        meter = RouterMeter(unwrap_router(router), budget.prices, budget.assume_output_tokens)
        requests = itertools.islice(source.requests(), limit)
        budget.check(meter, summary.models, (request.request for request in requests))


def _check_paths(source: InputFile, paths: RunPaths) -> None:
    """Check that the run does not write to its input.

    Raises:
        InputFileError: one of the files of the run is its input.
    """
    for path in paths.files:
        if _are_the_same(path, source.path):
            raise InputFileError(
                f"{path} is the input, and the run would write to it: give another output, or "
                "rename the input"
            )


def _are_the_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


async def _preview(
    open_journal: Callable[[], Journal] | None, scope: RunScope, kinds: Collection[FailureKind]
) -> RunOpening:
    """Return the opening of a run that sends failures of these kinds again, without changing files.

    Without ``open_journal`` the run starts over, and every request is to be sent.
    """
    if open_journal is None:

        def all_of_them() -> Iterator[RouterParallelRequest]:
            return (request.request for request in scope.requests())

        return RunOpening(scope.total, scope.total, JournalOpening(), all_of_them)
    journal = await in_thread(open_journal)
    async with journal:

        def stays_failed(custom_id: str) -> bool:
            kind = journal.failure_kind(custom_id)
            return kind is not None and kind not in kinds

        def is_finished(custom_id: str) -> bool:
            return journal.has_answer(custom_id) or stays_failed(custom_id)

        def to_send() -> Iterator[RouterParallelRequest]:
            return (request.request for request in scope.requests(is_finished))

        def count() -> tuple[int, int]:
            failed = sum(stays_failed(request.custom_id) for request in scope.requests())
            return sum(1 for _ in to_send()), failed

        left, failed = await in_thread(count)
        return RunOpening(
            scope.total,
            left,
            journal.opening,
            to_send,
            named_by_line=scope.named_by_line,
            earlier_failed=scope.bad_lines + failed,
        )


def _declined(opening: RunOpening, paths: RunPaths) -> RunSummary:
    return RunSummary(
        ending="stopped",
        total=opening.total,
        earlier_succeeded=opening.total - opening.left - opening.earlier_failed,
        earlier_failed=opening.earlier_failed,
        succeeded=0,
        failed=0,
        failures=[],
        unfinished=opening.left,
        cut_off=0,
        usage=Usage(),
        elapsed=0.0,
        paths=paths,
    )
