"""``parallel-core demo``: what it checks, and its exit code.

The runs are played here, on a real server. ``make demo`` runs it for real, and so does a snippet.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from parallel_core.cli import commands
from parallel_core.cli.demo import _ctrl_c_after, demo  # pyright: ignore[reportPrivateUsage]
from parallel_core.demo_server import DemoServerThread

TOTAL, IN_FLIGHT = 30, 24
IDS = range(1, TOTAL + 1)


def ask(url: str) -> int:
    """Send a request, and return the status of its answer."""
    body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"{url}/chat/completions",
        json.dumps({**body, "demo": {"latency": 0.0}}).encode(),
        {"Authorization": "Bearer demo"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code


class PlayedRuns:
    """Plays the runs of the demo: writes lines, asks the server, and returns an exit code.

    Args:
        changes: by the number of a run, from 0: other lines or another exit code than usual.
    """

    server: DemoServerThread

    def __init__(self, **changes: dict[str, Any]) -> None:
        self.changes = {int(name.removeprefix("run")): value for name, value in changes.items()}
        self.commands = list[Sequence[str]]()

    def __call__(self, command: Sequence[str]) -> int:
        number = len(self.commands)
        self.commands.append(command)
        usual: dict[str, Any] = [
            {"ids": IDS, "code": 0},
            {"ids": IDS[:10], "code": 130, "asked": 10},
            {"ids": IDS[10:], "code": 0, "asked": 20},
            {"ids": [], "code": 1, "in_flight": IN_FLIGHT - 1},
        ][number]
        play = {"asked": 0, "in_flight": 0, **usual, **self.changes.get(number, {})}
        config = json.loads(Path("config.yaml").read_text())
        url = config["model_list"][0]["litellm_params"]["api_base"]
        for _ in range(play["asked"]):
            assert ask(url) == 200
        self._cancel(url, play["in_flight"])
        with Path(command[3]).open("a") as output:
            for custom_id in play["ids"]:
                status = 200 if custom_id > 0 else 500
                line = {"custom_id": str(abs(custom_id)), "response": {"status_code": status}}
                output.write(json.dumps(line) + "\n")
        return int(play["code"])

    def _cancel(self, url: str, calls: int) -> None:
        """Send calls that are never answered, then one that is refused, and hang up."""
        if not calls:
            return
        body = json.dumps({"model": "fast", "messages": [{"role": "user", "content": "hi"}]})
        with contextlib.ExitStack() as connections:
            for _ in range(calls):
                one = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
                connections.callback(one.close)
                one.request("POST", "/v1/chat/completions", body)
            self.server.wait_in_flight(calls, 60)
            assert ask(url) == 400


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    @contextlib.contextmanager
    def server() -> Any:  # a process would take a second to start
        with DemoServerThread() as running:
            PlayedRuns.server = running
            yield running

    monkeypatch.setattr("parallel_core.demo_server.demo_server_process", server)
    # There is no run that would take the signal.
    monkeypatch.setattr("parallel_core.cli.demo._ctrl_c_after", pressed_at_once)
    monkeypatch.setattr("parallel_core.report.summarize", lambda _: None)
    monkeypatch.setattr("parallel_core.report.html_page", lambda _: "the page")
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"n": {custom_id}}}\n' for custom_id in IDS))
    return path


@contextlib.contextmanager
def pressed_at_once(output: Path, answers: int) -> Any:
    pressed = threading.Event()
    pressed.set()
    yield pressed


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "The server saw 23 calls cancelled, the last one"),
        ({"run0": {"code": 1}}, 1, "the run ended with exit code 1, and not every request"),
        ({"run0": {"ids": IDS[:29]}}, 1, "answers.jsonl has 29 lines for 29 of 30 requests"),
        ({"run0": {"ids": [*IDS, 3]}}, 1, "answers.jsonl has 31 lines for 30 of 30 requests"),
        ({"run0": {"ids": [*IDS[:29], -30]}}, 1, "1 requests in answers.jsonl have no answer"),
        ({"run0": {"code": 130}}, 130, ""),
        ({"run1": {"code": 0}}, 1, "the interrupted run ended with exit code 0, not 130"),
        ({"run2": {"code": 130}}, 130, ""),
        ({"run2": {"code": 3}}, 1, "the resumed run ended with exit code 3"),
        ({"run2": {"asked": 21}}, 1, "31 requests were sent"),
        ({"run3": {"code": 130}}, 130, ""),
        ({"run3": {"code": 0}}, 1, "the run ended with exit code 0, not 1"),
        ({"run3": {"in_flight": 0}}, 1, "the server saw 0 of 23 calls cancelled"),
    ],
    ids=str,
)
def test_exit_code(
    changes: dict[str, Any],
    code: int,
    said: str,
    requests: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    played = PlayedRuns(**changes)
    assert demo(played, requests) == code
    output = " ".join(capsys.readouterr().out.split())
    assert said in output
    assert ("Unexpected: " in output) is (code == 1)
    assert ("report.html" in output) is (code == 0)
    if code == 0:
        assert played.commands[1] == played.commands[2]
        assert "The server was asked 30 times for 30 answers." in output


def test_ctrl_c_is_pressed_once_the_answers_are_there(tmp_path: Path) -> None:
    output, arrived = tmp_path / "out.jsonl", threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: arrived.set())
    try:
        with _ctrl_c_after(output, 2) as pressed:
            output.write_text("1\n")
            assert not pressed.is_set()
            output.write_text("1\n2\n")
            assert arrived.wait(60)
            assert pressed.is_set()
        arrived.clear()
        with _ctrl_c_after(output, 3) as pressed:
            pass  # the run has ended before
        assert not pressed.is_set()
        assert not arrived.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_has_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def exits_with_seven(run: object, requests: Path) -> int:
        assert requests.name.endswith("requests.jsonl")
        return 7

    monkeypatch.setattr(commands, "demo", exits_with_seven)
    assert CliRunner().invoke(commands.app, ["demo"]).exit_code == 7


def test_ctrl_c_is_pressed_also_where_the_signal_is_ignored(tmp_path: Path) -> None:
    """As in the background of a script."""
    output = tmp_path / "out.jsonl"
    output.write_text("{}\n")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), _ctrl_c_after(output, 1):
            threading.Event().wait(30)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
