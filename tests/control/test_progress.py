"""Snapshots of a batch. The clock is handed in: nothing here waits for time to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.progress_values import CallbackFailed, Counts, reporter_of
from parallel_core.control.progress import Progress, ProgressReporter
from parallel_core.types import Usage


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
            rate_range=(2.0, 2.0),
            eta_range=(3.0, 3.0),
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
    now = 100.0
    for turn in range(600):
        now += pauses[turn % len(pauses)]
        reporter.tick(now)
        for window in vars(reporter)["_windows"]:
            assert len(vars(window)["_samples"]) <= 102


def test_the_range_is_that_of_the_measured_rates() -> None:
    counts = Counts()
    seen: list[Progress] = []
    reporter = reporter_of(counts, seen.append, total=1000)
    for second in range(101):
        # One a second, then two for the last minute, then four for the last ten seconds.
        counts.succeeded += 1 if second <= 40 else 2 if second <= 90 else 4
        reporter.tick(100.0 + second)
    last = seen[-1]
    whole = (last.done - 1) / 100
    assert last.rate == pytest.approx(4.0)
    assert whole < (50 * 2 + 10 * 4) / 60 < 4.0
    assert last.rate_range == pytest.approx((whole, 4.0), rel=0.01)
    left = 1000 - last.done
    assert last.eta == pytest.approx(left / 4)
    assert last.eta_range == pytest.approx((left / 4, left / last.rate_range[0]))


def test_there_is_no_range_without_an_eta() -> None:
    seen: list[Progress] = []
    counts = Counts()
    reporter = reporter_of(counts, seen.append, total=9)
    reporter.tick(101.0)
    counts.succeeded = 3
    reporter.tick(102.0)
    reporter.tick(120.0)  # nothing for ten seconds
    reporter.finish(121.0)
    assert [one.eta_range is None for one in seen] == [True, False, True, True]


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
