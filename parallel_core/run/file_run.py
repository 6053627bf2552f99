"""Run a file of requests: send each request and write each answer exactly once, despite crashes.

``parallel-core run`` adds command-line options and a progress view to this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, Unpack

from parallel_core.config import Redactor
from parallel_core.control import Concurrency, Controls, Retry
from parallel_core.failures import FailureKind, checked_kinds
from parallel_core.files import InputFile
from parallel_core.journal import OnChanged
from parallel_core.router_hosts import RouterHost, RouterHostName

from .checked_run import CheckedRun
from .plan import RunPlan, Sender
from .records import RunOpening, RunProgress, RunStop, RunSummary

LONGEST_OUTAGE = 900.0
"""Seconds that a run waits while no request of a model gets through."""

ATTEMPT_TIMEOUT = 600.0
"""Default timeout of an attempt in a run, in seconds."""


async def run_file(
    router: Sender,
    source: InputFile | Path | str,
    output: Path | str,
    *,
    concurrency: Concurrency = 8,
    error_file: Path | str | None = None,
    retry_failed: bool | Collection[FailureKind] = False,
    force_new: bool = False,
    allow_changed: bool = False,
    changed: OnChanged | None = None,
    skip_invalid: bool = False,
    limit: int | None = None,
    only: Collection[str] | Path | str | None = None,
    shard: tuple[int, int] | None = None,
    pack: int | None = None,
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
        source: the file of requests, or its path. See the page ``docs/file-formats.md``.
        output: file for the answers, and for the failures too unless there is an ``error_file``.
        concurrency: maximum number of calls in flight, or ``"auto"``. It is lowered, with a warning
            in the log, if this process may not open that many files.
        error_file: file for the failures.
        retry_failed: kinds of failures (:class:`Failure`) whose requests are sent again; True means
            every kind except ``request``, which would fail again. Each failure stays in its file
            until there is a newer result.
        force_new: move the files of an earlier run aside, and start over.
        allow_changed: resume a run although its models or parameters have changed, or its input
            has no request of the run. Its answers stay; the manifest says what changed.
        changed: what to do if requests of the input have changed since they were answered:
            ``"refuse"`` the run and name them, ``"keep"`` their results, or ``"resend"`` them, with
            their results moved aside, to ``out.jsonl.1``. New requests are sent in any case, and so
            are changed ones that have failed, except with ``"keep"``. None means ``"keep"`` with
            ``allow_changed``, and ``"refuse"`` without it.
        skip_invalid: write invalid lines as failures instead of refusing the file.
        limit: run only this many requests of the file, for a trial.
        only: ids of the requests to send, or the path of a file with one id per line (``-`` is
            standard input). A request without an id has its line number.
        shard: number of a shard, from 1, and number of shards: ``(3, 8)``. Each request is in one
            shard, by the digest of its id (see ``docs/scale.md``). Counts, ``limit`` and the end of
            the run concern the selected requests; the output may be that of another selection.
        pack: send the embeddings of up to this many lines in one request, if each has one text and
            all else is the same. Every line gets its own answer, with its share of the usage. A
            request counts once for ``concurrency`` and rate limits.
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
        InputFileError: the file is invalid, or lacks an id of ``only``; nothing was sent. (A file
            that changes later ends the run without this error: see ``RunSummary.input_error``.)
        ValueError, TypeError: an option is out of range, or the Router lacks a model of the file;
            nothing was sent.
        DifferentRunError: ``output`` belongs to another run; nothing was sent.
        ChangedRequestsError: requests have changed since they were answered; nothing was sent.
        JournalError: an answer could not be written. Calls were cancelled; the error says where
            the paid results are.
        WorkersLostError: workers make the calls, and all of them are lost. Earlier results are on
            disk.
        OSError: a file cannot be read.
    """
    controls.setdefault("retry", Retry(max_wait=LONGEST_OUTAGE))
    controls.setdefault("attempt_timeout", ATTEMPT_TIMEOUT)
    plan = RunPlan(
        router=router,
        output=output,
        error_file=error_file,
        concurrency=concurrency,
        retry_failed=checked_kinds("retry_failed", retry_failed),
        force_new=force_new,
        allow_changed=allow_changed,
        changed=changed,
        skip_invalid=skip_invalid,
        limit=limit,
        only=only,
        shard=shard,
        pack=pack,
        fail_fast=fail_fast,
        order=order,
        grace=grace,
        stop=stop,
        redactor=Redactor(()) if redactor is None else redactor,
        description=description or {},
        may_send=may_send,
        on_open=on_open,
        on_run_progress=on_run_progress,
        router_host=router_host,
        controls=controls,
    )
    with contextlib.ExitStack() as own:
        if not isinstance(source, InputFile):
            source = own.enter_context(InputFile(source))
        run = await CheckedRun.of(plan, source)
        return await run.execute()
