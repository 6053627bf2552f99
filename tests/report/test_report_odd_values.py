"""Odd statistics and odd lines are no reason to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.html_pages import Page
from helpers.report_runs import BEGIN, answer, call, printed, write_run
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, LimitStatistics, RunStatistics
from parallel_core.report import ReportError, RunReport, html_page, summarize


def test_lines_that_are_no_statistics_are_passed_over(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)], [answer("a")])
    path = RunPaths.of(output).statistics
    good = path.read_bytes()
    nonsense = [b'{"kind":"call","model":"\xff"}', b'{"z":' + b"[" * 100_000, b"\0\0", b"{}"]
    path.write_bytes(b"\n".join([*nonsense, good, *nonsense]))
    assert summarize(output).total.calls == 1


def test_numbers_that_cannot_be_are_passed_over(tmp_path: Path) -> None:
    odd = [
        call("a", 0, model="", time_to_first_chunk=-1.0, attempts=-5, prompt_tokens=-7),
        call("b", 0, model="", time_to_first_chunk=1e300, attempts=10**30),
        call("c", 0, model="", time_to_first_chunk=0.5, attempts=2, prompt_tokens=3),
    ]
    summary = summarize(write_run(tmp_path, odd, [answer(name) for name in "abc"]))
    (model,) = summary.models
    assert (model.model, model.attempts, model.prompt_tokens) == ("(none)", 2, 3)
    assert model.first_chunk is not None
    assert (model.first_chunk.count, model.first_chunk.maximum) == (1, 0.5)


@pytest.mark.parametrize(
    ("response", "error", "kind"),
    [
        (None, "a text", "error"),
        ({"status_code": 400, "body": None}, "a text", "error (400)"),
        (None, {"message": "a text"}, "error"),
        ({"status_code": 502, "body": "<html>"}, None, "HTTP (502)"),
    ],
)
def test_an_error_without_a_name_is_one(
    tmp_path: Path, response: object, error: object, kind: str
) -> None:
    line = {"custom_id": "a", "response": response, "error": error}
    assert summarize(write_run(tmp_path, [], [line])).total.failures == {kind: 1}


FLOATS = st.floats(-1e300, 1e300)


@given(
    st.lists(
        st.builds(
            CallStatistics,
            custom_id=st.sampled_from("abcd"),
            model=st.text(max_size=2),  # no "nan"
            started_at=st.one_of(FLOATS, st.floats(0, 1e-3), st.just(BEGIN)),
            duration=st.one_of(FLOATS, st.floats(0, 1e-3)),
            ok=st.booleans(),
            error=st.none() | st.text(max_size=2),
            status_code=st.none() | st.integers(-(10**6), 10**6),
            time_to_first_chunk=st.none() | FLOATS,
            prompt_tokens=st.integers(0, 10**30),
            cost=st.none() | FLOATS,
        )
        | st.builds(LimitStatistics, at=FLOATS | st.just(BEGIN), limit=st.integers(-1, 10**30)),
        max_size=8,
    )
)
def test_odd_statistics_are_no_reason_to_fail(
    tmp_path_factory: pytest.TempPathFactory, records: list[RunStatistics]
) -> None:
    output = write_run(tmp_path_factory.mktemp("run"), records, [answer("x")])
    summary = summarize(output)
    assert Page(html_page(summary)).open == []
    assert "nan" not in printed(summary)
    assert summary.total.ok + summary.total.failed == summary.total.requests


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(0, 600) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["custom_id", "response", "error", "status_code", "body", "usage", "code"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4), st.binary(max_size=6))
def test_any_file_is_reported_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[object], end: bytes
) -> None:
    output = write_run(tmp_path_factory.mktemp("run"), [], lines)
    output.write_bytes(output.read_bytes() + end)
    summary: RunReport | None = None
    refused = ""
    try:
        summary = summarize(output)
    except ReportError as error:
        refused = str(error)
    assert ("out.jsonl" in refused) == (summary is None)
    assert summary is None or 0 < summary.total.requests <= len(lines) + 1
