"""What commands write on a terminal and into a pipe."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import sys
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from helpers.odd_texts import EVIL, HARMLESS
from helpers.run_values import progress_of, summary_of
from parallel_core import RunStraggler, Usage, Waiting
from parallel_core.cli import text_view
from parallel_core.cli.json_view import JsonView
from parallel_core.cli.run_texts import describe_stragglers
from parallel_core.cli.text_view import TextView
from parallel_core.control import is_live
from parallel_core.control.progress_texts import describe_waiting
from parallel_core.router.cost_estimate import CostEstimate


def test_the_summary_says_which_answers_and_failures_are_unusual() -> None:
    def shown(**fields: Any) -> str:
        output = io.StringIO()
        console = Console(file=output, width=200)
        TextView(error=console, output=console).summary(summary_of(**fields), None)
        return output.getvalue()

    text = shown(
        finish_reasons={"stop": 1, "length": 212, "content_filter": 3},
        without_text=8,
        failed=13,
        final_failures=12,
    )
    assert "212 cut at max_tokens, 3 filtered, 8 without text" in text
    assert "12 failures are final: they would fail again" in text
    assert "1 failure is final: it would fail again" in shown(failed=1, final_failures=1)
    assert "--retry-failed" not in shown(earlier_failed=1, final_failures=1)
    assert "1 failure: --retry-failed sends again what may pass" in shown(earlier_failed=1)
    plain = shown(finish_reasons={"stop": 1, "tool_calls": 1})
    assert "final" not in plain
    assert "of these" not in plain


@contextlib.contextmanager
def terminal_as_stderr() -> Generator[Callable[[], str]]:
    """A terminal as standard error; gives what is on it."""
    seen, process_end = pty.openpty()
    with os.fdopen(process_end, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)

        def text() -> str:
            print("\0", end="", file=stream, flush=True)
            shown = b""
            while not shown.endswith(b"\0"):
                shown += os.read(seen, 65536)
            return shown[:-1].decode()

        yield text
    os.close(seen)


def show_everything(view: TextView) -> None:
    with view.waiting("checking"):
        view.note("a note")
    view.error("an error")
    view.progress(progress_of())
    view.progress(progress_of(finished=True))
    view.close()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with terminal_as_stderr() as screen:
        show_everything(TextView())
        lines = screen().splitlines()
    assert lines[:2] == ["a note", "an error"]
    assert all("1/3 (33.3 %), ok 1" in line for line in lines[2:])
    assert len(lines) == 4
    assert "".join(lines).isprintable()


def test_without_colour_it_is_live_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal_as_stderr() as screen:
        show_everything(TextView())
        shown = screen()
    assert "━" in shown
    assert "\x1b[?25l" in shown  # the cursor is hidden while it is drawn
    assert not any(f"\x1b[{code}" in shown for code in (*range(30, 39), *range(90, 98)))


def test_no_terminal_is_drawn_on_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many a CI
    shown = io.StringIO()
    assert not is_live(Console(file=shown))
    show_everything(TextView(error=Console(file=shown)))
    assert "━" not in shown.getvalue()
    assert "\x1b[?25l" not in shown.getvalue()


def test_the_last_line_has_the_rates_of_the_whole_run() -> None:
    shown = io.StringIO()
    view = TextView(error=Console(file=shown))
    counts: dict[str, Any] = {"earlier": 1, "failed": 1, "elapsed": 0.5, "eta": 9.0}
    view.progress(progress_of(**counts))
    view.progress(progress_of(**counts, usage=Usage(20, 30), finished=True))
    running, last = shown.getvalue().splitlines()
    assert "3/3 (100.0 %), ok 1, failed 1, earlier 1, in flight 1/4, 1.0 calls/s" in running
    assert running.endswith(", ETA 0:09")
    assert last.endswith("in flight 1/4, 4.0 calls/s, 100 tokens/s")


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(), 0.0),
        (Usage(unpriced_calls=2), None),
        (Usage(cost=0.5, unpriced_calls=2), 0.5),
        (Usage(cost=0.5), 0.5),
    ],
)
def test_a_cost_that_is_unknown_is_null(usage: Usage, cost: float | None) -> None:
    stream, shown = io.StringIO(), io.StringIO()
    view = JsonView(stream)
    view.progress(progress_of(usage=usage))
    view.summary(summary_of(usage=usage), None)
    view.estimate(CostEstimate(3, usage.cost, 3 if cost is None else 0))
    progress, summary, estimate = map(json.loads, stream.getvalue().splitlines())
    assert summary["usage"]["cost"] == estimate["cost"] == cost
    # Before the first answer it is not known whether the calls have a price.
    assert progress["usage"]["cost"] == (None if usage == Usage() else cost)
    assert summary["usage"]["unpriced_calls"] == usage.unpriced_calls
    TextView(output=Console(file=shown)).summary(summary_of(usage=usage), None)
    assert ("price unknown" in shown.getvalue()) == (cost is None)
    assert "0.0000" not in shown.getvalue()


def waiting(model: str, endpoint: str | None, since: float, next_try: float | None) -> Waiting:
    return Waiting(model, endpoint, "no connection to the server", since, next_try)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            [waiting("gpt", "http://host:8000", 40.2, 7.1)],
            ["http://host:8000: no connection to the server, since 40 s, next try in 8 s"],
        ),
        (
            [waiting("gpt", None, 1200, None)],
            ["gpt: no connection to the server, since 1,200 s, trying now"],
        ),
        (
            [waiting(model, "http://host", 9 * n, 5 + n) for n, model in enumerate("abc")],
            ["http://host: no connection to the server, since 18 s, next try in 5 s"],
        ),
        (
            [waiting(model, None, 1, 1) for model in "abcde"],
            [
                *(
                    f"{model}: no connection to the server, since 1 s, next try in 1 s"
                    for model in "abc"
                ),
                "and 2 more",
            ],
        ),
    ],
)
def test_what_a_run_waits_for(given: list[Waiting], shown: list[str]) -> None:
    texts = describe_waiting(given)
    assert [text.removeprefix("waiting for ") for text in texts] == shown


def test_what_holds_a_run_up_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = progress_of(
        waiting=(waiting(EVIL, None, 40, 8),),
        stragglers=(
            RunStraggler(6, 320.4, 4.04, custom_id="id-7"),
            RunStraggler(8, 41, 4.04, custom_id="id-9"),
        ),
    )
    waits = f"waiting for {HARMLESS}: no connection to the server, since 40 s, next try in 8 s"
    holds_up = (
        "id-7 (320 s), id-9 (41 s) take much longer than the median of 4 s: --timeout SECONDS ends "
        "such calls, --hedge p95 sends them twice"
    )
    plain = io.StringIO()
    TextView(error=Console(file=plain)).progress(progress)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal_as_stderr() as screen:
        view = TextView()
        view.progress(progress)
        view.close()
        live = screen()
    for text in (waits, holds_up):
        assert text in plain.getvalue()
        assert text in " ".join(live.split())
    assert not describe_stragglers(())


def test_that_a_run_waits_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(text_view, "time", SimpleNamespace(monotonic=lambda: now, strftime=str))
    plain = io.StringIO()
    view = TextView(error=Console(file=plain))
    waits = {"waiting": (waiting("m", None, 1, 1),)}
    expected = 0
    for seconds, fields, is_told in (
        (0.0, {}, True),
        (0.5, waits, False),
        (1.0, waits, True),
        (4.0, waits, False),
        (5.0, {}, True),
        (9.0, {}, False),
    ):
        now = 100.0 + seconds
        view.progress(progress_of(**fields))
        expected += is_told
        assert plain.getvalue().count("\n") == expected, seconds
