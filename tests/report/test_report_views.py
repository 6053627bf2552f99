"""The table, the page and the pictures of a report."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.html_pages import Page
from helpers.report_runs import (
    BEGIN,
    NASTY,
    answer,
    app,
    call,
    example_run,
    failure,
    invoke,
    nasty_run,
    printed,
    write_run,
)
from parallel_core.journal import BeginStatistics, EndStatistics, RunStatistics, WaitStatistics
from parallel_core.report import html_page, png, summarize, write_pictures
from parallel_core.report.axes import linear_axis, log_axis, time_axis
from parallel_core.report.charts import charts_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "report.md"


def test_a_cost_that_nobody_knows_is_no_zero(tmp_path: Path) -> None:
    records = [call("a", 0, model="free", cost=0.0), call("b", 0, model="unknown")]
    records += [call("c", 0, model="dear", cost=0.5), call("d", 0, model="dear")]
    lines = printed(summarize(write_run(tmp_path, records))).splitlines()
    rows = [line.split() for line in lines[lines.index("Cost") :]]
    assert ["free", "0.00", "0.00", "0"] in rows
    assert ["unknown", "unknown", "-", "1"] in rows
    assert ["dear", "0.5000", "250.00", "1"] in rows


def test_the_table_of_millions_fits_into_80_columns(tmp_path: Path) -> None:
    million = 1_000_000
    records = [
        call(
            f"{n}",
            n,
            100_000,
            model=model,
            prompt_tokens=400 * million,
            cached_tokens=300 * million,
            completion_tokens=500 * million,
            reasoning_tokens=200 * million,
            cost=12_345.0,
            time_to_first_chunk=0.5,
        )
        for n, model in enumerate(("anthropic/claude-sonnet-4-5-20250929", "gpt-4o-mini"))
    ]
    text = printed(summarize(write_run(tmp_path, records)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "800,000,000" in text
    assert "…" not in text
    assert "24,690.00" in text


def test_names_are_no_markup_and_obey_no_terminal(tmp_path: Path) -> None:
    records = [call("a", 0, model="[red]x[/red]"), call("b", 0, model="y\x1b[31m\n", error="[/]")]
    text = printed(summarize(write_run(tmp_path, records)))
    assert "[red]x[/red]" in text
    assert "y\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}" in text
    assert "[/]" in text
    assert "\x1b" not in text


def test_of_endlessly_many_names_the_later_ones_are_one(tmp_path: Path) -> None:
    records = [call(f"{n}", 0, error=f"Kind{n}", model=f"m{n}" * 99) for n in range(1500)]
    summary = summarize(write_run(tmp_path, records))
    assert len(summary.models) == 1001
    assert summary.models[0].model == "other models"
    assert summary.models[0].requests == 500
    assert max(len(model.model) for model in summary.models) == 120
    assert summary.total.failures["other failures"] == 1400


def test_the_example_of_the_documentation_is_what_is_printed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(example_run(tmp_path))], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    text = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    (shown,) = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    tables = text.split("\n\n")
    assert shown.rstrip("\n").split("\n\n") == tables[:-3]
    assert [table.split("\n")[0] for table in tables[-3:]] == [
        *("Time to the first chunk, seconds", "Tokens", "Cost"),
    ]


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    text = html_page(summarize(nasty_run(tmp_path)))
    page = Page(text)
    assert page.open == []
    assert NASTY in page.text
    for tag in ("img", "link", "iframe", "object", "a", "image", "use"):
        assert page.count(tag) == 0, tag
    names = {name for _, attributes in page.elements for name in attributes}
    assert not any(name.startswith("on") or name in ("src", "href", "style") for name in names)
    assert not re.search(r"https?:|url\(|@import|//", text)
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in page.elements
        if tag == "meta" and "http-equiv" in attributes
    ]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "connect-src" not in policy
    assert "prefers-color-scheme: dark" in text


def test_the_only_script_of_the_page_is_its_own(tmp_path: Path) -> None:
    text = html_page(summarize(nasty_run(tmp_path)))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)
    (folder := tmp_path / "other").mkdir()
    assert f"<script>{script}</script>" in html_page(summarize(example_run(folder)))


def test_requests_are_listed_by_id_without_their_contents(tmp_path: Path) -> None:
    text = "the answer itself"
    records = [
        *(call(f"ok-{n}", n, n / 4, attempts=n) for n in range(1, 40)),
        *(call(f"late-{n}", n, 30, error="E", failure_kind="timeout") for n in range(90)),
        *(call(f"limited-{n}", n, 1, error="E", failure_kind="overloaded") for n in range(80)),
        call("refused", 1, 1, error="E", failure_kind="account", status_code=401),
        call("small-1", 3, 2, model="small"),
    ]
    lines: list[object] = [
        answer(one.custom_id, choices=[{"message": {"content": text}}])
        if one.ok
        else failure(one.custom_id)
        for one in records
    ]
    summary = summarize(write_run(tmp_path, records, lines))
    page = html_page(summary)
    assert text not in page
    assert len(summary.failed) == 100
    kinds = Counter(one.kind for one in summary.failed)
    assert kinds == {"timeout": 50, "overloaded": 49, "account (401)": 1}
    assert "100 of 171, of each kind some." in page
    slowest = [(one.custom_id, one.model, one.kind) for one in summary.slowest]
    assert slowest[:2] == [("late-0", "gpt", "timeout"), ("late-1", "gpt", "timeout")]
    assert slowest[-1] == ("small-1", "small", "")
    assert len(slowest) == 11


def test_waits_are_on_the_axis_of_time(tmp_path: Path) -> None:
    records: list[RunStatistics] = [
        BeginStatistics(at=BEGIN, total=20),
        *(call(f"{n}", n, 1) for n in range(10)),
        WaitStatistics(at=BEGIN + 2, model="gpt", reason="503 down"),
        WaitStatistics(at=BEGIN + 2, model="gpt", reason="503 down", seconds=3.0),
        WaitStatistics(at=BEGIN + 8, model=None, reason=NASTY),  # until the run was killed
        BeginStatistics(at=BEGIN + 1000, total=20),
        *(call(f"later-{n}", 1000 + n, 1) for n in range(10)),
        EndStatistics(at=BEGIN + 1011, ending="complete"),
    ]
    summary = summarize(write_run(tmp_path, records))
    first, second = summary.waits
    assert (first.model, first.reason, first.seconds) == ("gpt", "503 down", 3.0)
    assert (first.at, first.until) == (2.0, 5.0)
    assert (second.model, second.seconds) == ("unknown", None)
    assert (second.at, second.until) == (8.0, 10.0)  # the pause is left out
    assert (summary.expected, summary.ending) == (20, "complete")
    page = Page(html_page(summary))
    assert page.text.count("no call of gpt got through for 3 s: 503 down") == 2
    assert "waits       2, together 3 s, and 1 without a recorded end" in printed(summary)


def test_the_page_can_be_read_aloud(tmp_path: Path) -> None:
    page = Page(html_page(summarize(example_run(tmp_path))))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    assert len(charts) == 5 == page.count("figure") == page.count("desc")
    for attributes in charts:
        for name in (attributes["aria-labelledby"] or "").split():
            assert name in ids
    assert {a.get("scope") for tag, a in page.elements if tag == "th"} == {"col", "row"}
    assert ("html", {"lang": "en"}) in page.elements
    assert "a pause of 1 h 01 min" in page.text


@pytest.mark.thorough  # imports matplotlib
def test_pictures_are_drawn_by_matplotlib(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = invoke(nasty_run(tmp_path), "--png", tmp_path / "a" / "b")
    assert done.exit_code == 0, done.stderr
    names = {path.name: path for path in (tmp_path / "a" / "b").iterdir()}
    assert set(names) == {f"{n}.png" for n in ("throughput", "latency", "errors", "cost", "limit")}
    for path in names.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"{path}" in done.stdout.replace("\n", "")


def test_the_names_of_colors_hide_no_bars(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    records = [call(f"{n}", n, error=f"A rather long name of a failure {n % 6}") for n in range(60)]
    summary = summarize(write_run(tmp_path, records))
    (chart,) = (chart for chart in charts_of(summary) if chart.name == "errors")
    figure: Any = figures.Figure(figsize=(8, 4.2), layout="constrained")
    png.draw(figure, [chart])
    (axes,) = figure.axes
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_labels_of_percentiles_are_apart(tmp_path: Path) -> None:
    page = html_page(summarize(write_run(tmp_path, [call(f"{n}", n) for n in range(9)])))
    heights = [float(y) for y in re.findall(r'<g class="mark"><text x="[\d.]+" y="([\d.]+)"', page)]
    largest = max(int(size) for size in re.findall(r"svg text \{ font-size: (\d+)px", page))
    assert len(heights) == 3
    assert min(after - before for before, after in pairwise(heights)) >= largest + 4


def test_there_is_no_picture_of_what_was_not_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    summary = summarize(write_run(tmp_path, [call("\N{SNOWMAN}$x_", 0, model="\U000e0001$")]))
    written = write_pictures(summary, tmp_path / "pictures")
    assert [path.name for path in written] == ["throughput.png", "latency.png"]


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = write_run(tmp_path, [call("a", 0)])
    done = invoke(output, "--png", tmp_path / "pictures")
    assert done.exit_code == 2
    assert "pip install 'parallel_core[report]'" in done.stderr
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("most", [0.0, 1e-15, 0.003, 1.0, 7.0, 99.9, 1234.0, 5e11])
def test_an_axis_has_few_round_ticks_and_holds_everything(most: float) -> None:
    axis = linear_axis("calls", most)
    assert axis.high >= most
    assert 2 <= len(axis.ticks) <= 7
    assert axis.place(axis.high) == 1.0
    labels = [label for _, label in axis.ticks]
    assert len(set(labels)) == len(labels)


def test_axes_of_time_and_latency_have_units_and_decades() -> None:
    assert time_axis(90).title == "active time, s"
    assert time_axis(3600).title == "active time, min"
    assert [label for _, label in time_axis(86_400).ticks] == ["0", "5", "10", "15", "20"]
    assert time_axis(86_400 * 9).title == "active time, days"
    assert [label for _, label in log_axis("s", 0.1, 5).ticks] == [
        *("0.1", "0.2", "0.5", "1", "2", "5"),
    ]
    wide = log_axis("s", 1e-4, 1e6)
    assert [value for value, _ in wide.ticks] == pytest.approx([1e-4, 1e-1, 1e2, 1e5])
    assert wide.place(10.0) == pytest.approx(0.5)
