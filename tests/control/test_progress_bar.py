"""The bar on a terminal."""

from __future__ import annotations

import io
import sys
import threading
from typing import Any

import pytest

from helpers.progress_values import (
    HIDE_CURSOR,
    SHOW_CURSOR,
    CallbackFailed,
    Counts,
    Terminal,
    console_on,
    reporter_of,
    rows,
    snapshot,
)
from parallel_core.control import progress_bar
from parallel_core.control.progress import Progress
from parallel_core.control.progress_bar import ProgressBar
from parallel_core.types import Usage

pytestmark = pytest.mark.usefixtures("nothing_stays_on_a_terminal")


def test_a_row_shows_the_figures_and_stays_in_its_final_state() -> None:
    terminal = Terminal()
    bar = ProgressBar(console_on(terminal, width=100))
    bar(snapshot())
    drawn = rows(terminal.getvalue())[-1]
    assert drawn == "4/10 3 ok 1 failed 2 in flight 2.0/s 1.2k tokens 617 tok/s $0.0125 ETA 0:03"
    assert terminal.getvalue().count(HIDE_CURSOR) == 1
    assert SHOW_CURSOR not in terminal.getvalue()
    bar(snapshot(succeeded=9, in_flight=0, elapsed=4000.0, eta=0.0, finished=True))
    assert terminal.getvalue().endswith("\n" + SHOW_CURSOR)
    last = rows(terminal.getvalue())[-1]
    assert last == "10/10 9 ok 1 failed 0 in flight 0.0/s 1.2k tokens 0 tok/s $0.0125 in 1:06:40"


def test_all_figures_fit_on_eighty_columns() -> None:
    terminal = Terminal()
    bar = ProgressBar(console_on(terminal, width=80))
    bar(snapshot(total=100000, succeeded=1199, failed=34, in_flight=64, rate=123.4, eta=900.0))
    drawn = rows(terminal.getvalue())[-1]
    bar.close()
    assert drawn == (
        "1233/100000 1199 ok 34 failed 64 in flight 123.4/s 1.2k tokens $0.0125 ETA 15:00"
    )


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"total": None, "eta": None, "elapsed": 61.0}, "4 3 ok"),
        ({"total": None, "eta": None, "elapsed": 61.0}, "tok/s $0.0125 1:01"),
        ({"eta": None, "rate": 0.0}, "0.0/s 1.2k tokens 617 tok/s $0.0125 ETA -:--"),
        ({"usage": Usage(999), "token_rate": 12_345.6}, "999 tokens 12.3k tok/s ETA"),
        ({"usage": Usage(), "token_rate": 0.0}, "0 tokens ETA"),
        ({"usage": Usage(999_949)}, "999.9k tokens"),
        ({"usage": Usage(999_950)}, "1.0M tokens"),
        ({"usage": Usage(5_000_000_000)}, "5.0B tokens"),
        ({"usage": Usage(cost=1234.5)}, "$1,234.50 ETA"),
        ({"finished": True}, "2.0/s 1.2k tokens 617 tok/s $0.0125 in 0:02"),  # 4 in 2 s
        ({"finished": True, "rate": 99.0, "elapsed": 8.0}, "0.5/s"),
        ({"finished": True, "token_rate": 99.0, "elapsed": 1.0}, "1.2k tok/s"),
        ({"finished": True, "elapsed": 0.0}, "0.0/s"),
    ],
    ids=str,
)
def test_figures(changes: dict[str, Any], shown: str) -> None:
    terminal = Terminal()
    bar = ProgressBar(console_on(terminal, width=100))
    bar(snapshot(**changes))
    bar.close()
    assert shown in rows(terminal.getvalue())[-1]


def test_a_wide_terminal_has_a_bar_that_fills() -> None:
    terminal = Terminal()
    bar = ProgressBar(console_on(terminal))
    bar(snapshot(total=8))
    half = rows(terminal.getvalue())[-1]
    bar(snapshot(total=None, finished=True))  # of an unknown length, and full in the end
    full = rows(terminal.getvalue())[-1]
    assert half.startswith("━" * 8 + "─" * 8 + " ")
    assert full.startswith("━" * 16 + " 4 3 ok")


def test_several_batches_share_the_terminal() -> None:
    terminal = Terminal()
    first, second = ProgressBar(console_on(terminal)), ProgressBar(console_on(terminal))
    first(snapshot(total=11))
    second(snapshot(total=22))
    assert [row.split()[1] for row in rows(terminal.getvalue())[-2:]] == ["4/11", "4/22"]
    drawn_before = len(rows(terminal.getvalue()))
    first(snapshot(total=11, finished=True))
    assert SHOW_CURSOR not in terminal.getvalue()
    # Once more in its place, then above the display, and then it is no part of that any more.
    drawn = [row.split()[1] for row in rows(terminal.getvalue())[drawn_before:]]
    assert drawn == ["4/11", "4/22", "4/11", "4/11", "4/22", "4/22"]
    drawn_before = len(rows(terminal.getvalue()))
    second(snapshot(total=22, succeeded=4))
    assert [row.split()[1] for row in rows(terminal.getvalue())[drawn_before:]] == ["5/22"]
    second(snapshot(total=22, succeeded=5, finished=True))
    assert terminal.getvalue().count(HIDE_CURSOR) == 1
    assert terminal.getvalue().endswith("\n" + SHOW_CURSOR)
    assert rows(terminal.getvalue())[-1].split()[1] == "6/22"


