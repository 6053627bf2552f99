"""The benchmarks measure, count and report what they say."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cell import at_depth
from benchmarks.peers import PEERS, Peer
from benchmarks.plain_peers import Pool
from benchmarks.question import Fit, Parameters, Quantity, Question
from benchmarks.questions import QUESTIONS
from benchmarks.report import from_json, number, tables, to_json, to_markdown
from benchmarks.runner import (
    Answer,
    Cell,
    CellProcesses,
    Group,
    Spread,
    exponent,
    ratios,
    run_question,
)

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "docs" / "benchmarks.json"

in_a_checkout = pytest.mark.skipif(
    "PARALLEL_CORE_EXPECT_INSTALLED" in os.environ,
    reason="the benchmarks run the package of the checkout",
)


def question(**changes: Any) -> Question:
    overhead: Question = dataclasses.replace(QUESTIONS["overhead"], **changes)
    return overhead


def run_benchmarks(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=110,
    )


# --- what is made of the numbers ---


def test_ratios_are_those_of_neighbours() -> None:
    mine = Cell(PEERS["ours-asyncio"], {}, [{"cpu": 2.0}, {"cpu": 30.0}, {"cpu": None}])
    base = Cell(PEERS["pool"], {}, [{"cpu": 1.0}, {"cpu": 10.0}, {"cpu": 1.0}, {"cpu": 1.0}])
    assert ratios(mine, base, "cpu") == Spread(2.5, 2.0, 3.0)
    assert ratios(mine, base, "wall") is None


def test_a_power_law_is_found_again() -> None:
    counts = (10, 100, 1000)
    groups = [
        Group({"along": "calls", "calls": n}, [Cell(PEERS["pool"], {}, [{"total": 3 * n**1.5}])])
        for n in counts
    ]
    groups.append(Group({"along": "other", "calls": 7}, [Cell(PEERS["pool"], {}, [{"total": 1}])]))
    fit = Fit("", "calls", "total", {"along": "calls"})
    answer = Answer(question(), 1, groups, {})
    found = exponent(fit, answer, PEERS["pool"])
    assert found == pytest.approx(1.5)
    assert exponent(fit, answer, PEERS["gather"]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.0, "3"), (0.01234, "0.012"), (1.5, "1.50"), (123.4, "123"), (1e6, "1,000,000")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_what_was_not_measured_is_said() -> None:
    absent = Peer("absent", "absent", "asyncio", "no-such-package", Pool)
    other = Peer("other", "other", "asyncio", None, Pool)

    def cells(size: object) -> Any:
        yield {"call": "no-op"}

    def refuses(peer: Peer, parameters: Parameters) -> str | None:
        return "is another one" if peer is other else None

    asked = question(cells=cells, refuses=refuses)
    answer = run_question(asked, "smoke", 1, [absent, other], lambda text: None)
    ((cell,),) = [group.cells for group in answer.groups]
    assert (cell.peer, cell.problem, cell.rounds) == (absent, "not installed", [])
    assert answer.refused == {"is another one": [other]}
    (table,) = tables(answer)
    assert table.rows == [["absent", "not installed"]]
    markdown = to_markdown({"versions": {}, "load": [], **_machine()}, 1, [answer])
    assert "Not asked, is another one: other." in markdown


def _machine() -> dict[str, Any]:
    return {"python": "3", "system": "system", "processor": "processor", "cores": 1}


# --- cells ---


def test_a_cell_begins_at_the_depth_it_is_told() -> None:
    def depth() -> int:
        frame, count = sys._getframe(), 0
        while frame.f_back is not None:
            frame, count = frame.f_back, count + 1
        return count

    assert at_depth(25, depth) - at_depth(0, depth) == 25


@pytest.mark.thorough  # of a benchmark
@in_a_checkout
def test_a_cell_that_fails_or_hangs_is_told_from_one_that_measures() -> None:
    good = {"call": "no-op", "results": "as a list", "concurrency": 2, "calls": 10}
    endless = {**good, "calls": 10**9}
    cells = [Cell(PEERS["pool"], parameters) for parameters in ({}, endless, good)]
    with CellProcesses.started(with_router=False) as processes:
        for cell, seconds in zip(cells, (60, 1, 60), strict=True):
            processes.measure(question(timeout=seconds), cell, 0)
    failed, hung, fine = cells
    assert failed.problem == "failed: KeyError: 'calls'"
    assert hung.problem == "more than 1 s"
    assert (fine.problem, len(fine.rounds)) == (None, 1)
    assert set(fine.rounds[0]) == {"cpu", "wall"}


PROMISES = {"cancel_latency", "break_latency"}


def check_promises(answer: Answer) -> None:
    """What is promised, as the benchmarks see it."""
    for group in answer.groups:
        for key in ("ours-asyncio", "ours-trio"):
            ours = group.of(key)
            assert ours is not None
            assert ours.values("left_running") == [0]
            assert ours.values("begun_late") == [0]
    if answer.question.name == "cancel_latency":
        gather = answer.groups[0].of("gather")
        assert gather is not None
        assert gather.values("left_running") == [8]  # a benchmark that finds no leak would be blind


@pytest.mark.thorough  # of a benchmark
@in_a_checkout
@pytest.mark.parametrize("name", sorted(PROMISES))
def test_what_is_promised_is_measured(name: str) -> None:
    """Over calls of plain functions: a Router takes seconds to import."""
    whole = QUESTIONS[name]

    def cells(size: Any) -> Any:
        return (each for each in whole.cells(size) if not whole.uses_router(each))

    asked = dataclasses.replace(whole, cells=cells)
    peers = [PEERS[key] for key in ("gather", "ours-asyncio", "ours-trio")]
    answer = run_question(asked, "smoke", 1, peers, lambda text: None)
    assert answer.groups
    check_promises(answer)


# Without the one that takes as long as all the others. "make bench-smoke" has it too.
MOST_QUESTIONS = [name for name in QUESTIONS if name != "router_throughput"]


@pytest.mark.thorough  # of a benchmark
@in_a_checkout
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["overhead"], id="one"),
        pytest.param(MOST_QUESTIONS, id="most", marks=pytest.mark.thorough),
    ],
)
def test_questions_are_answered(names: list[str], tmp_path: Path) -> None:
    written = tmp_path / "answers.json"
    peers = ("gather", "pool", "ours-asyncio", "ours-trio")
    done = run_benchmarks(*names, "--smoke", "--json", str(written), "--peers", *peers)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(written.read_text())
    answers = {answer.question.name: answer for answer in from_json(document)}
    assert list(answers) == names
    for answer in answers.values():
        for group in answer.groups:
            assert {"pool", "ours-asyncio", "ours-trio"} <= {cell.peer.key for cell in group.cells}
            for cell in group.cells:
                assert (cell.problem, len(cell.rounds)) == (None, 1)
                unknown = cell.rounds[0].keys() - _keys(answer.question.quantities)
                assert not unknown
    for name in PROMISES & answers.keys():
        check_promises(answers[name])
    # Reading gives what was written, and shows the same.
    assert to_json(document["machine"], 1, list(answers.values())) == document
    shown = run_benchmarks("--read", str(written), "overhead")
    assert shown.returncode == 0, shown.stderr
    assert "What does a call cost beside itself?" in shown.stdout
    assert "how long until" not in shown.stdout


def _keys(quantities: tuple[Quantity, ...]) -> set[str]:
    return {quantity.key for quantity in quantities}


@in_a_checkout
@pytest.mark.thorough
def test_the_profile_of_the_end_tells_every_moment() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.end_of_a_batch"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    moments = re.findall(r"^ *([\d.]+) ms  (.+)$", done.stdout, re.MULTILINE)
    assert len(moments) == 7
    assert [float(when) for when, _ in moments] == sorted(float(when) for when, _ in moments)
    assert moments[-1][1] == "the caller has the exception"


@pytest.mark.thorough  # of a benchmark
@in_a_checkout
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--json", "no/such/folder/file"], "there is no folder no/such/folder"),
        (["--peers", "nobody"], "invalid choice: 'nobody'"),
        (["--quick", "--smoke"], "not allowed with"),
        (["--read", "no-such-file"], "there is no file no-such-file"),
        (["--json", "docs"], "docs is a folder, not a file"),
    ],
)
def test_bad_options_are_refused(options: list[str], message: str) -> None:
    done = run_benchmarks(*options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.thorough  # of a benchmark
@in_a_checkout
@pytest.mark.parametrize("text", ["{", "{}", '{"machine": {}, "rounds": 1, "answers": [{}]}'])
def test_a_file_that_is_not_ours_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    done = run_benchmarks("--read", str(path))
    assert done.returncode == 1
    assert "has not been written by --json" in done.stderr
    assert "Traceback" not in done.stderr


# --- the documents ---


@pytest.fixture(scope="module")
def last_run() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(RESULTS.read_text())
    return document


TABLE = re.compile(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", re.MULTILINE)


def cells(markdown: str) -> dict[str, dict[tuple[str, str], str]]:
    """Return the cells of each table, by its title, the name of the row, and the column."""
    found: dict[str, dict[tuple[str, str], str]] = {}
    for title, text in TABLE.findall(markdown):
        head, _, *rows = (line[1:-1].split("|") for line in text.splitlines())
        for row in rows:
            for column, cell in zip(head[1:], row[1:], strict=False):
                found.setdefault(title, {}).setdefault(
                    (row[0].strip(), column.strip()), cell.strip()
                )
    return found


def test_the_tables_of_the_docs_are_those_of_the_last_run(last_run: dict[str, Any]) -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    whole = cells(to_markdown(last_run["machine"], last_run["rounds"], from_json(last_run)))
    shown = cells(page)
    assert len(shown) == 5
    for title, table in shown.items():
        assert table.items() <= whole[title].items(), title
        assert sum("parallel_core in" in row for row, _ in table) >= 4, title
    for name in ("python", "system", "processor"):
        assert last_run["machine"][name] in page
    assert last_run["machine"]["versions"]["litellm"] in page


def test_the_last_run_is_a_whole_one(last_run: dict[str, Any]) -> None:
    answers = from_json(last_run)
    assert [answer.question.name for answer in answers] == list(QUESTIONS)
    for answer in answers:
        expected = list(answer.question.cells("full"))
        assert [group.parameters for group in answer.groups] == expected
        asked = {cell.peer.key for group in answer.groups for cell in group.cells}
        refused = {peer.key for peers in answer.refused.values() for peer in peers}
        assert asked | refused == set(PEERS)
    assert last_run["rounds"] >= 5
    for answer in answers:
        for group in answer.groups:
            for cell in group.cells:
                full = len(cell.rounds) == last_run["rounds"]
                limited = cell.took >= 2 or answer.question.rounds(cell.parameters, "full") == 1
                assert full or limited or cell.problem, (group.parameters, cell.peer.key)
                # What was not measured took too long, and nothing else.
                assert cell.problem is None or cell.problem.startswith("more than")


README_FIGURES = [
    ("cancel_latency", {"over": "calls", "in_flight": 64, "requests": 100_000}, "went_on", "ms"),
    ("memory", {"requests": 1_000_000}, "growth", "MiB"),
    (
        "overhead",
        {"call": "no-op", "results": "as a list", "concurrency": 64, "calls": 10_000},
        "cpu",
        "µs",
    ),
]


@pytest.mark.parametrize(("name", "parameters", "quantity", "unit"), README_FIGURES)
def test_the_figures_of_the_readme_are_those_of_the_last_run(
    last_run: dict[str, Any], name: str, parameters: Parameters, quantity: str, unit: str
) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (row,) = re.findall(rf"^\|.*BENCH_OPTIONS={name}`.*\|$", readme, re.MULTILINE)
    (answer,) = [one for one in from_json(last_run) if one.question.name == name]
    (group,) = [group for group in answer.groups if group.parameters == parameters]
    for key in ("ours-asyncio", "original"):
        measured = group.of(key)
        spread = None if measured is None else Spread.of(measured.values(quantity))
        assert spread is not None
        assert f"| {number(spread.median)} {unit} |" in row
