"""Snapshots of a batch and the bar. The clock is handed in: nothing here waits for time to pass."""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import parallel_core
from helpers.hosts import Host
from parallel_core import _progress_bar
from parallel_core._progress_bar import ProgressBar
from parallel_core.control._checks import checked_callback
from parallel_core.progress import (
    Progress,
    ProgressReporter,
    checked_progress,
)
from parallel_core.types import Usage


@dataclass
class Counts:
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    limit: int = 8
    usage: Usage = field(default_factory=Usage)


class CallbackFailed(Exception):
    pass


def reporter_of(
    counts: Counts, *callbacks: Callable[[Progress], object], total: int | None = None
) -> ProgressReporter:
    return ProgressReporter(counts, callbacks, total, started_at=100.0)


def snapshot(**changes: Any) -> Progress:
    values: dict[str, Any] = {
        "total": 10,
        "started": 6,
        "succeeded": 3,
        "failed": 1,
        "in_flight": 2,
        "elapsed": 2.0,
        "rate": 2.0,
        "token_rate": 617.0,
        "eta": 3.0,
        "usage": Usage(1000, 234, cost=0.0125),
        "limit": 8,
        "finished": False,
    }
    return Progress(**(values | changes))


# ---- the reporter


def test_a_snapshot_says_all() -> None:
    usage = Usage(5, 6, cost=0.5)
    counts = Counts(started=9, succeeded=4, failed=1, in_flight=4, limit=7, usage=usage)
    seen: list[Progress] = []
    reporter = ProgressReporter(counts, [seen.append], 15, started_at=100.0)
    counts.succeeded += 4
    reporter.tick(102.0)
    assert seen == [
        Progress(
            total=15,
            started=9,
            succeeded=8,
            failed=1,
            in_flight=4,
            elapsed=2.0,
            rate=2.0,  # of the four since the beginning
            token_rate=0.0,
            eta=3.0,
            usage=usage,
            limit=7,
            finished=False,
        )
    ]
    assert seen[0].done == 9


def test_without_a_start_the_first_tick_is_the_start() -> None:
    seen: list[Progress] = []
    reporter = ProgressReporter(Counts(), [seen.append], None)
    reporter.tick(50.0)
    reporter.tick(52.5)
    assert [progress.elapsed for progress in seen] == [0.0, 2.5]


@pytest.mark.parametrize(
    "change",
    [
        {"started": 1},
        {"succeeded": 1},
        {"failed": 1},
        {"in_flight": 1},
        {"limit": 9},
        {"usage": Usage(1)},
    ],
    ids=str,
)
def test_a_tick_tells_only_what_is_new(change: dict[str, Any]) -> None:
    counts = Counts()
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append)
    reporter.tick(100.0)  # the first one always
    reporter.tick(100.5)
    assert len(seen) == 1
    for name, value in change.items():
        setattr(counts, name, value)
    reporter.tick(100.625)
    reporter.tick(100.75)
    assert [progress.elapsed for progress in seen] == [0.0, 0.625]


def test_a_tick_tells_after_a_second_of_silence() -> None:
    seen: list[Progress] = []
    reporter = reporter_of(Counts(), seen.append)
    for now in (100.0, 100.75, 101.0, 101.75, 102.25):
        reporter.tick(now)
    assert [progress.elapsed for progress in seen] == [0.0, 1.0, 2.25]


def test_finish_always_tells_once_and_is_the_last() -> None:
    counts = Counts()
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append)
    reporter.tick(100.0)
    reporter.finish(100.0)
    counts.started = 5
    reporter.finish(101.0)
    reporter.tick(110.0)
    assert [progress.finished for progress in seen] == [False, True]


def test_finish_tells_also_where_nothing_ran() -> None:
    seen: list[Progress] = []
    ProgressReporter(Counts(), [seen.append], 0).finish(7.0)
    [last] = seen
    assert (last.finished, last.elapsed, last.rate, last.eta) == (True, 0.0, 0.0, 0.0)


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    counts = Counts()
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append, total=1000)
    for second in range(1, 31):
        counts.succeeded += 10 if second <= 15 else 2
        counts.usage += Usage(300, 200) if second <= 15 else Usage(60, 40)
        reporter.tick(100.0 + second)
    rates = [progress.rate for progress in seen]
    assert [progress.token_rate for progress in seen] == pytest.approx([50 * r for r in rates])
    assert rates[:15] == [10.0] * 15
    assert rates[19] == 6.0  # five seconds of each
    assert rates[24:] == [2.0] * 6
    assert seen[-1].eta == (1000 - 180) / 2


