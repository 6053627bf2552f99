"""Output of ``parallel-core run --json``: a JSON object on each line."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO

import msgspec

from parallel_core.files import InputProblem, InputSummary
from parallel_core.router import CostEstimate
from parallel_core.run import RunOpening, RunProgress, RunSummary
from parallel_core.types import Usage

from .run_texts import describe_opening, endpoints_of
from .terminal import ignore_output_errors, json_line


class JsonView:
    """A view for programs: a JSON object on each line of standard output, with its ``event``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def error(self, text: str) -> None:
        self._write("error", text=text)

    def problem(self, problem: InputProblem) -> None:
        self._write("problem", **msgspec.structs.asdict(problem))

    def checked(self, summary: InputSummary) -> None:
        self._write(
            "checked",
            requests=summary.requests,
            problems=summary.bad_lines,
            models=summary.models,
            endpoints=endpoints_of(summary),
            format=summary.format,
            columns=[
                {"name": one.name, "lines": one.lines, "first_line": one.first_line}
                for one in summary.columns
            ],
        )

    def estimate(self, estimate: CostEstimate) -> None:
        fields = msgspec.structs.asdict(estimate)
        self._write("estimate", **{**fields, "cost": estimate.known_cost})

    def opened(self, opening: RunOpening) -> None:
        self._write(
            "opened",
            total=opening.total,
            left=opening.left,
            input_change=opening.journal.input_change,
            notes=describe_opening(opening),
        )

    def progress(self, progress: RunProgress) -> None:
        fields = msgspec.structs.asdict(progress)
        usage = _usage_fields(progress.usage)
        if progress.usage == Usage():  # no call has been answered, so the cost is not known
            usage["cost"] = None
        self._write("progress", **{**fields, "usage": usage})

    def summary(self, summary: RunSummary, resume: str | None) -> None:
        fields = msgspec.structs.asdict(summary)
        paths = {
            name: None if (path := getattr(summary.paths, name)) is None else str(path)
            for name in ("output", "errors", "statistics")
        }
        usage = _usage_fields(summary.usage)
        self._write("summary", **{**fields, "usage": usage, "paths": paths, "resume": resume})

    def waiting(self, what: str) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def close(self) -> None:
        pass

    def _write(self, event: str, **fields: Any) -> None:
        line = json_line(event=event, **fields)
        with ignore_output_errors():
            print(line, file=self._stream, flush=True)


def _usage_fields(usage: Usage) -> dict[str, Any]:
    return {**msgspec.structs.asdict(usage), "cost": usage.known_cost}
