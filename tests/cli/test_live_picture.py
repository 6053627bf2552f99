"""The live view of a run, from 40 to 200 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from helpers.odd_texts import EVIL, HARMLESS
from helpers.run_values import progress_of
from parallel_core import BudgetUse, Delay, FailureGroup, RunStraggler, Usage, Waiting
from parallel_core.cli.live_picture import picture

MUCH: dict[str, Any] = {
    "total": 100_000,
    "succeeded": 42_134,
    "failed": 37,
    "earlier": 12_000,
    "in_flight": 1024,
    "limit": 1024,
    "elapsed": 754.0,
    "rate": 1234.5,
    "token_rate": 180_551.0,
    "eta": 371.8,
    "eta_range": (300.0, 520.0),
    "usage": Usage(2_000_000, 1_000_000, cost=12.345),
    "budget": BudgetUse(50.0, None, 12.345, 0, 1.2, 0),
    "failures": [
        FailureGroup("request", 30, "400 context_length_exceeded: too long " * 5, ["id-17"], 400),
        FailureGroup("timeout", 7, "no answer within 60 s", ["a", "b", "c"]),
    ],
    "waiting": (Waiting("m", "http://127.0.0.1:8000", "no connection to the server", 2.2, 1.3),),
    "delays": (Delay("rate_limit", 12), Delay("retry", 5, "too many requests (429)", 1.4)),
    "stragglers": (RunStraggler(6, 11.4, 0.24, custom_id="request-117"),),
}


def drawn(width: int, **fields: Any) -> list[Text]:
    return picture(progress_of(**fields), Console(file=io.StringIO(), width=width))


def texts(width: int, **fields: Any) -> list[str]:
    return [line.plain for line in drawn(width, **fields)]


@pytest.mark.parametrize("width", [20, 30, 40, 59, 60, 80, 100, 120, 160, 200, 300])
@pytest.mark.parametrize("fields", [MUCH, {}, {**MUCH, "finished": True}, {"total": 10**12}])
def test_every_line_fits(width: int, fields: dict[str, Any]) -> None:
    lines = drawn(width, **fields)
    assert all(0 < line.cell_len <= width for line in lines)
    assert all(line.plain == line.plain.rstrip() for line in lines)
    assert len(lines) <= 30
    if width >= 40:
        together = " ".join(line.plain for line in lines)
        for figure in ("ok ", "failed ", "in flight ", " calls/s", " tokens/s", "time "):
            assert figure in together
        assert "…" not in "".join(line.plain for line in lines[:4])


def test_at_eighty_columns() -> None:
    bar, *lines = texts(80, **MUCH)
    assert bar.endswith("─ 54,171/100,000  54.2 %")
    assert len(bar) == 80
    assert lines == [
        "ok 42,134           failed 37           earlier 12,000",
        "time 12:34          ETA 6:12 (5:00 to 8:40)",
        "in flight 1,024/1,024                   1,234.5 calls/s     180,551 tokens/s",
        "12.3450 of 50 USD",
        "request 30: 400 context_length_exceeded: too long 400 context_length_exceeded:",
        "too long 400 context_length_exceeded: too long 400 context_length_exceeded: too…",
        "timeout 7: no answer within 60 s (a, b, c, …)",
        "waiting for http://127.0.0.1:8000: no connection to the server, since 2 s, next",
        "try in 2 s",
        "12 calls wait for the rate limit",
        "5 requests to send again, the first in 2 s: too many requests (429)",
        "request-117 (11 s) takes much longer than the median of 0.24 s: --timeout",
        "SECONDS ends such calls, --hedge p95 sends them twice",
    ]


def test_at_forty_columns() -> None:
    assert texts(40, total=240, succeeded=60, elapsed=61.0) == [
        "━━━━━━─────────────────── 60/240  25.0 %",
        "ok 60               failed 0",
        "time 1:01           ETA unknown",
        "in flight 1/4       1.0 calls/s",
        "1 tokens/s",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_figures_keep_their_places_while_they_change(width: int) -> None:
    def places(**fields: Any) -> list[tuple[int, int]]:
        lines = texts(width, total=100_000, eta=9.0, **fields)
        names = ("ok", "failed", "time", "ETA", "in flight")
        return [
            next((row, line.index(name)) for row, line in enumerate(lines) if name in line)
            for name in names
        ]

    few = places(succeeded=1, in_flight=1, rate=0.5)
    many = places(succeeded=99_999, failed=12_345, in_flight=128, rate=4321.0, elapsed=86_400.0)
    assert few == many


def test_kinds_are_red_and_contents_are_not() -> None:
    (line,) = [line for line in drawn(80, **MUCH) if line.plain.startswith("timeout 7:")]
    (span,) = [span for span in line.spans if span.style]
    assert line.plain[span.start : span.end] == "timeout 7:"


def test_a_run_that_stops_says_so_instead_of_an_eta() -> None:
    shown = " ".join(texts(80, **MUCH, stopping=True))
    assert "stopping: no new calls" in shown
    assert "ETA" not in shown
    assert "stopping" not in " ".join(texts(80, **MUCH, stopping=True, finished=True))


def test_nothing_in_it_moves_the_cursor() -> None:
    group = FailureGroup("unknown", 1, EVIL, [EVIL])
    waiting = Waiting(EVIL, None, EVIL, 1.0, None)
    shown = texts(200, failures=[group], waiting=(waiting,))
    assert HARMLESS in " ".join(shown)
    assert all(line.isprintable() for line in shown)


def test_more_kinds_of_failures_than_fit_are_counted() -> None:
    groups = [FailureGroup("unknown", 1, f"status {n}", ["id"], n) for n in range(500, 508)]
    shown = texts(80, failures=groups, direct_calls=3, indirect_calls={"a tool": 2})
    assert sum(line.startswith("unknown 1:") for line in shown) == 5
    assert "and 3 more kinds of failures" in shown
    assert "direct 3, 2 by litellm (a tool 2)" in shown