def test_a_nested_batch_may_end_last() -> None:
    terminal = Terminal()
    outer, inner = ProgressBar(console_on(terminal)), ProgressBar(console_on(terminal))
    outer(snapshot(total=11))
    inner(snapshot(total=22, finished=True))  # never seen unfinished
    assert SHOW_CURSOR not in terminal.getvalue()
    outer(snapshot(total=11, finished=True))
    assert terminal.getvalue().count(SHOW_CURSOR) == 1


def test_batches_in_several_threads() -> None:
    terminal = Terminal()
    everybody = threading.Barrier(4)

    def batch(total: int) -> None:
        bar = ProgressBar(console_on(terminal))
        bar(snapshot(total=total))
        everybody.wait(10)  # all are on the terminal now
        for _ in range(20):
            bar(snapshot(total=total))
        bar(snapshot(total=total, finished=True))

    threads = [threading.Thread(target=batch, args=(100 + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    text = terminal.getvalue()
    assert (text.count(HIDE_CURSOR), text.count(SHOW_CURSOR)) == (1, 1)
    ended = [row.split()[1] for row in rows(text) if row.endswith("in 0:02")]
    assert set(ended) == {"4/100", "4/101", "4/102", "4/103"}


def test_only_one_thread_draws_at_a_time() -> None:
    terminal = Terminal()
    first, second = ProgressBar(console_on(terminal)), ProgressBar(console_on(terminal))
    thread = threading.Thread(target=second, args=(snapshot(total=22),))
    write = terminal.write
    waited: list[bool] = []

    def first_write(text: str, /) -> int:
        terminal.write = write  # type: ignore[method-assign]
        thread.start()
        thread.join(0.2)
        waited.append(thread.is_alive())
        return write(text)

    terminal.write = first_write  # type: ignore[method-assign]
    first(snapshot(total=11))
    thread.join(30)
    first.close()
    second.close()
    assert waited == [True]
    assert terminal.getvalue().count(HIDE_CURSOR) == 1


def test_closing_again_leaves_the_others_alone() -> None:
    terminal = Terminal()
    first, second = ProgressBar(console_on(terminal)), ProgressBar(console_on(terminal))
    first(snapshot())
    second(snapshot())
    first.close()
    first.close()
    assert SHOW_CURSOR not in terminal.getvalue()
    second.close()
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_a_bar_closes_once() -> None:
    terminal = Terminal()
    bar = ProgressBar(console_on(terminal))
    bar.close()  # it has never been drawn
    assert terminal.getvalue() == ""
    bar(snapshot())
    bar.close()
    bar.close()
    text = terminal.getvalue()
    bar(snapshot(succeeded=7, finished=True))
    assert terminal.getvalue() == text
    assert text.count(SHOW_CURSOR) == 1


@pytest.mark.parametrize("others", [0, 1])
def test_a_broken_terminal_is_no_error(others: int) -> None:
    terminal = Terminal()
    bars = [ProgressBar(console_on(terminal)) for _ in range(1 + others)]
    for bar in bars:
        bar(snapshot())
    terminal.broken = True
    for bar in bars:
        bar(snapshot(succeeded=4))
    assert all(bar.quiet for bar in bars)
    for bar in bars:
        bar(snapshot(finished=True))


def test_a_bar_that_cannot_begin_leaves_the_others_alone() -> None:
    terminal = Terminal()
    first, second = ProgressBar(console_on(terminal)), ProgressBar(console_on(terminal))
    first(snapshot(total=11))
    terminal.broken = True
    second(snapshot(total=22))
    assert second.quiet
    terminal.broken = False
    first(snapshot(total=11, succeeded=5))
    assert rows(terminal.getvalue())[-1].split()[1] == "6/11"
    first(snapshot(total=11, succeeded=5, finished=True))
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_an_interrupt_while_drawing_closes_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    bar = ProgressBar(console_on(terminal))
    bar(snapshot())

    def interrupted(_: Progress) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress_bar, "row_figures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bar(snapshot(succeeded=4))
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_a_failing_callback_leaves_no_bar() -> None:
    terminal = Terminal()

    def failing(_: Progress) -> None:
        raise CallbackFailed

    reporter = reporter_of(Counts(), failing, ProgressBar(console_on(terminal)), total=5)
    with pytest.raises(CallbackFailed):
        reporter.tick(100.0)
    reporter.finish(103.0)
    assert rows(terminal.getvalue())[-1].endswith("in 0:03")
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_it_draws_on_stderr_as_it_was_when_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    then, now = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", then)
    bar = ProgressBar()
    monkeypatch.setattr(sys, "stderr", now)
    bar(snapshot(finished=True))
    assert "3 ok" in then.getvalue()
    assert now.getvalue() == ""
    monkeypatch.undo()


@pytest.mark.parametrize("colours", ["", "1"])
def test_it_is_quiet_without_a_terminal(monkeypatch: pytest.MonkeyPatch, colours: str) -> None:
    monkeypatch.setenv("FORCE_COLOR", colours)
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = ProgressBar()
        assert bar.quiet
        bar(snapshot())
        bar(snapshot(finished=True))
        assert stream is None or stream.getvalue() == ""
    monkeypatch.undo()