def test_the_rate_falls_to_nothing_when_nothing_finishes_any_more() -> None:
    counts = Counts(succeeded=0)
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append, total=10)
    counts.succeeded = 5
    for second in range(1, 13):
        reporter.tick(100.0 + second)
    assert (seen[4].rate, seen[4].eta) == (1.0, 5.0)
    assert (seen[-1].rate, seen[-1].eta) == (0.0, None)


@pytest.mark.parametrize(
    ("total", "done", "finished", "eta"),
    [
        (None, 4, False, None),
        (None, 4, True, None),
        (8, 0, False, None),
        (8, 4, False, 2.0),
        (8, 4, True, None),  # it has ended early
        (8, 8, False, 0.0),
        (8, 8, True, 0.0),
        (0, 0, False, 0.0),
    ],
)
def test_eta(total: int | None, done: int, finished: bool, eta: float | None) -> None:
    counts = Counts()
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append, total=total)
    counts.failed = done
    (reporter.finish if finished else reporter.tick)(102.0)
    assert seen[0].eta == eta


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5)), max_size=60),
    total=st.none() | st.integers(0, 100),
)
def test_the_figures_fit_together(steps: list[tuple[float, int]], total: int | None) -> None:
    counts = Counts()
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append, total=total)
    now = 100.0
    for seconds, calls in steps:
        now += seconds
        counts.succeeded += calls
        reporter.tick(now)
    reporter.finish(now)
    assert [progress.finished for progress in seen] == [False] * (len(seen) - 1) + [True]
    for progress in seen:
        assert progress.rate >= 0
        if total is None:
            assert progress.eta is None
        elif progress.done >= total:
            assert progress.eta == 0
        elif progress.eta is not None:
            assert progress.eta * progress.rate == pytest.approx(total - progress.done)
        else:
            assert progress.finished or progress.rate == 0


@given(st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.3, 1.0]), min_size=1, max_size=20))
def test_memory_is_bounded(pauses: list[float]) -> None:
    reporter = reporter_of(Counts())
    samples: Any = vars(reporter)["_samples"]
    now = 100.0
    for turn in range(600):
        now += pauses[turn % len(pauses)]
        reporter.tick(now)
        assert len(samples) <= 102


def test_a_callback_that_raises_is_not_called_again_and_the_others_are() -> None:
    told: list[str] = []
    error = CallbackFailed()

    def failing(_: Progress) -> None:
        told.append("failing")
        raise error

    def other(progress: Progress) -> None:
        told.append("last" if progress.finished else "other")

    reporter = reporter_of(Counts(), failing, other)
    with pytest.raises(CallbackFailed) as caught:
        reporter.tick(100.0)
    assert caught.value is error
    reporter.finish(101.0)
    assert told == ["failing", "other", "last"]


def test_the_first_error_comes_out_but_not_before_an_interrupt() -> None:
    def raising(error: BaseException) -> Callable[[Progress], object]:
        def callback(_: Progress) -> None:
            raise error

        return callback

    first, second, interrupt = CallbackFailed(1), CallbackFailed(2), KeyboardInterrupt()
    seen: list[Progress] = []
    with pytest.raises(CallbackFailed) as caught:
        reporter_of(Counts(), raising(first), raising(second), seen.append).finish(100.0)
    assert caught.value is first
    with pytest.raises(KeyboardInterrupt) as interrupted:
        reporter_of(Counts(), raising(first), raising(interrupt), seen.append).finish(100.0)
    assert interrupted.value is interrupt
    assert len(seen) == 2


# ---- the options


@pytest.mark.parametrize("value", [True, False])
def test_progress_is_a_bool(value: bool) -> None:
    assert checked_progress(value) is value


@pytest.mark.parametrize("value", [1, 0, None, "yes", print])
def test_progress_is_nothing_else(value: object) -> None:
    with pytest.raises(TypeError, match="progress must be True or False, not "):
        checked_progress(value)


