"""``parallel-core run``: options, and an input that is checked before the first call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.run_bench import (
    Bench,
    ids,
    in_this_process,
)

BODY = '{"model": "fast", "messages": [{"role": "user", "content": "Hi."}]}'


BATCH_LINE = (
    f'{{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {BODY}}}\n'
)


BAD_LINES = f"""\
{{"custom_id": "a", "body": {BODY}}}
{{"custom_id": "b",
{{"custom_id": "a", "body": {BODY}}}
{{"custom_id": "c", "body": {{"model": "fast"}}}}
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--config FILE, --model PROVIDER/MODEL, or --demo"),
        (["--api-base=http://127.0.0.1:9/v1"], "--api-base needs --model"),
        (["--demo", "--config=c.yaml"], "--demo cannot be combined with --config"),
        (["--demo", "--api-base=http://127.0.0.1:9/v1"], "--api-base needs --model"),
        (["--demo", "--order=random"], "'random' is not one of 'completion', 'input'"),
        (["--demo", "--format=xml"], "'xml' is not one of 'auto', 'jsonl', 'csv', 'text'"),
        (
            ["--demo", "--concurrency=0"],
            "--concurrency must be a number from 1 on or 'auto', not '0'",
        ),
        (["--demo", "--shard=9/8"], "--shard must be the number of a shard"),
        (["--demo", "--shard=3"], "such as 3/8 for the third of eight, not '3'"),
        (["--demo", "--concurrency=many"], "--concurrency must be a number from 1 on or 'auto'"),
        (["--demo", "--hedge=nan"], "a percentile above p0 and below p100, such as p95; not 'nan'"),
        (["--demo", "--hedge=soon"], "--hedge must be a finite number of seconds above 0"),
        (["--demo", "--timeout=0"], "--timeout must be a finite number of seconds above 0"),
        (
            ["--demo", "--total-timeout=-1"],
            "--total-timeout must be a finite number of seconds above 0",
        ),
        (
            ["--demo", "--rpm=0"],
            "--rpm cannot be '0': --rpm takes a finite number above 0 or 'off'",
        ),
        (["--demo", "--tpm=fast=-1"], "--tpm cannot be 'fast=-1': --tpm takes a finite number"),
        (["--demo", "--tpm=nan"], "--tpm cannot be 'nan': --tpm takes a finite number above 0"),
        (["--demo", "--rpm=fast=abc"], "--rpm cannot be 'fast=abc': --rpm takes a finite number"),
        (["--demo", "--rpm==5"], "--rpm '=5' names no model: --rpm takes a finite number above 0"),
        (["--demo", "--rpm=5", "--rpm=6"], "--rpm is given twice for all models"),
        (["--demo", "--rpm=a=5", "--rpm=a=6"], "--rpm is given twice for a"),
        (["--demo", "--rpm=5", "--rpm=a=6"], "--rpm for all models together cannot be combined"),
        (
            ["--demo", "--rpm=5", "--tpm=a=6"],
            "for all models together cannot be combined with --tpm",
        ),
        (["--demo", "--max-outage=-1"], "--max-outage"),
        (["--demo", "--max-outage=nan"], "--max-outage"),
        (["--demo", "--max-outage=inf"], "--max-outage must be a finite number of seconds from 0"),
        (
            ["--demo", "--attempt-timeout=inf"],
            "--attempt-timeout must be a finite number of seconds",
        ),
        (["--demo", "--max-cost=0"], "--max-cost must be a finite number of USD above 0, not 0"),
        (["--demo", "--max-cost=nan"], "--max-cost must be a finite number of USD above 0"),
        (["--demo", "--assume-output-tokens=9"], "--assume-output-tokens needs --max-cost"),
        (["--demo", "--fair-by=user"], "'user' is not one of 'model'"),
        (["--demo", "--limit=0"], "--limit"),
        (["--demo", "--grace=-1"], "--grace"),
        (
            ["--demo", "--grace=inf"],
            "--grace must be a finite number of seconds from 0 on, not inf",
        ),
        (["--demo", "--confirm-above=-1"], "--confirm-above"),
        (["--demo", "--template=text"], "the template has no {{column}}"),
        (["--demo", "--system=Be brief."], "--system goes before the prompts"),
        (["--demo", "--param=temperature"], "--param takes NAME=VALUE, not 'temperature'"),
        (["--demo", "--param=seed=1", "--param=seed=2"], "--param gives seed twice"),
        (["--demo", "--param=seed=one"], "seed must be a number"),
        (["--demo", "--param=api_base=http://x"], "'api_base' must not come from a file"),
        (["--demo", "--param=model=gpt"], "model is not given with --param"),
        (["--demo", "--param=tools=@missing.json"], "--param tools: cannot read missing.json"),
        (["--demo", "--param=tools=@/dev/null"], "--param tools: /dev/null is not JSON"),
        (["--demo", "--param=temperature=NaN"], "temperature must be a number"),
        (["--demo", "--keep=id,,source"], "--keep takes names with commas between them"),
        (["--demo", "--max-line=0"], "--max-line must be a finite number of MiB above 0, not 0"),
        (["--demo", "--max-line=0.00001"], "line 1: line_too_long: longer than"),
        (["--demo", "--keep=id"], "no line has a member 'id' to keep"),
        (["--demo", "--drop-columns", "--send-columns"], "columns are dropped or sent, not both"),
        (["--demo", "--retry-failed=late"], "there is no kind of failure 'late'; the kinds are"),
        (["--demo", "--retry-failed=timeout,"], "cooling_down, account, request, unreachable"),
        (["--retry-failed", "timeout", "--demo"], "write --retry-failed=timeout, with '='"),
        (["--demo", "--no-such-option"], "--no-such-option"),
        (["--demo", "--deadline=60"], "No such option: --deadline"),
    ],
)
def test_bad_options_are_told_and_nothing_is_made(
    tmp_path: Path, options: list[str], says: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"model": "fast", "messages": [{"role": "user", "content": "Hi."}]}\n')
    done = in_this_process([str(source), "-o", str(output), *options], env={"COLUMNS": "500"})
    assert done.code == 2
    assert says in done.said
    assert list(tmp_path.iterdir()) == [source]


