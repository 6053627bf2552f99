"""Texts from elsewhere that no terminal obeys, and streams with another encoding."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from helpers.odd_texts import EVIL, HARMLESS, write_requests
from helpers.run_bench import FAILS, Bench, Done, the_end_of
from helpers.run_values import summary_of
from parallel_core import cli
from parallel_core.cli import doctor_command
from parallel_core.cli.json_view import JsonView
from parallel_core.cli.terminal import shell_line
from parallel_core.cli.text_view import TextView
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile
from parallel_core.journal.run_paths import RunPaths
from parallel_core.printable import printable


def test_control_characters_of_an_input_never_reach_a_terminal(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in\x1b[31m.jsonl", EVIL)
    with source.open("a") as lines:
        lines.write(json.dumps({"custom_id": "a\x1b]0;title\x07", "model": EVIL}) + "\n")
    for view in ([], ["--json"]):
        done = CliRunner().invoke(cli.app, ["run", str(source), "--validate", *view])
        shown = done.stdout + done.stderr
        assert done.exit_code == 2
        assert all(letter.isprintable() or letter == "\n" for letter in shown)
        assert HARMLESS in shown or view
    nowhere = CliRunner().invoke(cli.app, ["run", "no\x1b[31m.jsonl", "--validate"])
    assert r"no\x1b[31m.jsonl" in nowhere.stderr
    wrong = CliRunner().invoke(cli.app, ["run", "in.jsonl", "--\x1b[31mwrong"])
    assert "\x1b[31mw" not in wrong.stderr


def test_what_is_printable_stays_and_the_rest_is_escaped() -> None:
    plain = "wörter, 文字 and 😀: [bold] \\x1b\nanother\u3000line\xa0"
    assert printable(plain) == plain
    assert printable(EVIL) == HARMLESS
    assert printable("\r\t\x7f\u2028\ud800\u200f") == r"\r\t\x7f\u2028\ud800\u200f"


def test_doctor_and_report_show_names_as_they_are(tmp_path: Path) -> None:
    finding = doctor_command.EndpointFinding(EVIL, EVIL, EVIL, False, EVIL, (EVIL,), True)
    findings = doctor_command.Findings({}, EVIL, [finding], [EVIL], [EVIL], [EVIL], [EVIL])
    shown = io.StringIO()
    doctor_command.show_findings(Console(file=shown, width=500), findings)
    assert shown.getvalue().count(HARMLESS) == 10
    output = tmp_path / "out\x1b[31m[b].jsonl"
    body = {"model": EVIL, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    response = {"status_code": 200, "request_id": "r", "body": body}
    line = {"id": "a", "custom_id": "a", "response": response, "error": None}
    output.write_text(json.dumps(line) + "\n")
    done = CliRunner().invoke(cli.app, ["report", str(output)])
    assert r"out\x1b[31m[b].jsonl" in done.stdout
    assert "[bold]" in done.stdout
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_of_standard_output_is_too_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    source = write_requests(tmp_path / "in.jsonl", "é€😀")

    def run(*words: str) -> str:
        stream = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding, "strict"))
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        with pytest.raises(SystemExit) as end:
            cli.app(list(words))
        assert end.value.code in (0, 2), stream.getvalue()
        sys.stdout.flush()
        return stream.getvalue().decode(encoding, "replace")

    shown = "é€😀".encode(encoding, "backslashreplace").decode(encoding)
    assert f"1 request ({shown} 1)" in run("run", str(source), "--validate")
    (event,) = map(json.loads, run("run", str(source), "--validate", "--json").splitlines())
    assert event["models"] == {"é€😀": 1}
    assert "is not one of" in run("run", str(source), "--order=é€😀", "--demo", "-o", "out")
    assert "does not exist" in run("report", str(tmp_path / "é€😀.jsonl"))
    assert run("doctor", "--config", str(tmp_path / "é€😀.yaml"))
    assert "Usage" in run("run", "--help")


def test_a_run_its_report_and_doctor_in_ascii(bench: Bench) -> None:
    text = "é€😀"
    escaped = r"\xe9\u20ac\U0001f600"

    def run(*words: str) -> Done:
        environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
        done = the_end_of(bench.commands.start(words, folder=bench.folder, environment=environment))
        assert (done.stdout + done.stderr).isascii()
        assert "Traceback" not in done.said
        return done

    config = bench.path("config.yaml").rename(bench.path(f"{text}.yaml"))
    bench.write({"reply": text}, FAILS, name=f"{text}.jsonl")
    output = f"out-{text}.jsonl"
    done = run("run", f"{text}.jsonl", "-o", output, f"--config={config.name}")
    assert done.code == 1
    assert f"out-{escaped}.jsonl" in done.stdout
    responses = [line["response"] for line in bench.results(output)]
    (answer,) = [one["body"] for one in responses if one["status_code"] == 200]
    assert answer["choices"][0]["message"]["content"] == text
    report = run("report", output)
    assert report.code == 0, report.said
    assert f"out-{escaped}.jsonl" in report.stdout
    doctor = run("doctor", f"--config={config.name}")
    assert "parallel_core" in doctor.stdout


def test_json_has_names_that_are_no_utf_8() -> None:
    stream = io.StringIO()
    command = shell_line(["parallel-core", os.fsdecode(b"\xff")])
    paths = RunPaths.of(os.fsdecode(b"out-\xff.jsonl"))
    JsonView(stream).summary(summary_of(paths=paths), command)
    event = json.loads(stream.getvalue().encode("ascii"))
    assert os.fsencode(event["paths"]["output"]) == b"out-\xff.jsonl"
    assert event["resume"] == "parallel-core $'\\377'"


def test_names_of_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "in\nput.jsonl"
    path.write_text("")
    with pytest.raises(InputFileError) as caught, InputFile(path) as file:
        file.check()
    assert r"in\nput.jsonl: there is no request" in str(caught.value)
    with pytest.raises(InputFileError, match=r"not\\nthere") as caught:
        InputFile("not\nthere", drop_columns=True, send_columns=True)
    assert "\n" not in str(caught.value)
    shown = io.StringIO()
    paths = RunPaths.of(Path("o\nut"), Path("e\nrr"))
    TextView(output=Console(file=shown)).summary(summary_of(paths=paths), None)
    assert r"o\nut" in shown.getvalue()
    assert r"e\nrr" in shown.getvalue()
