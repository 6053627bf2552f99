"""Results as tables: Parquet, CSV, JSON lines, and data frames of pandas and polars."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.file_runs import write_lines
from parallel_core import InputFile, to_pandas, to_polars
from parallel_core.files import export_results
from parallel_core.files.result_tables import prompt_of
from parallel_core.journal import CallStatistics, RunPaths, statistics_line
from parallel_core.types import RouterParallelRequest

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
TEXTS = {"a": 'It said "no",\nand left', "b": "=1+1", "c": "grüße"}
USUAL = ["id", "answer", "finish_reason", "model", "prompt_tokens", "completion_tokens"]


def answer(custom_id: str, text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    body = {"model": "gpt", "choices": [choice], "usage": USAGE}
    response = {"status_code": 200, "body": body}
    return {"custom_id": custom_id, "response": response, "error": None, **more}


def failure(custom_id: str, **more: Any) -> dict[str, Any]:
    error = {"code": "request_timeout", "message": "too slow"}
    return {"custom_id": custom_id, "response": None, "error": error, **more}


def embedding(custom_id: str, *vectors: list[float]) -> dict[str, Any]:
    body = {"model": "small", "data": [{"embedding": vector} for vector in vectors]}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three answers and a failure, in the order in which they ended."""
    path = write_lines(
        tmp_path / "out.jsonl",
        [
            answer("c", TEXTS["c"], columns={"source": "web", "n": 3, "odd": "x"}),
            failure("d", columns={"source": None, "n": 4.5, "odd": [1, {"x": None}]}),
            answer("a", TEXTS["a"], columns={"source": "book", "model": "own"}),
            answer("b", TEXTS["b"], metadata={"page": "7"}),
        ],
    )
    calls = [("c", 0.25), ("d", None), ("a", 0.5), ("a", 0.25)]
    lines = [
        statistics_line(
            CallStatistics(
                custom_id=name, model="gpt", started_at=1.0, duration=1.0, ok=True, cost=cost
            )
        )
        for name, cost in calls
    ]
    RunPaths.of(path).statistics.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_lines(
        tmp_path / "in.jsonl",
        [
            {"custom_id": name, "body": {"model": "gpt", "messages": conversation(name)}}
            for name in ("a", "b", "c", "z")
        ],
    )


