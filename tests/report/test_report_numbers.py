"""The numbers of a report: times, costs, failures and limits, for each model and over time."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.report_runs import BEGIN, answer, call, failure, printed, write_run
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, LimitStatistics, RunStatistics
from parallel_core.report import html_page, summarize
from parallel_core.report.call_times import EXACT_CALLS, BusyTimes, CallTimes


def test_what_calls_took_and_cost_is_added_up_for_each_model(tmp_path: Path) -> None:
    records = [
        call("a", 0, 1, prompt_tokens=10, completion_tokens=5, cached_tokens=4, cost=0.5),
        call("b", 0, 3, prompt_tokens=20, completion_tokens=6, reasoning_tokens=2, attempts=2),
        call("c", 1, 9, error="RateLimitError", status_code=429, attempts=3),
        call("d", 2, 2, error="RequestTimeoutError"),
        call("e", 5, 4, model="other", cost=2.0, time_to_first_chunk=0.25, estimated=True),
    ]
    summary = summarize(write_run(tmp_path, records))
    gpt, other = summary.models
    assert (gpt.model, gpt.requests, gpt.ok, gpt.failed, gpt.calls) == ("gpt", 4, 2, 2, 4)
    assert gpt.failures == {"RateLimitError (429)": 1, "RequestTimeoutError": 1}
    assert gpt.attempts == 7
    assert (gpt.prompt_tokens, gpt.completion_tokens) == (30, 11)
    assert (gpt.cached_tokens, gpt.reasoning_tokens) == (4, 2)
    assert (gpt.cost, gpt.unpriced_calls) == (0.5, 1)
    # Only those with an answer: 1 and 3 seconds.
    assert gpt.latency is not None
    assert (gpt.latency.count, gpt.latency.p50, gpt.latency.maximum) == (2, 2.0, 3.0)
    assert gpt.latency.p95 == pytest.approx(2.9)
    assert gpt.first_chunk is None
    assert other.first_chunk is not None
    assert other.first_chunk.p99 == 0.25
    assert (summary.total.requests, summary.total.cost) == (5, 2.5)
    assert summary.active_seconds == 10
    assert summary.total.calls_per_second == 0.5
    assert summary.peak_in_flight == 3
    assert "Calls whose tokens are estimated: 1." in summary.notes
    assert any("price is not known: 1." in note for note in summary.notes)


def test_of_a_request_that_was_tried_again_the_last_call_counts_and_all_cost(
    tmp_path: Path,
) -> None:
    records = [
        call("a", 0, error="InternalServerError", status_code=500, cost=0.25, prompt_tokens=7),
        call("b", 0, cost=1.0),
        call("a", 30, cost=0.5, prompt_tokens=7),
    ]
    total = summarize(write_run(tmp_path, records)).total
    assert (total.requests, total.ok, total.failed, total.calls) == (2, 2, 0, 3)
    assert total.failures == {}
    assert (total.cost, total.prompt_tokens) == (1.75, 14)


@pytest.mark.parametrize(
    ("calls", "active", "pauses"),
    [
        ([(0, 1), (61, 1)], 62.0, []),  # a minute is not longer than a minute
        ([(0, 1), (62, 1)], 2.0, [(1.0, 61.0)]),
        ([(0, 100), (1, 1), (90, 1)], 100.0, []),  # one call was in flight all the time
        ([(7200, 5), (0, 10), (100, 10)], 25.0, [(10.0, 90.0), (20.0, 7090.0)]),
    ],
)
def test_a_time_without_calls_does_not_count_from_a_minute_on(
    tmp_path: Path,
    calls: list[tuple[float, float]],
    active: float,
    pauses: list[tuple[float, float]],
) -> None:
    records = [call(f"{n}", begin, took) for n, (begin, took) in enumerate(calls)]
    summary = summarize(write_run(tmp_path, records))
    assert summary.active_seconds == pytest.approx(active)
    assert summary.timeline is not None
    found = [(pause.at, pause.seconds) for pause in summary.timeline.pauses]
    assert len(found) == len(pauses)
    for pause, expected in zip(found, pauses, strict=True):
        assert pause == pytest.approx(expected)
    assert summary.total.calls_per_second == pytest.approx(len(calls) / active)
    assert ("no call" in printed(summary, 200)) == bool(pauses)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1000).map(lambda value: round(value, 2)),
            st.floats(0.01, 80).map(lambda value: round(value, 2)),
            st.booleans(),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_every_call_is_somewhere_in_the_course_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[float, float, bool]]
) -> None:
    records = [
        call(f"{n}", begin, took, cost=0.5, **({} if ok else {"error": "E"}))
        for n, (begin, took, ok) in enumerate(calls)
    ]
    summary = summarize(write_run(tmp_path_factory.mktemp("run"), records))
    course = summary.timeline
    assert course is not None
    assert sum(course.ended) == len(calls)
    assert sum(course.in_flight) * course.step == pytest.approx(
        sum(took for _, took, _ in calls), abs=1e-3
    )
    assert sum(course.errors.get("E", [])) == sum(not ok for _, _, ok in calls)
    assert course.cost[-1] == pytest.approx(0.5 * len(calls))
    assert course.cost == sorted(course.cost)
    assert course.step * len(course.ended) == pytest.approx(summary.active_seconds)
    assert summary.peak_in_flight == max(
        sum(BEGIN + other <= BEGIN + begin < BEGIN + other + took for other, took, _ in calls)
        for begin, _, _ in calls
    )
    assert summary.latency is not None
    assert sum(summary.latency.ok) + sum(summary.latency.failed) == len(calls)


def test_answers_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    other = {"message": {"content": None}, "finish_reason": "length"}
    output = write_run(
        tmp_path,
        [
            call("a", 0, finish_reason="stop"),
            call("b", 0, finish_reason="length"),
            call("b", 5, finish_reason="length", without_text=True),  # the last call counts
            call("c", 0, finish_reason="content_filter", model="other"),
            call("d", 0, error="Late"),
            call("e", 0),  # of an earlier version
            call("f", 0, finish_reason="length"),  # which has no answer in the output
        ],
        [
            *map(answer, "abce"),
            failure("d"),
            failure("f"),
            answer("g", choices=[other], model="third"),  # not in the statistics
            answer("h", choices="odd", model="third"),
        ],
    )
    summary = summarize(output)
    by_model = {model.model: model for model in summary.models}
    assert by_model["gpt"].finish_reasons == {"length": 1, "stop": 1}
    assert by_model["other"].finish_reasons == {"content_filter": 1}
    assert by_model["third"].finish_reasons == {"length": 1}
    assert summary.total.finish_reasons == {"length": 2, "content_filter": 1, "stop": 1}
    assert (by_model["gpt"].without_text, summary.total.without_text) == (1, 2)
    text = printed(summary)
    assert "answers     2 cut at max_tokens, 1 filtered, 2 without text" in text
    assert re.search(r"^other +content_filter +1$", text, re.MULTILINE)
    assert re.search(r"^all +length +2$", text, re.MULTILINE)
    assert "2 cut at max_tokens" in html_page(summary)


def test_statistics_of_an_earlier_version_say_no_finish_reason(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)])
    assert b"finish" not in RunPaths.of(output).statistics.read_bytes()
    summary = summarize(output)
    assert (summary.total.finish_reasons, summary.total.without_text) == ({}, 0)
    assert "Finish reasons" not in printed(summary)


def test_the_limit_counts_by_how_long_it_held(tmp_path: Path) -> None:
    records: list[RunStatistics] = [
        LimitStatistics(at=BEGIN - 1, limit=99),  # before the first call
        LimitStatistics(at=BEGIN, limit=10),
        LimitStatistics(at=BEGIN + 20, limit=30, reason="steady latency"),
        LimitStatistics(at=BEGIN + 90, limit=20, reason="rate limited"),
        call("a", 0, 100),
    ]
    summary = summarize(write_run(tmp_path, records))
    limit = summary.limit
    assert limit is not None
    assert (limit.minimum, limit.median, limit.maximum, limit.changes) == (10, 30, 30, 2)
    assert summary.timeline is not None
    assert summary.timeline.limit == pytest.approx([10, 10, *[30] * 7, 20])
    assert "minimum 10, median 30, maximum 30; 2 changes" in printed(summary)


def test_a_limit_that_stays_is_one_number(tmp_path: Path) -> None:
    records: list[RunStatistics] = [LimitStatistics(at=BEGIN, limit=16), call("a", 0)]
    lines = printed(summarize(write_run(tmp_path, records))).splitlines()
    assert ["limit", "16"] in [line.split() for line in lines]


def test_a_request_that_was_not_sent_has_no_time(tmp_path: Path) -> None:
    never = CallStatistics(
        custom_id="never",
        model="gpt",
        started_at=0.0,
        duration=0.0,
        ok=False,
        error="BudgetExceededError",
    )
    summary = summarize(write_run(tmp_path, [call("a", 0, 2), never]))
    assert summary.active_seconds == 2
    assert (summary.total.requests, summary.total.calls) == (2, 1)
    assert summary.total.failures == {"BudgetExceededError": 1}


def peak_of_a_report(folder: Path, number: int) -> int:
    """Return the largest memory, in bytes, that a report of so many calls needs."""
    calls = (call(f"request-{n}", n / 100, 2 + n % 7, cost=0.25) for n in range(number))
    output = write_run(folder, calls)
    tracemalloc.start()
    try:
        summary = summarize(output)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.total.ok == number
    assert summary.total.cost == 0.25 * number
    assert summary.timeline is not None
    assert sum(summary.timeline.ended) == number
    assert summary.peak_in_flight == pytest.approx(503, abs=10)
    return peak


@pytest.mark.thorough
def test_the_memory_does_not_grow_with_the_calls(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = peak_of_a_report(tmp_path / "few", 15_000)
    many = peak_of_a_report(tmp_path / "many", 45_000)
    assert many < 1.2 * few


def test_times_of_more_calls_than_there_is_room_for_are_nearly_exact() -> None:
    exact, rounded = CallTimes(), CallTimes()
    number = EXACT_CALLS
    for n in range(number):
        exact.add(BEGIN + n / 8, 2.0, None, 1.0)
    assert len(exact.bins()) == number + 16  # most begin when another one ends
    for n in range(8 * number):
        rounded.add(BEGIN + n / 64, 2.0, n % 3 if n % 5 == 0 else None, 0.125)
    found = rounded.bins()
    assert 5_000 < len(found) <= 20_000
    assert sum(one.ends for _, one in found) == 8 * number
    assert sum(count for _, _, count in rounded.failures()) == -(-8 * number // 5)
    assert sum(one.cost for _, one in found) == number
    area = sum(one.end_sum - one.start_sum for _, one in found)
    assert area == pytest.approx(2.0 * 8 * number)
    assert rounded.busy.starts == exact.busy.starts == [BEGIN]


@given(
    st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 300)).map(lambda one: (one[0], sum(one))),
        min_size=1,
        max_size=30,
    )
)
def test_calls_in_any_order_have_the_same_pauses(calls: list[tuple[int, int]]) -> None:
    busy = BusyTimes()
    for start, end in calls:
        busy.add(float(start), float(end))
    expected: list[list[int]] = []
    for start, end in sorted(calls):
        if expected and start - expected[-1][1] <= 60:
            expected[-1][1] = max(expected[-1][1], end)
        else:
            expected.append([start, end])
    assert [list(one) for one in zip(busy.starts, busy.ends, strict=True)] == expected
