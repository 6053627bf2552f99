"""Runs to report of, and what is printed of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from typer.testing import CliRunner

from parallel_core.cli import report_command
from parallel_core.cli.report_table import print_report
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import (
    CallStatistics,
    LimitStatistics,
    RunStatistics,
    statistics_line,
)
from parallel_core.report import RunReport

BEGIN = 1_780_000_000.0  # seconds since the epoch

NASTY = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">&"

app = typer.Typer(pretty_exceptions_enable=False)

app.command()(report_command.command)


def call(custom_id: str, begin: float, duration: float = 1.0, **more: Any) -> CallStatistics:
    fields: dict[str, Any] = {"model": "gpt", "ok": "error" not in more, **more}
    return CallStatistics(
        custom_id=custom_id, started_at=BEGIN + begin, duration=duration, **fields
    )


def answer(custom_id: str, **more: Any) -> dict[str, Any]:
    body = {"object": "chat.completion", "model": "gpt-of-the-provider", **more}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": f"b-{custom_id}", "custom_id": custom_id, "response": response, "error": None}


def failure(custom_id: str, status: int | None = None, code: str = "late") -> dict[str, Any]:
    error = {"message": "no", "type": "t", "param": None, "code": code}
    line = {"id": f"b-{custom_id}", "custom_id": custom_id, "response": None, "error": None}
    if status is None:
        return {**line, "error": {"code": code, "message": "no"}}
    response = {"status_code": status, "request_id": "r", "body": {"error": error}}
    return {**line, "response": response}


def write_run(
    folder: Path, records: Iterable[RunStatistics], lines: Sequence[object] | None = None
) -> Path:
    """Write the files of a run; without lines, those that belong to the records."""
    records = list(records)
    paths = RunPaths.of(folder / "out.jsonl")
    calls = {record.custom_id: record for record in records if isinstance(record, CallStatistics)}
    if lines is None:
        lines = [
            answer(name) if last.ok else failure(name, last.status_code)
            for name, last in calls.items()
        ]
    if records:
        paths.statistics.write_bytes(b"".join(statistics_line(r) + b"\n" for r in records))
    paths.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths.output


def example_run(folder: Path) -> Path:
    """A run of two parts, an hour apart, in which some calls fail."""
    draw = random.Random(7)
    records: list[RunStatistics] = []
    for part, begin in enumerate((0.0, 3660.0)):
        records.append(LimitStatistics(at=BEGIN + begin, limit=16))
        for number in range(120):
            if number == 60:
                records.append(
                    LimitStatistics(at=BEGIN + begin + 6, limit=20, reason="steady latency")
                )
            model, price = ("fast", 2e-7) if number % 3 else ("smart", 4e-6)
            duration = draw.lognormvariate(-0.3 if number % 3 else 0.3, 0.4)
            tokens = draw.randrange(200, 400), draw.randrange(20, 200)
            failed = draw.random() < 0.05
            fields: dict[str, Any] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
            fields["cost"] = price * (tokens[0] + 4 * tokens[1])
            if failed:
                fields = {"error": "RateLimitError", "status_code": 429, "attempts": 3}
                message = "429 rate_limit_exceeded: Rate limit reached for requests per minute."
                fields |= {"failure_kind": "overloaded", "message": message}
            elif model == "smart":
                fields["time_to_first_chunk"] = duration / 5
            name = f"review-{120 * part + number + 1}"
            records.append(call(name, begin + 0.1 * number, duration, model=model, **fields))
    return write_run(folder, records)


def nasty_run(folder: Path) -> Path:
    records: list[RunStatistics] = [LimitStatistics(at=BEGIN, limit=2, reason=NASTY)]
    for number in range(20):
        failed = {"error": NASTY, "status_code": 500} if number % 4 == 0 else {"cost": 0.1}
        records.append(call(f"{NASTY}{number}", number, 2, model=NASTY, **failed))
    return write_run(folder, records)


def printed(summary: RunReport, width: int = 80) -> str:
    file = StringIO()
    print_report(summary, Console(file=file, width=width, highlight=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