async def async_function(_: Progress) -> None:
    pass


async def async_generator(_: Progress) -> Any:
    yield


class AsyncCallable:
    async def __call__(self, _: Progress) -> None:
        pass


@pytest.mark.parametrize(
    "value",
    [
        None,
        "print",
        async_function,
        async_generator,
        AsyncCallable(),
        functools.partial(async_function),
    ],
    ids=["none", "text", "async function", "async generator", "async callable", "partial"],
)
def test_on_progress_is_a_plain_function(value: object) -> None:
    with pytest.raises(TypeError, match="on_progress must be a plain function"):
        checked_callback("on_progress", value)


def test_a_callback_is_called() -> None:
    seen: list[Progress] = []

    def plain(progress: Progress) -> str:
        seen.append(progress)
        return "returned"

    callback = checked_callback("on_progress", plain)
    given_one = snapshot()
    assert callback(given_one) == "returned"
    assert seen == [given_one]


def test_a_returned_coroutine_is_closed_and_refused() -> None:
    made: list[Any] = []

    def callback(progress: Progress) -> object:
        made.append(async_function(progress))
        return made[-1]

    reporter = reporter_of(Counts(), checked_callback("on_progress", callback))
    with pytest.raises(TypeError, match="it has returned coroutine, which"):
        reporter.tick(100.0)
    assert made[0].cr_frame is None  # closed


def test_a_returned_awaitable_without_close_is_refused() -> None:
    class Awaitable:
        def __await__(self) -> Iterator[None]:
            return iter(())

    def callback(_: Progress) -> Awaitable:
        return Awaitable()

    with pytest.raises(TypeError, match=r"it has returned .*Awaitable, which"):
        checked_callback("on_progress", callback)(snapshot())


# ---- the bar


class Terminal(io.StringIO):
    """Something that says it is a terminal, and may break."""

    broken = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if self.broken:
            raise OSError("the terminal has hung up")
        return super().write(text)


HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
REWRITE = re.compile(r"\r?\x1b\[[0-9;?]*[A-Za-z]")


def console_on(terminal: io.StringIO, width: int = 140) -> Console:
    return Console(
        file=terminal,
        force_terminal=True,
        force_interactive=True,
        color_system=None,
        width=width,
        height=40,
        legacy_windows=False,
    )


def rows(text: str) -> list[str]:
    """What has been drawn, row by row: each drawing of a row is one."""
    plain = REWRITE.sub("\n", COLOUR.sub("", text)).replace("\r", "\n")
    return [" ".join(line.split()) for line in plain.split("\n") if line.strip()]


@pytest.fixture(autouse=True)
def nothing_stays_on_a_terminal() -> Iterator[None]:
    streams = sys.stdout, sys.stderr
    yield
    assert vars(_progress_bar)["_displays"] == {}
    assert (sys.stdout, sys.stderr) == streams


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
    assert half.startswith("━" * 8 + " ")
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

    def interrupted(_: Progress) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(_progress_bar, "_figures", interrupted)
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


def test_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[object] = []
    cleared: list[bool] = []

    class Output:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def clear_output(self, *, wait: bool) -> None:
            cleared.append(wait)

    for name, value in {"IPython": {}, "ipywidgets": {"Output": Output}}.items():
        module = types.ModuleType(name)
        vars(module).update(value)
        monkeypatch.setitem(sys.modules, name, module)
    module = types.ModuleType("IPython.display")
    vars(module)["display"] = displayed.append
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    bar = ProgressBar(Console(file=io.StringIO(), force_jupyter=True))
    assert not bar.quiet
    bar(snapshot())
    bar(snapshot(succeeded=9, finished=True))
    assert isinstance(displayed[0], Output)
    shown = [str(getattr(one, "text", "")) for one in displayed]
    assert any("10/10" in text and "in 0:02" in text for text in shown)
    assert cleared
    assert all(cleared)


# ---- in a process of its own