def test_an_output_is_needed(tmp_path: Path) -> None:
    done = in_this_process([str(tmp_path / "in.jsonl"), "--demo"], env={"COLUMNS": "500"})
    assert done.code == 2
    assert "give --output FILE (-o)" in done.said


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("batch.jsonl", BATCH_LINE, [], "1 request (fast 1)"),
        ("rows.csv", "text,n\none,1\ntwo,2\n", ["--template=Say {{text}}."], "2 requests (m 2)"),
        ("rows.tsv", "text\tn\none\t1\n", ["--template=Say {{text}}."], "1 request (m 1)"),
        ("batch.json", f"[\n{BATCH_LINE}]", [], "1 request (fast 1)"),
        ("lines.txt", "one\ntwo\nthree\n", [], "3 requests (m 3)"),
        ("lines.text", "one\n", ["--format=text"], "1 request (m 1)"),
    ],
)
def test_validate_checks_each_format(
    bench: Bench, name: str, content: str, options: list[str], says: str
) -> None:
    bench.path(name).write_text(content)
    model = [] if name.startswith("batch") else ["--model=m", "--api-base=http://127.0.0.1:9/v1"]
    done = bench.run(name, "--validate", *options, *model, router=False)
    assert done.code == 0, done.said
    assert says in done.said


def test_validate_lists_every_bad_line_with_its_code_and_a_hint(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(BAD_LINES)
    done = in_this_process([str(source), "--validate", "--json"])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    problems = [event for event in events if event["event"] == "problem"]
    assert done.code == 2
    assert [(problem["line"], problem["code"]) for problem in problems] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "missing_required_parameter"),
    ]
    assert all(problem["hint"] for problem in problems)
    told = in_this_process([str(source), "--validate"]).said
    assert all(
        f"line {line['line']}: {line['code']}: {line['message']}" in told for line in problems
    )
    assert "nothing was sent: correct these lines, or give --skip-invalid" in told


