"""The arguments of a run, checked; and the checks of its input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from parallel_core.config import Redactor, check_operation, unwrap_router
from parallel_core.control import (
    Concurrency,
    Controls,
    RouterMeter,
    check_controls,
    checked_callback,
    checked_concurrency,
    checked_count,
    checked_number,
)
from parallel_core.errors import InputFileError
from parallel_core.failures import FailureKind
from parallel_core.files import InputFile, InputSummary, describe_columns
from parallel_core.journal import OnChanged, RunPaths
from parallel_core.router import unknown_models
from parallel_core.router_hosts import RouterHost, RouterHostName
from parallel_core.types import CHAT, SupportsAcompletion

from .records import RunOpening, RunProgress, RunStop
from .scope import RunScope
from .selection import checked_shard, selection_of

Sender: TypeAlias = (
    SupportsAcompletion
    | Callable[..., Awaitable[Any]]
    | AbstractAsyncContextManager[SupportsAcompletion]
)
"""Makes the calls of a run; ``run_file`` documents the three forms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The arguments of :func:`run_file`, which documents them, checked.

    Raises:
        ValueError, TypeError: one of them is out of range.
    """

    router: Sender
    output: Path | str
    error_file: Path | str | None
    concurrency: Concurrency
    retry_failed: Collection[FailureKind]
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
    stop: RunStop | None
    redactor: Redactor
    description: Mapping[str, str | int | float | bool | None]
    may_send: Callable[[RunOpening], bool] | None
    on_open: Callable[[RunOpening], object] | None
    on_run_progress: Callable[[RunProgress], object] | None
    router_host: RouterHost | RouterHostName | None
    controls: Controls

    def __post_init__(self) -> None:
        if self.limit is not None:
            checked_count("limit", self.limit)
        if self.shard is not None:
            checked_shard(self.shard)
        if self.pack is not None:
            checked_count("pack", self.pack)
        checked_number("grace", self.grace, zero=True)
        checked_concurrency(self.concurrency)
        check_controls(self.controls)
        if self.changed not in (None, *get_args(OnChanged)):
            raise ValueError(f"changed must be 'refuse', 'keep' or 'resend', not {self.changed!r}")
        if self.order not in ("completion", "input"):
            raise ValueError(f"order must be 'completion' or 'input', not {self.order!r}")
        if self.on_run_progress is not None:
            checked_callback("on_run_progress", self.on_run_progress)

    @property
    def changes_files(self) -> bool:
        """True if opening the journal changes results of an earlier run."""
        return self.force_new or bool(self.retry_failed)

    @property
    def on_changed(self) -> OnChanged:
        """Return what to do about changed requests that have an answer."""
        return self.changed or ("keep" if self.allow_changed else "refuse")

    def checked_input(self, source: InputFile) -> tuple[InputSummary, RunScope]:
        """Check that every request of the input can be sent. This blocks.

        Returns the summary of the whole input, and the part of it that the run must finish.

        Raises:
            InputFileError: the file is invalid, the run would write to it, or it does not have a
                request that ``only`` names.
            ValueError: as in :func:`check_requests`.
        """
        summary = source.check()
        if summary.bad_lines and not self.skip_invalid:
            raise InputFileError(_describe_problems(summary))
        if summary.columns:
            raise InputFileError(
                f"{source.name}: {describe_columns(summary.columns, summary.unit)}"
            )
        for path in RunPaths.of(self.output, self.error_file).files:
            if _are_the_same(path, source.path):
                raise InputFileError(
                    f"{path} is the input, and the run would write to it: give another output, or "
                    "rename the input"
                )
        scope = RunScope(
            source,
            summary,
            self.limit,
            with_problems=self.skip_invalid,
            selection=selection_of(self.only, self.shard),
        )
        check_requests(self.router, source, summary, self.controls, scope)
        return summary, scope


def check_requests(
    router: object,
    source: InputFile,
    summary: InputSummary,
    controls: Controls,
    scope: RunScope,
) -> None:
    """Check that all requests can be sent, before the first one is.

    The Router must know all models of the input; the budget is that of the requests in scope.

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
            f"the Router has no model {', '.join(map(repr, unknown))} (first asked for in "
            f"{summary.unit} {line} of the input); add it to the model_list, or correct the line"
        )
    _check_operations(router, source, summary)
    budget = controls.get("budget")
    if budget is not None:
        meter = RouterMeter(unwrap_router(router), budget.prices, budget.assume_output_tokens)
        budget.check(meter, (request.request for request in scope.requests()))


def _check_operations(router: object, source: InputFile, summary: InputSummary) -> None:
    """Check that the Router serves the endpoints that the input asks for."""
    itself = unwrap_router(router)
    for operation in summary.operations:
        if operation == CHAT:
            continue
        try:
            check_operation(itself, operation)
        except ValueError as error:
            line = next(one.line for one in source.requests() if one.request.operation == operation)
            raise ValueError(f"line {line} of the input: {error}") from None


def _are_the_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _describe_problems(summary: InputSummary) -> str:
    """Describe the first invalid lines as a text for people."""
    lines = [
        f"{problem.where}: {problem.code}: {problem.message}; {problem.hint}"
        for problem in summary.problems
    ]
    if more := summary.bad_lines - len(lines):
        lines.append(f"and {more:,} more")
    return "\n".join(lines)