SCRIPT = """
import sys
from parallel_core._progress_bar import ProgressBar
from parallel_core.progress import Progress
from parallel_core.types import Usage

def snapshot(done, finished=False):
    return Progress(total=9, started=done, succeeded=done, failed=0, in_flight=0, elapsed=1.0,
                    rate=1.0, token_rate=0.0, eta=1.0, usage=Usage(), limit=1, finished=finished)

bar, other = ProgressBar(), None
bar(snapshot(1))
print("printed to stdout")
print("printed to stderr", file=sys.stderr)
other = ProgressBar()  # while stderr is redirected
other(snapshot(7))
print("without an end", end="")
other(snapshot(8, finished=True))
bar(snapshot(9, finished=True))
print("afterwards")
"""

ENVIRONMENT = {"TERM": "xterm", "COLUMNS": "120", "LINES": "30", "PYTHONWARNINGS": "error"}


def environment() -> dict[str, str]:
    unwanted = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | ENVIRONMENT


def run_on_a_terminal(*, pipe_stdout: bool) -> tuple[str, str]:
    """What appears on the terminal, and what comes out of the pipe."""
    pty = pytest.importorskip("pty")  # not on Windows
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipe_stdout else slave,
        stderr=slave,
        env=environment(),
    )
    os.close(slave)
    shown = b""
    with open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 - it is a descriptor
        while True:
            try:
                part = terminal.read(65536)
            except OSError:  # how Linux says that nobody has it open any more
                break
            if not part:
                break
            shown += part
    piped, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    return shown.decode(), (piped or b"").decode()


def test_on_a_terminal() -> None:
    shown, _ = run_on_a_terminal(pipe_stdout=False)
    assert (shown.count(HIDE_CURSOR), shown.count(SHOW_CURSOR)) == (1, 1)
    for text in ("printed to stdout", "printed to stderr", "without an end", "afterwards"):
        assert shown.count(text) == 1
    before_the_end, after_the_end = shown.split(SHOW_CURSOR)
    assert rows(after_the_end) == ["afterwards"]
    lines = rows(before_the_end)
    assert "9/9 9 ok" in lines[-1]
    # Above the bar: it is drawn again below what has been printed.
    for text in ("printed to stdout", "printed to stderr"):
        assert "1/9 1 ok" in lines[lines.index(text) + 1]


def test_results_that_are_piped_go_on_into_the_pipe() -> None:
    shown, piped = run_on_a_terminal(pipe_stdout=True)
    assert piped.splitlines() == ["printed to stdout", "without an endafterwards"]
    assert "printed to stdout" not in shown
    assert shown.count("printed to stderr") == 1
    assert "9/9 9 ok" in rows(shown)[-1]


def test_in_a_pipe() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment() | {"FORCE_COLOR": "1"},
        timeout=60,
        check=True,
    )
    assert run.stderr == "printed to stderr\n"


def test_rich_is_imported_only_for_a_bar() -> None:
    # A part of the package is enough: what the others import is not asked here.
    script = dedent("""
        import sys, types
        package = types.ModuleType("parallel_core")
        package.__path__ = [sys.argv[1]]
        sys.modules["parallel_core"] = package
        import parallel_core._progress_bar, parallel_core.progress
        assert not any(name.split(".")[0] == "rich" for name in sys.modules)
        parallel_core._progress_bar.ProgressBar()
        assert "rich.console" in sys.modules
    """)
    directory = os.path.dirname(_progress_bar.__file__)  # noqa: PTH120
    subprocess.run([sys.executable, "-c", script, directory], check=True, timeout=60)


# ---- through the engine