def test_columns_stop_a_run_until_somebody_decides_on_them(bench: Bench) -> None:
    rows = [
        {
            **json.loads(BODY),
            "source": f"page {number}",
            "id": number,
            "metadata": {"n": str(number)},
        }
        for number in range(3)
    ]
    path = bench.path("in.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = in_this_process([str(path), "--validate", "--json"])
    checked, error = map(json.loads, refused.stdout.splitlines())
    assert refused.code == 2
    assert checked["columns"] == [
        {"name": "source", "lines": 3, "first_line": 1},
        {"name": "id", "lines": 3, "first_line": 1},
    ]
    assert "--drop-columns" in error["text"]
    told = in_this_process([str(path), "--validate"]).said
    assert told.count("'source': 3 lines, first in line 1") == 1
    assert in_this_process([str(path), "--validate", "--drop-columns"]).code == 0
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--keep=id", "--drop-columns", "--order=input")
    assert done.code == 0, done.said
    assert [(result["columns"], result["metadata"]) for result in bench.results()] == [
        ({"id": number}, {"n": str(number)}) for number in range(3)
    ]


def test_what_litellm_takes_for_itself_is_taken_from_a_file_that_is_trusted_only(
    bench: Bench,
) -> None:
    body = {**json.loads(BODY), "mock_response": "made up"}
    bench.path("in.jsonl").write_text(json.dumps({"custom_id": "a", "body": body}) + "\n")
    refused = bench.run("in.jsonl", "-o", "out.jsonl")
    assert refused.code == 2
    assert "line 1: forbidden_parameter: 'mock_response' must not come from a file" in refused.said
    assert "--trust-input" in refused.said
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--trust-input").code == 0
    (result,) = bench.results()
    assert result["response"]["body"]["choices"][0]["message"]["content"] == "made up"
    assert bench.accepted == 0


def test_bad_lines_stop_a_run_before_its_first_call(bench: Bench) -> None:
    bench.path("in.jsonl").write_text(BAD_LINES)
    done = bench.run("in.jsonl", "-o", "out.jsonl")
    assert done.code == 2
    assert bench.accepted == 0
    assert not bench.path("out.jsonl").exists()


def test_skip_invalid_writes_bad_lines_as_failures(bench: Bench) -> None:
    bench.path("in.jsonl").write_text(BAD_LINES)
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--skip-invalid")
    assert done.code == 1
    codes = [result["error"] and result["error"]["code"] for result in bench.results()]
    assert sorted(filter(None, codes)) == [
        "duplicate_custom_id",
        "invalid_json_line",
        "missing_required_parameter",
    ]
    assert codes.count(None) == bench.accepted == 1
    assert len(set(bench.ids())) == 4


def test_standard_input_is_read(bench: Bench) -> None:
    bench.write({}, {})
    content = bench.path("in.jsonl").read_bytes()
    for _again in range(2):
        assert bench.run("-", "-o", "out.jsonl", standard_input=content).code == 0
    assert sorted(bench.ids()) == ids(0, 1)
    assert bench.accepted == 2


def test_an_input_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = in_this_process([str(tmp_path / "no.jsonl"), "-o", str(tmp_path / "out"), "--demo"])
    assert done.code == 2
    assert "no.jsonl" in done.said
    assert "nothing was sent" in done.said


def test_many_bad_lines_are_all_written_as_failures(bench: Bench) -> None:
    bench.path("in.jsonl").write_text("{\n" * 50 + f'{{"custom_id": "a", "body": {BODY}}}\n')
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--skip-invalid", "--order=input")
    assert done.code == 1
    assert bench.ids() == [*map(str, range(1, 51)), "a"]
    assert "and 30 more bad lines" in done.said
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--skip-invalid").code == 1
    assert (len(bench.ids()), bench.accepted) == (51, 1)


def test_rows_of_data_with_a_system_message_and_parameters(bench: Bench) -> None:
    bench.path("in.jsonl").write_text('{"key": 7, "text": "Hi"}\n{"key": 8, "text": "Ho"}\n')
    bench.path("system.txt").write_text("Answer in German.")
    bench.path("extra.json").write_text('{"demo": {"latency": 0.0, "reply": "as ordered"}}')
    options = [
        *("in.jsonl", "-o", "out.jsonl", "--order=input", "--template={{text}}"),
        *("--id-column=key", "--system=@system.txt", "--override-model=fast"),
        *("--param=temperature=0", "--param=extra_body=@extra.json"),
    ]
    done = bench.run(*options)
    assert done.code == 0, done.said
    assert bench.ids() == ["7", "8"]
    for result in bench.results():
        assert result["response"]["body"]["choices"][0]["message"]["content"] == "as ordered"
    again = bench.run(*options)
    assert (again.code, bench.accepted) == (0, 2)
    bench.path("system.txt").write_text("Answer in English.")
    changed = bench.run(*options)
    assert (changed.code, bench.accepted) == (2, 2)
    assert "2 requests have changed since the answer" in changed.said


def test_a_part_of_the_input_is_selected_by_ids_and_by_shards(bench: Bench) -> None:
    bench.write(*({} for _ in range(6)))
    bench.path("ids.txt").write_text("\n".join([*ids(1, 4), "nobody"]))
    refused = bench.run("in.jsonl", "-o", "out.jsonl", "--only=ids.txt")
    assert refused.code == 2
    assert "no request with the id 'nobody'" in refused.said
    assert not bench.path("out.jsonl").exists()
    wanted = "\n".join(ids(1, 4)).encode()
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--only=-", standard_input=wanted)
    assert done.code == 0, done.said
    assert "selected: 2 of 6 lines" in done.said
    assert sorted(bench.ids()) == ids(1, 4)
    for number in (1, 2):
        done = bench.run("in.jsonl", "-o", f"{number}.jsonl", f"--shard={number}/2")
        assert done.code == 0, done.said
        assert f"(shard {number} of 2)" in done.said
    assert sorted([*bench.ids("1.jsonl"), *bench.ids("2.jsonl")]) == ids(*range(6))
    assert bench.accepted == 8


def test_a_selection_is_validated_without_a_router(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(BATCH_LINE)
    done = in_this_process([str(source), "--validate", "--shard=1/1", "--json"])
    assert done.code == 0
    assert "selected: 1 of 1 lines (shard 1 of 1)" in done.said
    both = in_this_process(["-", "-o", "out.jsonl", "--demo", "--only=-"])
    assert "INPUT and --only cannot both be standard input" in both.said
    wrong = tmp_path / "ids.txt"
    wrong.write_text("b")
    done = in_this_process([str(source), "--validate", f"--only={wrong}"])
    assert done.code == 2
    assert "no request with the id 'b'" in done.said


def test_an_option_that_changes_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(BODY + "\n")
    words = [str(path), "--validate", "--pack=8"]
    assert "--pack packs embeddings, and this input has none" in in_this_process(words).said
    path.write_text('{"model": "m", "input": "a text"}\n')
    assert "--pack packs" not in in_this_process(words).said
