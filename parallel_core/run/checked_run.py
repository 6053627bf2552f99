"""A run whose arguments and input are checked: open the journal, ask, send, sort."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from parallel_core.api import stoppable_calls
from parallel_core.config import read_older_fields, unwrap_router
from parallel_core.control import BatchOptions, RouterMeter, Stopping, fit_open_files
from parallel_core.errors import (
    NAMED_BY_LINE,
    InputFileError,
    JournalError,
    OrderError,
)
from parallel_core.event_loops import call_soon, current_event_loop
from parallel_core.files import InputFile, InputSummary
from parallel_core.journal import AskedRequests, Journal, ManifestFields, RunPaths
from parallel_core.router import calls_run_in_workers
from parallel_core.router_hosts import RouterHost

from .loop import Run
from .plan import RunPlan
from .preview import declined, preview
from .records import Losses, RunSummary
from .scope import RunScope, problem_id
from .threads import in_thread

logger = logging.getLogger("parallel_core")


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A run of an input that was checked.

    Attributes:
        plan: the arguments of the run.
        source: the input.
        summary: what the check has found.
        paths: the files that the run writes.
        scope: the part of the input to finish.
    """

    plan: RunPlan
    source: InputFile
    summary: InputSummary
    paths: RunPaths
    scope: RunScope

    @classmethod
    async def of(cls, plan: RunPlan, source: InputFile) -> CheckedRun:
        """Check the input of a run. Raises InputFileError and ValueError as ``run_file`` does."""
        summary, scope = await in_thread(functools.partial(plan.checked_input, source))
        paths = RunPaths.of(plan.output, plan.error_file)
        return cls(plan, source, summary, paths, scope)

    async def execute(self) -> RunSummary:
        """Send the requests that are not finished, and write their results."""
        plan, paths, may_send = self.plan, self.paths, self.plan.may_send
        if may_send is not None and plan.changes_files:
            # Ask before opening the journal with the options that change existing files.
            open_unchanged = None if plan.force_new else self._open_journal
            opening = await preview(open_unchanged, self.scope, plan.retry_failed)
            if not may_send(opening):
                return declined(opening, paths)
            may_send = None
        stopping = Stopping()
        loop = current_event_loop()

        def on_failure(_: JournalError) -> None:
            call_soon(loop, stopping.cancel)

        journal = await in_thread(
            functools.partial(
                self._open_journal,
                retry_failed=plan.retry_failed,
                force_new=plan.force_new,
                on_failure=on_failure,
            )
        )
        budget = plan.controls.get("budget")
        prices = None if budget is None else budget.prices
        meter = RouterMeter(unwrap_router(plan.router), prices)
        run = Run(plan, self.scope, journal, stopping, meter)
        try:
            await in_thread(run.count_earlier)
            if may_send is not None and not may_send(run.opening()):
                return declined(run.opening(), paths)
            await in_thread(journal.begin)
            await run.write_problems()
            if plan.on_open is not None:
                plan.on_open(run.opening())
            losses = await self._send(run, stopping)
            not_sorted = await self._sort(run, journal)
        finally:
            await journal.aclose()
        return run.summary(paths, losses, not_sorted=not_sorted)

    def _open_journal(self, **options: Any) -> Journal:
        manifest = {"input": self.summary.fingerprint, **self.plan.description}

        def read_older(then: ManifestFields) -> ManifestFields:
            return read_older_fields(then, manifest, self.source.fingerprint_of_format_1)

        return Journal.open(
            self.paths,
            manifest,
            allow_changed=self.plan.allow_changed,
            requests=self._asked(),
            on_changed=self.plan.on_changed,
            read_older=read_older,
            **options,
        )

    def _asked(self) -> AskedRequests:
        def find(wanted: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
            found = self.source.requests(lambda custom_id: not wanted(custom_id))
            return ((request.line, request.custom_id) for request in found)

        return AskedRequests(
            self.summary.fingerprint,
            self.source.records(),
            find,
            other_names=lambda: map(problem_id, self.scope.problems()),
            note=NAMED_BY_LINE if self.summary.named_by_line else "",
        )

    async def _send(self, run: Run, stopping: Stopping) -> Losses:
        """Send the requests, and return what was lost with workers meanwhile."""
        plan, concurrency = self.plan, self.plan.concurrency
        async with _opened(plan.router, needed=run.opening().left > 0) as sender:
            if not calls_run_in_workers(sender):
                # The output needs open files too; without them paid answers are not written.
                per_call = 1 if plan.controls.get("hedge") is None else 2
                concurrency, note = fit_open_files(concurrency, per_call)
                if note is not None:
                    logger.warning("%s", note)
            before = _losses(sender)
            batch = stoppable_calls(
                sender,
                run.requests(),
                BatchOptions(
                    concurrency=concurrency, controls=run.controls(), stop_control=stopping
                ),
                plan.router_host,
            )
            await run.write_results(batch)
            now = _losses(sender)
        return Losses(now.workers - before.workers, now.requests - before.requests)

    async def _sort(self, run: Run, journal: Journal) -> str | None:
        """Sort the output if that is asked for and possible; return why it is not sorted."""
        if self.plan.order == "input" and run.is_complete and run.input_error is None:
            try:
                await in_thread(functools.partial(journal.rewrite_in_order, self.scope.ids()))
            except OrderError as error:
                return str(error)
            except InputFileError as error:
                run.input_error = str(error)
        return None


@contextlib.asynccontextmanager
async def _opened(router: Any, *, needed: bool) -> AsyncGenerator[Any, None]:
    if hasattr(router, "acompletion") or not hasattr(router, "__aenter__"):
        yield router
    elif not needed:
        yield router.router  # no call will be made
    else:
        async with router as sender:
            yield sender


def _losses(router: Any) -> Losses:
    if isinstance(router, RouterHost):
        router = router.router
    return Losses(getattr(router, "lost_workers", 0), getattr(router, "resent_requests", 0))