async def answer(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return item


@pytest.mark.parametrize("amount", [0, 5])
def test_a_batch_ends_with_exactly_one_last_snapshot(host: Host, amount: int) -> None:
    async def main() -> None:
        seen: list[Progress] = []
        await parallel_core.parallel_map(answer, range(amount), on_progress=seen.append)
        assert [one.finished for one in seen] == [False] * (len(seen) - 1) + [True]
        last = seen[-1]
        assert (last.started, last.succeeded, last.failed, last.in_flight) == (amount, amount, 0, 0)
        assert (last.total, last.eta, last.limit) == (amount, 0.0, 8)

    host.run(main)


def test_a_batch_is_told_of_at_a_bounded_rate() -> None:
    async def call(item: int) -> None:
        await trio.sleep(0.01)

    async def main() -> None:
        seen: list[Progress] = []
        await parallel_core.parallel_map(call, range(800), on_progress=seen.append)
        assert seen[-1].elapsed == pytest.approx(1.0)
        assert len(seen) <= 12
        assert seen[0].elapsed == 0
        gaps = [later.elapsed - one.elapsed for one, later in itertools.pairwise(seen[:-1])]
        assert min(gaps) > 0.0999

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_callback_that_raises_fails_the_batch(host: Host, fail_fast: bool, last: bool) -> None:
    error = CallbackFailed()
    ended: list[int] = []
    seen: list[Progress] = []

    def callback(progress: Progress) -> None:
        seen.append(progress)
        if progress.finished or not last:
            raise error

    async def call(item: int) -> int:
        try:
            await (anyio.lowlevel.checkpoint() if last else anyio.sleep_forever())
        finally:
            ended.append(item)
        return item

    async def main() -> None:
        with pytest.raises(CallbackFailed) as caught:
            await parallel_core.parallel_map(
                call, range(3), return_exceptions=not fail_fast, on_progress=callback
            )
        assert caught.value is error
        assert error.__context__ is None
        assert len(seen) == (len(seen) if last else 1)
        assert [one.finished for one in seen[:-1]] == [False] * (len(seen) - 1)

    host.run(main)


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "aclose"])
def test_what_the_last_callback_raises_comes_out_of_a_batch_that_is_left(
    host: Host, way: str
) -> None:
    error = CallbackFailed()

    def callback(progress: Progress) -> None:
        if progress.finished:
            raise error

    async def call(item: int) -> int:
        if item:
            await anyio.sleep_forever()
        return item

    async def main() -> None:
        own = LookupError()
        with pytest.raises(LookupError if way == "raise" else CallbackFailed) as caught:
            async with parallel_core.iter_parallel_map(
                call, range(3), on_progress=callback
            ) as batch:
                async for _ in batch:
                    if way == "raise":
                        raise own
                    if way == "aclose":
                        await batch.aclose()
                    if way == "cancel":
                        batch.cancel()
                    else:
                        break
        if way == "raise":
            assert "then its batch failed to end: CallbackFailed" in own.__notes__[0]
        else:
            assert caught.value is error

    host.run(main)


@pytest.mark.parametrize("way", ["break", "fail fast", "cancel", "interrupt"])
def test_the_bar_is_closed_in_every_way(
    host: Host, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "interrupt" and host.library == "asyncio":
        pytest.skip("SystemExit of a task ends its loop")
    terminal = Terminal()
    monkeypatch.setattr(_progress_bar, "_stderr_console", lambda: console_on(terminal))
    seen: list[Progress] = []

    async def call(item: int) -> int:
        if item:
            await anyio.sleep_forever()
        await anyio.sleep(0.005)
        if way == "fail fast":
            raise CallbackFailed
        if way == "interrupt":
            raise SystemExit
        return item

    async def batch_of(scope: anyio.CancelScope | None = None) -> None:
        async with parallel_core.iter_parallel_map(
            call,
            range(3),
            return_exceptions=way != "fail fast",
            progress=True,
            on_progress=seen.append,
        ) as batch:
            async for _ in batch:
                if way == "break":
                    break
                if scope is not None:
                    scope.cancel()

    async def main() -> None:
        if way == "cancel":
            with anyio.CancelScope() as scope:
                await batch_of(scope)
        elif way == "break":
            await batch_of()
        else:
            with pytest.raises((CallbackFailed, SystemExit)):
                await batch_of()

    host.run(main)
    assert [one.finished for one in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].in_flight == 0
    assert (terminal.getvalue().count(HIDE_CURSOR), terminal.getvalue().count(SHOW_CURSOR)) == (
        1,
        1,
    )


def test_several_batches_at_once_on_one_terminal(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(_progress_bar, "_stderr_console", lambda: console_on(terminal))

    async def batch_of(amount: int) -> None:
        await parallel_core.parallel_map(answer, range(amount), progress=True)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for amount in (11, 22, 33):
                tasks.start_soon(batch_of, amount)

    host.run(main)
    ended = {row.split()[1] for row in rows(terminal.getvalue()) if " in 0:0" in row}
    assert ended == {"11/11", "22/22", "33/33"}
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_the_package_imports_no_rich() -> None:
    script = "import parallel_core, sys; assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
