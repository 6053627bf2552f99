"""The arguments of a run, checked; and the checks of its input."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
from parallel_core.journal import RunPaths
from parallel_core.router import unknown_models
from parallel_core.router_hosts import RouterHost, RouterHostName
from parallel_core.types import CHAT, SupportsAcompletion

from .records import RunOpening, RunProgress, RunStop

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
    skip_invalid: bool
    limit: int | None
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
        if self.pack is not None:
            checked_count("pack", self.pack)
        checked_number("grace", self.grace, zero=True)
        checked_concurrency(self.concurrency)
        check_controls(self.controls)
        if self.order not in ("completion", "input"):
            raise ValueError(f"order must be 'completion' or 'input', not {self.order!r}")
        if self.on_run_progress is not None:
            checked_callback("on_run_progress", self.on_run_progress)

    @property
    def changes_files(self) -> bool:
        """True if opening the journal changes results of an earlier run."""
        return self.force_new or bool(self.retry_failed)

    def checked_input(self, source: InputFile) -> InputSummary:
        """Check that every request of the input can be sent. This blocks.

        Raises:
            InputFileError: the file is invalid, or the run would write to it.
            ValueError: as in :func:`check_requests`.
        """
        summary = source.check()
        if summary.bad_lines and not self.skip_invalid:
            raise InputFileError(_describe_problems(summary))
        if summary.columns:
            raise InputFileError(f"{source.path}: {describe_columns(summary.columns)}")
        for path in RunPaths.of(self.output, self.error_file).files:
            if _are_the_same(path, source.path):
                raise InputFileError(
                    f"{path} is the input, and the run would write to it: give another output, or "
                    "rename the input"
                )
        check_requests(self.router, source, summary, self.controls, self.limit)
        return summary


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
    _check_operations(router, source, summary)
    budget = controls.get("budget")
    if budget is not None:
        meter = RouterMeter(unwrap_router(router), budget.prices, budget.assume_output_tokens)
        requests = itertools.islice(source.requests(), limit)
        budget.check(meter, (request.request for request in requests))


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
        f"line {problem.line}: {problem.code}: {problem.message}; {problem.hint}"
        for problem in summary.problems
    ]
    if more := summary.bad_lines - len(lines):
        lines.append(f"and {more:,} more")
    return "\n".join(lines)
