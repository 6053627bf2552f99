"""What commands write on a terminal, into a pipe, and in other encodings; questions and signals."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from helpers.run_values import progress_of, summary_of
from parallel_core import (
    RunStraggler,
    Usage,
    Waiting,
    _doctor_command,
    _run_signals,
    _run_view,
    cli,
)
from parallel_core._run_command import Question, RunState, command_again
from parallel_core._run_signals import STOP_SIGNALS, StopSignals
from parallel_core._run_view import (
    JsonView,
    TextView,
    describe_stragglers,
    describe_waiting,
)
from parallel_core._terminal import is_live, printable, program, shell_line
from parallel_core.batch_input import InputFile
from parallel_core.batch_output import Redactor
from parallel_core.cost_estimate import CostEstimate
from parallel_core.errors import InputFileError
from parallel_core.run_file import FailureGroup, RunSummary
from parallel_core.run_statistics import RunPaths

SCRIPTS = Path(__file__).parent / "scripts"
PATIENCE = 30.0
EVIL = "mo\x1b[31mdel\x9b2J\u202e[bold]é€"
HARMLESS = r"mo\x1b[31mdel\x9b2J\u202e[bold]é€"
MESSAGES = [{"role": "user", "content": "Hi."}]


def write_requests(path: Path, *models: str) -> Path:
    lines = (json.dumps({"model": model, "messages": MESSAGES}) + "\n" for model in models)
    path.write_text("".join(lines), encoding="utf-8")
    return path


# --- the command that resumes a run ---


@pytest.mark.parametrize(
    ("given", "summary", "expected"),
    [
        (
            ["run", "in.jsonl", "-o", "out.jsonl", "--max-cost", "5", "--deadline=3600", "--yes"],
            summary_of(),
            ["run", "in.jsonl", "-o", "out.jsonl", "--max-cost", "5", "--deadline=3600", "--yes"],
        ),
        (["run", "i", "-o", "o", "--force-new"], summary_of(), ["run", "i", "-o", "o"]),
        (  # what has not been tried again yet is left
            ["run", "i", "-o", "o", "--retry-failed"],
            summary_of(),
            ["run", "i", "-o", "o", "--retry-failed"],
        ),
        (
            ["run", "i", "-o", "o"],
            summary_of(unfinished=0, failed=2),
            ["run", "--retry-failed", "i", "-o", "o"],
        ),
        (  # what failed would fail again
            ["run", "i", "-o", "o"],
            summary_of(failed=2, final_failures=2),
            ["run", "i", "-o", "o"],
        ),
        (["run", "i", "-o", "o"], summary_of(unfinished=0, failed=2, final_failures=2), None),
        (
            ["run", "i", "-o", "o"],
            summary_of(unfinished=0, failed=1, earlier_failed=2, final_failures=2),
            ["run", "--retry-failed", "i", "-o", "o"],
        ),
        (
            ["run", "--retry-failed=overloaded", "i", "-o", "o"],
            summary_of(unfinished=0, failed=2),
            ["run", "--retry-failed=overloaded", "i", "-o", "o"],
        ),
        (
            ["run", "-o", "o", "--", "--force-new"],
            summary_of(unfinished=0, failed=2),
            ["run", "--retry-failed", "-o", "o", "--", "--force-new"],
        ),
        (  # none of these kinds is left, or they would have been sent
            ["run", "--retry-failed=timeout", "i"],
            summary_of(unfinished=0, earlier_failed=2),
            ["run", "--retry-failed", "i"],
        ),
        (
            ["run", "--retry-failed=timeout", "i"],
            summary_of(unfinished=0, failed=1, earlier_failed=2),
            ["run", "--retry-failed=timeout", "i"],
        ),
        (  # what stopped the model has failed its first requests, too
            ["run", "i", "-o", "o"],
            summary_of(
                ending="blocked",
                unfinished=5,
                failed=17,
                failures=[FailureGroup("overloaded", 17, "429: Slow down.", ["a"], 429)],
            ),
            ["run", "--retry-failed", "i", "-o", "o"],
        ),
        (
            ["run", "i"],
            summary_of(
                ending="blocked",
                unfinished=5,
                failed=1,
                failures=[FailureGroup("answer", 1, "no choices", ["a"])],
            ),
            ["run", "i"],
        ),
        (  # a key that is also a word is no reason to change the word
            ["run", "i", "-o", "o", "--model", "ollama/x", "--api-base", "http://u:ollama@h/v1"],
            summary_of(),
            ["run", "i", "-o", "o", "--model", "ollama/x", "--api-base", "http://[redacted]@h/v1"],
        ),
    ],
)
def test_the_command_that_resumes_repeats_every_option(
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    summary: RunSummary,
    expected: list[str] | None,
) -> None:
    monkeypatch.setattr(sys, "argv", ["parallel-core", *given])
    command = command_again(summary, Redactor(["ollama"]))
    if expected is None:
        assert command is None
    else:
        assert command is not None
        assert shlex.split(command) == ["parallel-core", *expected]


def test_the_summary_says_which_answers_and_failures_are_unusual() -> None:
    def shown(**fields: Any) -> str:
        output = io.StringIO()
        console = Console(file=output, width=200)
        TextView(error=console, output=console).summary(summary_of(**fields), None)
        return output.getvalue()

    text = shown(
        finish_reasons={"stop": 1, "length": 212, "content_filter": 3},
        without_text=8,
        failed=13,
        final_failures=12,
    )
    assert "212 cut at max_tokens, 3 filtered, 8 without text" in text
    assert "12 failures are final: they would fail again" in text
    assert "1 failure is final: it would fail again" in shown(failed=1, final_failures=1)
    assert "--retry-failed" not in shown(earlier_failed=1, final_failures=1)
    assert "1: --retry-failed sends again what may pass" in shown(earlier_failed=1)
    plain = shown(finish_reasons={"stop": 1, "tool_calls": 1})
    assert "final" not in plain
    assert "of these" not in plain


@pytest.mark.parametrize("width", ["20", "80"])
def test_the_command_that_resumes_is_one_line(monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    command = "parallel-core run 'a file.jsonl' -o out.jsonl --max-cost 5 " + "--deadline 3600 " * 9
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, markup=False)
    TextView(error=console, output=console).summary(summary_of(), command)
    assert f"to go on: {command}\n" in shown.getvalue()


def test_the_command_that_resumes_starts_the_same_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "parallel-core"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == ["parallel-core"]
    monkeypatch.setenv("PATH", "")
    assert program() == [str(script)]
    module = ModuleType("__main__")
    spec: Any = SimpleNamespace(name="parallel_core.cli")
    module.__spec__ = spec
    monkeypatch.setitem(sys.modules, "__main__", module)
    assert program() == [sys.executable, "-m", "parallel_core.cli"]


@pytest.mark.parametrize("module", ["parallel_core", "parallel_core._run_command", "litellm"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_during_the_imports_ends_with_one_line(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    write_requests(tmp_path / "in.jsonl", "m")
    command = [sys.executable, str(SCRIPTS / "interrupted_import.py"), module, str(int(number))]
    command += ["run", "in.jsonl", "-o", "out", "--model=openai/m"]
    text = "interrupted before anything was sent"
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    checked = "1 request (m 1)\n" if module == "litellm" else ""
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{checked}{text}\n")
    if module != "parallel_core":
        return
    ended = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")
    assert json.loads(ended.stdout) == {"event": "error", "text": text}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_shell_reads_every_name_as_it_was(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    words = ["a b", "it's", "é", "x\x1b[31m\n'\\", os.fsdecode(b"\xff"), "", "$HOME", "\u202e"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    line = shell_line(words)
    assert line.isprintable()
    line.encode(encoding)
    # bash reads $'…', as zsh, ksh and POSIX's shell of 2024 do.
    show = [sys.executable, "-c", "import os, sys; print([*map(os.fsencode, sys.argv[1:])])"]
    ran = subprocess.run(
        ["bash", "-c", f"{shlex.join(show)} {line}"], check=True, capture_output=True, text=True
    )
    assert ran.stdout == f"{[*map(os.fsencode, words)]}\n"


# --- terminals ---


@contextlib.contextmanager
def terminal_as_stderr() -> Generator[Callable[[], str]]:
    """A terminal as standard error; gives what is on it."""
    seen, process_end = pty.openpty()
    with os.fdopen(process_end, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)

        def text() -> str:
            print("\0", end="", file=stream, flush=True)
            shown = b""
            while not shown.endswith(b"\0"):
                shown += os.read(seen, 65536)
            return shown[:-1].decode()

        yield text
    os.close(seen)


def show_everything(view: TextView) -> None:
    with view.waiting("checking"):
        view.note("a note")
    view.error("an error")
    view.progress(progress_of())
    view.progress(progress_of(finished=True))
    view.close()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with terminal_as_stderr() as screen:
        show_everything(TextView())
        lines = screen().splitlines()
    assert lines[:2] == ["a note", "an error"]
    assert all("1/3 (33.3 %), ok 1" in line for line in lines[2:])
    assert len(lines) == 4
    assert "".join(lines).isprintable()


def test_without_colour_it_is_live_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal_as_stderr() as screen:
        show_everything(TextView())
        shown = screen()
    assert "━" in shown
    assert "\x1b[?25l" in shown  # the cursor is hidden while it is drawn
    assert not any(f"\x1b[{code}" in shown for code in (*range(30, 39), *range(90, 98)))


def test_no_terminal_is_drawn_on_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many a CI
    shown = io.StringIO()
    assert not is_live(shown)
    show_everything(TextView(error=Console(file=shown)))
    assert "━" not in shown.getvalue()
    assert "\x1b[?25l" not in shown.getvalue()


# --- texts from elsewhere ---


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
    finding = _doctor_command.EndpointFinding(EVIL, EVIL, EVIL, False, EVIL, (EVIL,), True)
    findings = _doctor_command.Findings({}, EVIL, [finding], [EVIL], [EVIL], [EVIL], [EVIL])
    shown = io.StringIO()
    _doctor_command.show_findings(Console(file=shown, width=500), findings)
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
    assert "--order is one of" in run("run", str(source), "--order=é€😀", "--demo", "-o", "out")
    assert "does not exist" in run("report", str(tmp_path / "é€😀.jsonl"))
    assert run("doctor", "--config", str(tmp_path / "é€😀.yaml"))
    assert "Usage" in run("run", "--help")


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


# --- costs, errors and many problems ---


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(), 0.0),
        (Usage(unpriced_calls=2), None),
        (Usage(cost=0.5, unpriced_calls=2), 0.5),
        (Usage(cost=0.5), 0.5),
    ],
)
def test_a_cost_that_is_unknown_is_null(usage: Usage, cost: float | None) -> None:
    stream, shown = io.StringIO(), io.StringIO()
    view = JsonView(stream)
    view.progress(progress_of(usage=usage))
    view.summary(summary_of(usage=usage), None)
    view.estimate(CostEstimate(3, usage.cost, 3 if cost is None else 0))
    progress, summary, estimate = map(json.loads, stream.getvalue().splitlines())
    assert summary["usage"]["cost"] == estimate["cost"] == cost
    # Before the first answer it is not known whether the calls have a price.
    assert progress["usage"]["cost"] == (None if usage == Usage() else cost)
    assert summary["usage"]["unpriced_calls"] == usage.unpriced_calls
    TextView(output=Console(file=shown)).summary(summary_of(usage=usage), None)
    assert ("price unknown" in shown.getvalue()) == (cost is None)
    assert "0.0000" not in shown.getvalue()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--json", "--nosuch"], "--nosuch"),
        (["run", "in", "--json", "--limit=abc"], "--limit"),
        (["run", "in", "--json", "--limit=0"], "--limit"),
        (["run", "--json"], "Missing argument 'INPUT'"),
        (["run", "in", "-o", "out", "--json"], "where do the requests go?"),
        (["run", "in", "-o", "out", "--demo", "--json", "--order=random"], "--order is one of"),
        (["run", "in", "--demo", "--json"], "give --output FILE"),
        (["--nosuch", "run", "--json"], "--nosuch"),
        (["nosuch", "--json"], "No such command 'nosuch'"),
        (["doctor", "--json", "--api-base", "x"], "--api-base is the address of a model"),
        (["doctor", "--json", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_option_is_an_event_in_json(words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stderr) == (2, "")
    (event,) = map(json.loads, done.stdout.splitlines())
    assert event["event"] == "error"
    assert says in event["text"]


def test_of_many_bad_lines_twenty_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{\n" * 1000)
    shown = CliRunner().invoke(cli.app, ["run", str(source), "--validate"]).stderr
    assert shown.count("invalid_json_line") == 20
    assert "and 980 more bad lines\n0 requests (none), 1,000 bad lines\n" in shown
    done = CliRunner().invoke(cli.app, ["run", str(source), "--validate", "--json"])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["problem"] * 20 + ["checked", "error"]
    assert events[20]["problems"] == 1000


def test_bad_lines_are_read_again_with_names_of_their_own(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    good = {"model": "m", "messages": MESSAGES}
    lines: list[Any] = [{"custom_id": "a", **good}, *[{"custom_id": "a", **good}] * 30]
    lines += [{"custom_id": "40"}, {"custom_id": "33", **good}, {"custom_id": "a#line-2"}]
    lines += [*range(6), {"custom_id": "b", **good}, {"custom_id": "b", **good}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with InputFile(source) as file:
        summary = file.check()
        problems = list(file.problems())
        assert (summary.requests, summary.bad_lines) == (3, len(problems)) == (3, 39)
        assert problems[:20] == summary.problems
        names = [problem.custom_id for problem in problems]
        names += [request.custom_id for request in file.requests()]
        assert len(set(names)) == len(names) == len(lines)
        assert list(file.problems()) == problems
        assert "is that of line 1" in problems[0].message
        assert problems[-1].message.endswith("is that of line 41")
        assert names[:2] == ["a#line-2#line-2", "a#line-3"] or names[0] == "a#line-2"


def test_of_many_models_some_are_named(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", *(f"m{number}" for number in range(100)))
    shown = CliRunner().invoke(cli.app, ["run", str(source), "--validate"]).stderr
    assert "100 requests (m0 1, m1 1, " in shown
    assert "m19 1 and 80 more)" in shown


# --- imports ---


def test_the_command_loads_no_client_before_it_needs_one() -> None:
    ran = subprocess.run(
        [sys.executable, SCRIPTS / "what_the_command_imports.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert ran[0].startswith("parallel-core ")
    assert ran[1:] == ["[]"]


# --- a question and signals ---


class Moments:
    """Sends a signal before a given line of the code that asks is run, and counts the lines."""

    def __init__(self, at: int) -> None:
        self.number = 0
        self.sent = False
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code is not Question.ask.__code__ and code.co_filename != _run_signals.__file__:
            return None
        if event == "line":
            self.number += 1
            if self.number == self._at:
                self.sent = True
                signal.raise_signal(signal.SIGTERM)
        return self


@contextlib.contextmanager
def traced(trace: Any) -> Generator[None]:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def ask(
    at: int, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunState, list[int], Moments]:
    """Ask on a terminal. Gives the state after it and the signals that the loop has seen."""
    keyboard, terminal = pty.openpty()
    state = RunState()
    signals = StopSignals()
    real_select: Any = select.select

    def wait(*arguments: Sequence[Any]) -> Any:
        if not moments.sent:  # else only the signal can end the wait
            os.write(keyboard, answer)
        return real_select(*arguments)

    router: Any = None  # a question needs none
    question = Question(JsonView(io.StringIO()), state, signals, router, 0.0)
    moments = Moments(at)
    seen: list[int] = []

    async def run() -> None:
        with signals.handled(seen.append):
            with traced(moments):
                question.ask("Send?")
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    with os.fdopen(terminal, "r", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        monkeypatch.setattr(_run_signals, "select", SimpleNamespace(select=wait))
        # Where a signal is lost, this ends the wait, with another outcome.
        late = threading.Timer(PATIENCE, os.write, (keyboard, b"n\n"))
        late.start()
        try:
            asyncio.run(run())
        finally:
            late.cancel()
            late.join()
            monkeypatch.undo()
    os.close(keyboard)
    os.close(terminal)
    return state, seen, moments


def test_a_signal_at_any_moment_ends_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted, whole = 0, 1
    at = 0
    while at < whole:
        at += 1
        state, seen, moments = ask(at, b"y\n", monkeypatch)
        whole = max(whole, moments.number)
        if not moments.sent:  # a signal makes more lines
            break
        assert state.declined == state.interrupted
        # When the answer has been taken, the signal is the loop's. It is told once.
        assert seen == ([] if state.interrupted else [signal.SIGTERM])
        interrupted += state.interrupted
    assert 20 < interrupted < whole


@pytest.mark.parametrize(
    ("answer", "declined"),
    [(b"y\n", False), (b"YES\n", False), (b"n\n", True), (b"\n", True), (b"x\ny\n", False)],
)
def test_a_question_takes_yes_and_no(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, declined: bool
) -> None:
    state, seen, _ = ask(0, answer, monkeypatch)
    assert (state.declined, state.interrupted, seen) == (declined, False, [])


# --- what holds a run up ---


def waiting(model: str, endpoint: str | None, since: float, next_try: float | None) -> Waiting:
    return Waiting(model, endpoint, "no connection to the server", since, next_try)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            [waiting("gpt", "http://host:8000", 40.2, 7.1)],
            ["http://host:8000: no connection to the server, since 40 s, next try in 8 s"],
        ),
        (
            [waiting("gpt", None, 1200, None)],
            ["gpt: no connection to the server, since 1,200 s, trying now"],
        ),
        (
            [waiting(model, "http://host", 9 * n, 5 + n) for n, model in enumerate("abc")],
            ["http://host: no connection to the server, since 18 s, next try in 5 s"],
        ),
        (
            [waiting(model, None, 1, 1) for model in "abcde"],
            [
                *(
                    f"{model}: no connection to the server, since 1 s, next try in 1 s"
                    for model in "abc"
                ),
                "and 2 more",
            ],
        ),
    ],
)
def test_what_a_run_waits_for(given: list[Waiting], shown: list[str]) -> None:
    texts = describe_waiting(given)
    assert [text.removeprefix("waiting for ") for text in texts] == shown


def test_what_holds_a_run_up_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = progress_of(
        waiting=(waiting(EVIL, None, 40, 8),),
        stragglers=(RunStraggler("id-7", 320.4, 4.04), RunStraggler("id-9", 41, 4.04)),
    )
    waits = f"waiting for {HARMLESS}: no connection to the server, since 40 s, next try in 8 s"
    holds_up = (
        "id-7 (320 s), id-9 (41 s) take much longer than the median of 4 s: --timeout SECONDS ends "
        "such calls, --hedge p95 sends them twice"
    )
    plain = io.StringIO()
    TextView(error=Console(file=plain)).progress(progress)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal_as_stderr() as screen:
        view = TextView()
        view.progress(progress)
        view.close()
        live = screen()
    for text in (waits, holds_up):
        assert text in plain.getvalue()
        assert text in " ".join(live.split())
    assert not describe_stragglers(())


def test_that_a_run_waits_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(_run_view, "time", SimpleNamespace(monotonic=lambda: now, strftime=str))
    plain = io.StringIO()
    view = TextView(error=Console(file=plain))
    waits = {"waiting": (waiting("m", None, 1, 1),)}
    expected = 0
    for seconds, fields, is_told in (
        (0.0, {}, True),
        (0.5, waits, False),
        (1.0, waits, True),
        (4.0, waits, False),
        (5.0, {}, True),
        (9.0, {}, False),
    ):
        now = 100.0 + seconds
        view.progress(progress_of(**fields))
        expected += is_told
        assert plain.getvalue().count("\n") == expected, seconds
