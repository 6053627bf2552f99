"""The command ``parallel-core run``: a file of requests, from a terminal or a job queue."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import typer

from parallel_core.config import Redactor, silence_libraries
from parallel_core.config.run_router import RouterConfigError, RunRouter
from parallel_core.control import (
    UnpricedError,
    allow_connections,
    fit_open_files,
    most_calls,
    raise_open_files,
)
from parallel_core.errors import InputFileError, JournalError, WorkersLostError
from parallel_core.files import InputFile, InputSummary, describe_columns
from parallel_core.router_hosts import leave_this_loop, plain_loop_factory
from parallel_core.run import (
    RunScope,
    RunStop,
    RunSummary,
    check_requests,
    read_ids,
    run_file,
    selection_of,
)

from .json_view import JsonView
from .question import Question, RunState
from .resume_command import resume_command
from .run_arguments import RunArguments, takes_run_arguments
from .run_job import RunJob
from .run_signals import StopSignals, interruptible
from .run_texts import describe_selection
from .run_view import Painter, RunView
from .run_workers import RunWorkers, WorkersNotStartedError, quiet_ray
from .text_view import TextView

ALL_OK, SOME_FAILED, BAD_INPUT, NOT_WRITTEN, INTERRUPTED = 0, 1, 2, 3, 130

_EMBEDDING = "aembedding"  # the operation that --pack is for
# Open files of a run besides its connections: the loop, the output, the demo server, …
_FILES = 32


@takes_run_arguments
def command(arguments: RunArguments) -> None:
    """Send a file of requests, and write each answer once, whatever happens meanwhile.

    Run the same command again to resume. Exit codes:

    0: all requests are answered
    1: some failed or are left, or the output could not be sorted
    2: bad input or options, nothing was sent
    3: answers could not be written
    130: interrupted
    """
    view: RunView = JsonView() if arguments.json else TextView()
    state = RunState()
    with contextlib.closing(view), interruptible(), silence_libraries():
        try:
            code = _Run(view, state, RunJob.of(arguments)).run()
        except KeyboardInterrupt:
            view.error(
                "interrupted; the same command resumes"
                if state.begun
                else "interrupted before anything was sent"
            )
            code = INTERRUPTED
        if state.stuck:
            # Python would wait for the stream to take what is in its buffer.
            os._exit(code)
    raise typer.Exit(code)


class _RefusedError(Exception):
    """The run sends nothing, for the reason in the text."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """A run that may begin.

    Attributes:
        requests: the open input.
        summary: what the input holds.
        router: sends the requests.
        notes: about the rates of the config, to be shown before the first call.
    """

    requests: InputFile
    summary: InputSummary
    router: RunRouter
    notes: list[str]


class _Run:
    """One run of the command: check everything, send, say how it ended."""

    def __init__(self, view: RunView, state: RunState, job: RunJob) -> None:
        self._view = view
        self._state = state
        self._job = job
        self._stop = RunStop()
        self._signals = StopSignals()
        self._painter = Painter(view)

    def run(self) -> int:
        """Run the job and return the exit code.

        Raises:
            KeyboardInterrupt: a signal came before the first call.
        """
        with contextlib.ExitStack() as resources:
            try:
                checked = self._check(resources)
            except UnpricedError as error:
                self._view.error(
                    f"nothing was sent: --max-cost needs prices, and the price of {error.what} is "
                    "unknown. Give input_cost_per_token and output_cost_per_token in the "
                    "litellm_params of its deployment (with --config), or leave out --max-cost"
                )
                return BAD_INPUT
            except (_RefusedError, InputFileError, ValueError, TypeError, OSError) as error:
                self._view.error(f"nothing was sent: {error}")
                return BAD_INPUT
            if checked is None or self._job.validate:
                return ALL_OK
            if self._job.workers is not None:
                resources.enter_context(quiet_ray())
            return self._send(checked)

    # --- before anything is sent ---

    def _check(self, resources: contextlib.ExitStack) -> _Checked | None:
        """Check the input and make the Router. Return None if the job needs no Router."""
        view, job, options = self._view, self._job, self._job.options
        requests = resources.enter_context(job.open_input())
        summary, scope = self._check_input(requests)
        if job.make_router is None:
            return None
        self._fit_limits_of_the_system()
        with view.waiting("importing litellm"):
            router = resources.enter_context(job.make_router(list(summary.models)))
        for warning in router.warnings:
            view.note(warning)
        if missing := router.missing_keys(summary.models):
            raise RouterConfigError(missing)
        for warning in router.key_warnings:
            view.note(warning)
        held = job.rates.held(router.router, summary.models, router.models)
        options["rate_limit"] = held.limit
        check_requests(router.router, requests, summary, options, scope)
        return _Checked(requests, summary, router, held.notes)

    def _check_input(self, requests: InputFile) -> tuple[InputSummary, RunScope]:
        view, options = self._view, self._job.options
        with view.waiting("checking the input"):
            summary = requests.check()
        for problem in summary.problems:
            view.problem(problem)
        view.checked(summary)
        if options["pack"] is not None and _EMBEDDING not in summary.operations:
            view.note("--pack packs embeddings, and this input has none: it changes nothing")
        if summary.bad_lines and not options["skip_invalid"]:
            raise _RefusedError("correct these lines, or give --skip-invalid")
        if summary.columns:
            raise _RefusedError(describe_columns(summary.columns, summary.unit))
        if isinstance(options["only"], str):  # standard input can be read once
            options["only"] = read_ids(options["only"])
        selection = selection_of(options["only"], options["shard"])
        scope = RunScope(
            requests,
            summary,
            options["limit"],
            with_problems=options["skip_invalid"],
            selection=selection,
        )
        if selection is not None:
            view.note(describe_selection(scope.total, summary, options["shard"]))
        return summary, scope

    def _fit_limits_of_the_system(self) -> None:
        options, workers = self._job.options, self._job.workers
        calls_per_slot = 2 if options.get("hedge") else 1
        if workers is None or workers.address is None:  # otherwise other machines open the files
            raise_open_files()
            options["concurrency"], note = fit_open_files(
                options["concurrency"], calls_per_slot, to_be_opened=_FILES
            )
            if note is not None:
                self._view.note(note)
        allow_connections(calls_per_slot * most_calls(options["concurrency"]))

    # --- the run itself ---

    def _send(self, checked: _Checked) -> int:
        """Send the requests and return the exit code."""
        view, state, painter = self._view, self._state, self._painter
        redactor = Redactor(checked.router.secrets)
        try:
            with painter, asyncio.Runner(loop_factory=plain_loop_factory()) as runner:
                summary = runner.run(
                    _run_until_stopped(
                        lambda: self._run_file(checked, redactor),
                        self._stop,
                        self._signals,
                        painter,
                        self._job.options["grace"],
                    )
                )
        except JournalError as error:
            view.error(str(error))
            return NOT_WRITTEN if state.begun else BAD_INPUT
        except WorkersNotStartedError as error:
            view.error(f"nothing was sent: {error}")
            return BAD_INPUT
        except WorkersLostError as error:
            view.error(f"{error}; the same command resumes")
            return SOME_FAILED
        except (InputFileError, ValueError, TypeError, OSError) as error:
            view.error(str(error) if state.begun else f"nothing was sent: {error}")
            return SOME_FAILED if state.begun else BAD_INPUT
        if state.interrupted:
            raise KeyboardInterrupt
        if state.declined:
            view.error("nothing was sent")
            return BAD_INPUT
        return self._report(summary, redactor)

    async def _run_file(self, checked: _Checked, redactor: Redactor) -> RunSummary:
        job, options, painter = self._job, self._job.options, self._painter
        router = checked.router
        assert job.output is not None
        question = Question(
            self._view, self._state, self._signals, router, job.confirm_above, checked.notes
        )
        run = functools.partial(
            run_file,
            source=checked.requests,
            output=job.output,
            stop=self._stop,
            redactor=redactor,
            description=router.describe(checked.summary.models),
            may_send=question.may_send,
            on_open=question.opened,
        )
        if job.workers is None:
            return await run(router.router, on_run_progress=painter.progress, **options)
        workers = RunWorkers(
            router,
            job.workers,
            options["concurrency"],
            stop=self._stop,
            painter=painter,
            redactor=redactor,
        )
        options["concurrency"] = workers.concurrency
        with contextlib.closing(workers):
            return await run(workers, on_run_progress=workers.progress, **options)

    def _report(self, summary: RunSummary, redactor: Redactor) -> int:
        """Show the end of the run and return the exit code."""
        view = self._view
        self._state.stuck = self._painter.stuck
        if not self._state.stuck:
            again = None if summary.ok else resume_command(summary, redactor)
            view.summary(summary, again)
            for text in (summary.input_error, summary.not_sorted):
                if text is not None:
                    view.error(text)
        if self._stop.requests > 0 and summary.unfinished > 0:
            return INTERRUPTED
        return ALL_OK if summary.ok and summary.not_sorted is None else SOME_FAILED


async def _run_until_stopped(
    start: Callable[[], Awaitable[RunSummary]],
    stop: RunStop,
    signals: StopSignals,
    painter: Painter,
    grace: float,
) -> RunSummary:
    """Run until the end. The first signal stops new calls, the second one cancels all."""

    def on_signal(number: int) -> None:
        if not stop.requests:
            again = "; Ctrl-C again cancels them at once" if number == signal.SIGINT else ""
            painter.note(
                f"{signal.Signals(number).name}: no new calls, those in flight have "
                f"{grace:,.10g} s{again}"
            )
        stop.request()

    with signals.handled(on_signal):
        try:
            return await start()
        finally:
            await leave_this_loop()
