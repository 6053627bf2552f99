"""Files as others write them run to their end, and the outputs open where people open them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.run_bench import Bench

FOLDER = Path(__file__).resolve().parents[1] / "files" / "real"

# Options that a file needs besides the Router, and the ids of its requests.
FILES: dict[str, tuple[list[str], list[str]]] = {
    "openai-cookbook-movies.jsonl": ([], ["task-0", "task-1", "task-2"]),
    "openai-cookbook-images.jsonl": ([], ["task-0", "task-1"]),
    "vllm-run-batch.jsonl": ([], ["request-1", "request-2"]),
    "mistral-batch.jsonl": (["--override-model=mistral-small-latest"], ["0", "1"]),
    "anthropic-batch.jsonl": ([], ["my-first-request", "my-second-request", "with-a-cached-book"]),
    "gemini-batch.jsonl": (
        ["--override-model=gemini-2.5-flash"],
        ["request-1", "request-2", "request-3"],
    ),
    "ultrachat-rows.jsonl": (
        ["--override-model=any", "--id-column=prompt_id", "--drop-columns", "--param=seed=1"],
        [
            json.loads(line)["prompt_id"]
            for line in (FOLDER / "ultrachat-rows.jsonl").read_text().splitlines()
        ],
    ),
    **dict.fromkeys(
        ("libreoffice.csv", "libreoffice-semicolons.csv"),
        (
            [
                "--override-model=any",
                "--template={{review}}",
                "--system=The stars are {{stars}}. Answer in {{language}}.",
                "--keep=review,stars",
            ],
            ["r-1", "r-2", "r-3", "r-4", "r-5"],
        ),
    ),
}


def test_every_file_is_here() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".jsonl", ".csv")}
    assert files == FILES.keys()


@pytest.mark.thorough
@pytest.mark.parametrize("name", FILES)
def test_a_real_file_runs_to_its_end(bench: Bench, name: str) -> None:
    options, ids = FILES[name]
    bench.path("config.yaml").write_text(
        "model_list:\n"
        "  - model_name: '*'\n"
        "    litellm_params:\n"
        f"      {{model: openai/fast, api_base: '{bench.server.url}', api_key: none}}\n"
    )
    done = bench.run(FOLDER / name, "-o", "out.jsonl", "--order=input", *options)
    assert done.code == 0, done.said
    assert bench.ids() == ids
    assert {result["response"]["status_code"] for result in bench.results()} == {200}
    if name.startswith("libreoffice"):
        reviews = [result["columns"]["review"] for result in bench.results()]
        assert reviews == [
            'Good, but "long"',
            "Two lines\nin one field",
            "Schöne Grüße; süß & knusprig \u2013 5 €",
            "Très bien, merci…  ",
            '"quoted" from the start',
        ]
    opens_everywhere(bench.path("out.jsonl"), ids)


def opens_everywhere(path: Path, ids: list[str]) -> None:
    """Check that pandas, polars, DuckDB and jq find the ids and the answers in an output."""
    # pandas has no types, and those of DuckDB are wrong about sql().
    pandas, duckdb = map(importlib.import_module, ("pandas", "duckdb"))
    import polars

    answers = [
        json.loads(line)["response"]["body"]["choices"][0]["message"]["content"]
        for line in path.read_text().splitlines()
    ]
    assert all(answers)
    # "custom_id": str, because pandas would make numbers of the ids of a file that has only such.
    frame = pandas.read_json(path, lines=True, dtype={"custom_id": str})
    assert list(frame["custom_id"]) == ids
    found = [response["body"]["choices"][0]["message"]["content"] for response in frame["response"]]
    assert found == answers
    for table in (polars.read_ndjson(path), polars.scan_ndjson(path).collect()):
        assert table["custom_id"].to_list() == ids
        column = table["response"].to_list()
        assert [one["body"]["choices"][0]["message"]["content"] for one in column] == answers
    rows = duckdb.sql(
        f"SELECT custom_id, response.body.choices[1].message.content FROM read_json_auto('{path}')"
    ).fetchall()
    assert [(str(custom_id), answer) for custom_id, answer in rows] == list(
        zip(ids, answers, strict=True)
    )
    if shutil.which("jq") is not None:
        program = "[.custom_id, .response.body.choices[0].message.content]"
        said = subprocess.run(
            ["jq", "-c", program, path], check=True, capture_output=True, text=True
        ).stdout
        assert [json.loads(line) for line in said.splitlines()] == [
            list(pair) for pair in zip(ids, answers, strict=True)
        ]