def conversation(name: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": f"And {name}?"}]},
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_lines_have_the_values_as_they_are(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "table.jsonl"
    summary = export_results(results, target)
    returned = ["source", "n", "odd", "columns.model", "metadata.page"]
    assert summary.columns == [*USUAL, "cost", "error", *returned]
    assert (summary.rows, summary.has_costs) == (4, True)
    rows = rows_of(target)
    assert [row["id"] for row in rows] == ["c", "d", "a", "b"]
    assert rows[0] == {
        "id": "c",
        "answer": TEXTS["c"],
        "finish_reason": "stop",
        "model": "gpt",
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "cost": 0.25,
        "error": None,
        "source": "web",
        "n": 3,
        "odd": "x",
        "columns.model": None,
        "metadata.page": None,
    }
    assert (rows[1]["answer"], rows[1]["error"], rows[1]["cost"]) == (None, "too slow", None)
    assert (rows[1]["n"], rows[1]["odd"]) == (4.5, [1, {"x": None}])
    assert (rows[2]["cost"], rows[2]["columns.model"]) == (0.75, "own")
    assert (rows[3]["metadata.page"], rows[3]["cost"]) == ("7", None)


def test_prompts_are_beside_the_answers_in_the_order_of_the_input(
    results: Path, requests: Path, tmp_path: Path
) -> None:
    with results.open("a") as lines:  # an answer that a retry has brought, and a duplicate failure
        lines.write(json.dumps(failure("a")) + "\n")
    target = tmp_path / "table.jsonl"
    wanted = ["prompt", "answer", "id", "failure_kind"]
    with InputFile(requests) as source:
        export_results(results, target, columns=wanted, requests=source)
    rows = rows_of(target)
    assert list(rows[0]) == wanted
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("a", "And a?"),
        ("b", "And b?"),
        ("c", "And c?"),
        ("d", None),  # not in the input, so it comes last
    ]
    assert [row["answer"] for row in rows] == [TEXTS["a"], TEXTS["b"], TEXTS["c"], None]
    assert rows[3]["failure_kind"] == "timeout"
    packed = tmp_path / "out2.jsonl.gz"
    packed.write_bytes(gzip.compress(results.read_bytes()))
    with InputFile(requests) as source:
        export_results(packed, target, columns=wanted, requests=source, force=True)
        assert rows_of(target) == rows
        export_results(packed, target, columns=["messages"], requests=source, force=True)
    assert rows_of(target)[1] == {"messages": conversation("b")}


def test_csv_is_read_back(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    export_results(results, target)
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [TEXTS["c"], "", TEXTS["a"], TEXTS["b"]]
    assert [row["prompt_tokens"] for row in rows] == ["9", "", "9", "9"]
    assert [row["n"] for row in rows] == ["3", "4.5", "", ""]
    assert rows[1]["odd"] == '[1,{"x":null}]'


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_tables_open_in_pandas_polars_and_duckdb(
    results: Path, tmp_path: Path, ending: str
) -> None:
    # Not imported by name: their types are partial, and pyright is strict.
    pandas, polars, duckdb = map(importlib.import_module, ("pandas", "polars", "duckdb"))
    target = tmp_path / f"table.{ending}"
    export_results(results, target)
    read_pandas = {"jsonl": lambda path: pandas.read_json(path, lines=True)}.get(
        ending, getattr(pandas, f"read_{ending}", None)
    )
    assert read_pandas is not None
    of_pandas = read_pandas(target)
    of_polars = getattr(polars, "read_ndjson" if ending == "jsonl" else f"read_{ending}")(target)
    of_duckdb = duckdb.sql(f"select * from '{target}'")
    assert list(of_pandas.columns) == of_polars.columns == of_duckdb.columns
    by_id = {row[0]: row[1] for row in of_duckdb.project("id, answer").fetchall()}
    assert by_id == {**TEXTS, "d": None}
    assert dict(of_polars.select("id", "answer").iter_rows()) == by_id
    answers = of_pandas.set_index("id")["answer"]
    assert {name: answers[name] for name in TEXTS} == TEXTS
    assert pandas.isna(answers["d"])
    assert of_polars["cost"].sum() == of_pandas["cost"].sum() == 1.0
    assert of_polars["prompt_tokens"].null_count() == 1


def test_parquet_has_a_schema_that_does_not_depend_on_the_rows(
    results: Path, tmp_path: Path
) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    target = tmp_path / "table.parquet"
    export_results(results, target)
    types = {field.name: str(field.type) for field in parquet.read_schema(target)}
    strings = ("id", "answer", "finish_reason", "model", "error", "source", "odd")
    expected = dict.fromkeys(strings, "string") | {"prompt_tokens": "int64", "cost": "double"}
    assert types.items() >= (expected | {"n": "double", "completion_tokens": "int64"}).items()
    failures = write_lines(tmp_path / "failures.jsonl", [failure("a")] * 3)
    export_results(failures, tmp_path / "failures.parquet")
    table = parquet.read_table(tmp_path / "failures.parquet")
    fixed = [*USUAL, "cost", "error"]
    assert {name: str(table.schema.field(name).type) for name in fixed} == {
        name: types[name] for name in fixed
    }
    assert table["answer"].null_count == 3
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert export_results(empty, tmp_path / "empty.parquet").rows == 0
    assert parquet.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_embeddings_are_lists_of_floats(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    path = write_lines(
        tmp_path / "out.jsonl", [embedding("a", [0.5, -1.25]), failure("b"), embedding("c", [1, 2])]
    )
    wanted = ["id", "answer"]
    export_results(path, tmp_path / "t.parquet", columns=wanted)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert str(table.schema.field("answer").type) == "list<element: double>"
    assert table["answer"].to_pylist() == [[0.5, -1.25], None, [1.0, 2.0]]
    export_results(path, tmp_path / "t.csv", columns=wanted)
    assert (tmp_path / "t.csv").read_text() == 'id,answer\na,"[0.5,-1.25]"\nb,\nc,"[1,2]"\n'
    export_results(path, tmp_path / "t.jsonl", columns=wanted)
    assert [row["answer"] for row in rows_of(tmp_path / "t.jsonl")] == [[0.5, -1.25], None, [1, 2]]
    assert to_polars(path)["answer"].to_list() == [[0.5, -1.25], None, [1.0, 2.0]]
    assert next(iter(to_pandas(path)["answer"])) == [0.5, -1.25]
    # Several vectors of one request, and a chat beside them, are JSON.
    write_lines(path, [embedding("a", [0.5], [1.5]), answer("b", "text")])
    export_results(path, tmp_path / "t.parquet", columns=wanted, force=True)
    assert parquet.read_table(tmp_path / "t.parquet")["answer"].to_pylist() == [
        "[[0.5],[1.5]]",
        "text",
    ]


def test_data_frames(results: Path, requests: Path) -> None:
    with InputFile(requests) as source:
        frame = to_pandas(results, requests=source)
        of_polars = to_polars(results, requests=source)
    assert list(frame["id"]) == of_polars["id"].to_list() == ["a", "b", "c", "d"]
    assert list(frame["prompt"])[:3] == ["And a?", "And b?", "And c?"]
    assert str(frame["prompt_tokens"].dtype) == "Int64"
    assert frame["prompt_tokens"].isna().sum() == of_polars["prompt_tokens"].null_count() == 1
    assert of_polars["n"].to_list() == [None, None, 3.0, 4.5]
    assert of_polars["odd"].to_list() == [None, None, "x", '[1,{"x":null}]']
    assert list(frame["odd"])[2:] == ["x", '[1,{"x":null}]']
    assert to_polars(results, columns=["id", "ok"]).rows()[1] == ("d", False)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("t.xlsx", {}, r"the ending must be one of \.parquet, \.csv, \.jsonl"),
        ("there.csv", {}, "exists: give another name, or --force"),
        ("out.jsonl", {"force": True}, "is a file of the run itself"),
        ("out.jsonl.statistics.jsonl", {"force": True}, "is a file of the run itself"),
        ("t.csv", {"columns": ["id", "nothing"]}, "no column 'nothing'; there are: id, ok"),
        ("t.csv", {"columns": ["prompt"]}, "'prompt' needs the file of requests"),
        ("t.csv", {"columns": []}, "columns has no names"),
        ("t.csv", {"columns": ["id", "id"]}, "'id' is given twice"),
    ],
)
def test_what_is_refused(
    results: Path, tmp_path: Path, target: str, options: Any, says: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=says):
        export_results(results, tmp_path / target, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_columns_than_a_table_may_have(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "out.jsonl",
        [answer("a", "x", metadata={f"key-{number}": "" for number in range(1001)})],
    )
    with pytest.raises(ValueError, match="more than 1,000 columns"):
        export_results(path, tmp_path / "t.csv")


def test_packages_that_are_not_installed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *_: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"pip install 'parallel_core\[parquet\]'"):
        export_results(results, tmp_path / "t.parquet")
    with pytest.raises(ImportError, match="pip install pandas"):
        to_pandas(results)
    with pytest.raises(ImportError, match="pip install polars"):
        to_polars(results)
    assert not (tmp_path / "t.parquet").exists()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        (RouterParallelRequest("m", kwargs={"input": "text"}), "text"),
        (RouterParallelRequest("m", kwargs={"input": ["text"]}), "text"),
        (RouterParallelRequest("m", kwargs={"input": ["a", "b"]}), '["a","b"]'),
        (RouterParallelRequest("m", kwargs={"prompt": "Once"}), "Once"),
        (RouterParallelRequest("m", kwargs={"query": "Which?"}), "Which?"),
        (
            RouterParallelRequest(
                "m", kwargs={"input": [{"role": "user", "content": [{"text": "Hi"}]}]}
            ),
            "Hi",
        ),
        (RouterParallelRequest("m", [{"role": "system", "content": "x"}]), None),
        (
            RouterParallelRequest("m", [{"role": "user", "content": [{"type": "image_url"}]}]),
            '[{"type":"image_url"}]',
        ),
        (RouterParallelRequest("m"), None),
    ],
)
def test_the_prompt_of_a_request(request_: RouterParallelRequest, prompt: str | None) -> None:
    assert prompt_of(request_) == prompt
