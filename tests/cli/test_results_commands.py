"""``parallel-core merge`` and ``parallel-core export``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers.run_bench import Bench, Done, ids
from parallel_core import cli


def command(*words: object, standard_input: str | None = None) -> Done:
    """Run a command that needs no litellm in this process."""
    result = CliRunner().invoke(cli.app, list(map(str, words)), input=standard_input)
    return Done(result.exit_code, result.stdout, result.stderr)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_shards(bench: Bench, number: int, *options: str) -> Sequence[Path]:
    parts: list[Path] = []
    for shard in range(1, number + 1):
        parts.append(bench.path(f"part-{shard}.jsonl"))
        done = bench.run("in.jsonl", "-o", parts[-1], f"--shard={shard}/{number}", *options)
        assert done.code == 0, done.said
    return parts


def test_shards_are_merged_resumed_reported_and_exported(bench: Bench) -> None:
    bench.write(*({} for _ in range(8)))
    parts = run_shards(bench, 2)
    output = bench.path("all.jsonl")
    merged = command("merge", *parts, "-o", output)
    assert merged.code == 0, merged.said
    assert "all.jsonl: 8 answers, 0 failures" in merged.said
    assert "--allow-changed" not in merged.said
    bench.server.reset_stats()
    done = bench.run("in.jsonl", "-o", "all.jsonl", "--order=input")
    assert done.code == 0, done.said
    assert bench.ids("all.jsonl") == ids(*range(8))
    assert bench.accepted == 0
    reported = command("report", output)
    assert reported.code == 0
    assert "not in the statistics" not in reported.said
    target = bench.path("table.jsonl")
    exported = command("export", output, "-o", target, "--input", bench.path("in.jsonl"))
    assert exported.code == 0, exported.said
    assert f"written: {target}: 8 rows; id, prompt, answer," in exported.stdout
    assert [(row["prompt"], row["answer"]) for row in rows_of(target)] == [
        (f"Question {number}.", f"answer {number}") for number in range(8)
    ]


def test_a_merge_is_refused_and_says_why(tmp_path: Path) -> None:
    part = tmp_path / "1.jsonl"
    part.write_text('{"custom_id": "a"}\n')
    refused = command("merge", part, "-o", tmp_path / "out.jsonl")
    assert refused.code == 2
    assert "1.jsonl, line 1 is not the result of a request" in refused.stderr
    result = {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": []}}}
    part.write_text(json.dumps(result) + "\n" + json.dumps(result) + "\n")
    (tmp_path / "out.jsonl").write_text("")
    refused = command("merge", part, "-o", tmp_path / "out.jsonl")
    assert refused.code == 2
    assert "out.jsonl exists" in refused.stderr
    done = command("merge", part, "-o", tmp_path / "out.jsonl", "--force")
    assert done.code == 0
    assert "left out: 1 second answer: a" in done.stdout
    assert "not every part has a manifest" in done.stdout
    assert "only with --allow-changed" in done.stdout
    assert "moved aside:" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["merge", ".", "-o", "out.jsonl"],
        ["merge", "in.jsonl", "-o", "."],
        ["merge", "in.jsonl", "-o", "out.jsonl", "--error-file=."],
        ["export", ".", "-o", "out.csv"],
        ["export", "in.jsonl", "-o", "."],
        ["report", "."],
        ["report", "in.jsonl", "--error-file=."],
    ],
)
def test_a_folder_in_place_of_a_file_is_named(words: Sequence[str]) -> None:
    done = command(*words)
    assert done.code == 2
    assert "'.' is a directory" in done.said


def test_columns_and_prompts_of_a_csv_are_exported(bench: Bench) -> None:
    bench.path("in.csv").write_text('word,lang\nHouse,de\n"Tree, old",fr\n')
    options = ["--template=Translate to {{lang}}: {{word}}", "--demo", "--keep=lang"]
    done = bench.run("in.csv", "-o", "out.jsonl", *options, router=False)
    assert done.code == 0, done.said
    target = bench.path("t.csv")
    words = ["export", bench.path("out.jsonl"), "-o", target, "--input", bench.path("in.csv")]
    exported = command(*words, options[0], "--columns=id, prompt,lang")
    assert exported.code == 0, exported.said
    assert target.read_text() == (
        'id,prompt,lang\n2,Translate to de: House,de\n3,"Translate to fr: Tree, old",fr\n'
    )
    refused = command(*words, options[0], "--columns=id")
    assert refused.code == 2
    assert "t.csv exists: give another name, or --force" in refused.stderr
    refused = command(*words, "--force")
    assert refused.code == 2
    assert "template" in refused.stderr


def test_an_export_reads_the_requests_as_the_run_did(bench: Bench) -> None:
    bench.path("in.data").write_text("word,key\nHouse,k-1\nTree,k-2\n")
    options = ["--format=csv", "--template={{word}}", "--id-column=key", "--endpoint=embeddings"]
    done = bench.run("in.data", "-o", "out.jsonl", "--demo", *options, router=False)
    assert done.code == 0, done.said
    target, source = bench.path("t.csv"), bench.path("in.data")
    words = ["export", bench.path("out.jsonl"), "-o", target, "--input", source]
    exported = command(*words, *options, "--columns=id,prompt")
    assert exported.code == 0, exported.said
    assert target.read_text() == "id,prompt\nk-1,House\nk-2,Tree\n"
    assert "without a prompt" not in exported.stdout
    forgotten = [option for option in options if "id-column" not in option]
    exported = command(*words, *forgotten, "--columns=id,prompt", "--force")
    assert exported.code == 0, exported.said
    assert "2 results of requests that" in exported.stdout
    assert "give --id-column" in exported.stdout


def test_an_export_is_refused_and_says_why(tmp_path: Path) -> None:
    refused = command("export", tmp_path / "no.jsonl", "-o", tmp_path / "t.csv")
    assert refused.code == 2
    assert "no.jsonl does not exist: name the output file of a run" in refused.stderr
    results = tmp_path / "out.jsonl"
    answer = {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": []}}}
    results.write_text(json.dumps(answer) + "\n")
    refused = command("export", results, "-o", tmp_path / "t.csv", "--columns=id,prompt")
    assert refused.code == 2
    assert "--input" in refused.stderr
    done = command("export", results, "-o", tmp_path / "t.csv")
    assert done.code == 0
    assert "costs are not known" in done.stdout
