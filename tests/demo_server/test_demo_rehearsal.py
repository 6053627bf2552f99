"""``parallel-core demo --trouble``: its two runs, what it checks, and its exit code.

The runs are played here; ``docs/failures.md`` has the command as a snippet, which is run.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError

import pytest
from typer.testing import CliRunner

from parallel_core.cli import commands
from parallel_core.cli.rehearsal import rehearse
from parallel_core.demo_server import DemoServerThread

IDS = [str(number) for number in range(1, 6)]


class PlayedRuns:
    """Writes the lines of one run after the other, instead of sending requests.

    Args:
        runs: of each run its lines, as ids, ``-`` in front of one that has failed; and its code.
    """

    def __init__(self, *runs: tuple[str, int]) -> None:
        self.runs = list(runs)
        self.commands = list[Sequence[str]]()
        self.statuses = list[int]()

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(command)
        options = dict(zip(command[2::2], command[3::2], strict=True))
        self.statuses.append(_status_of_the_revoked_key(Path(options["--config"])))
        lines, code = self.runs.pop(0)
        with Path(options["-o"]).open("a") as output:
            for custom_id in lines.split():
                failed = custom_id.startswith("-")
                response = None if failed else {"status_code": 200}
                line = {"custom_id": custom_id.removeprefix("-"), "response": response}
                output.write(json.dumps(line) + "\n")
        return code


def _status_of_the_revoked_key(config: Path) -> int:
    deployments = json.loads(config.read_text())["model_list"]
    (smart,) = [one["litellm_params"] for one in deployments if one["model_name"] == "smart"]
    request = urllib.request.Request(
        f"{smart['api_base']}/chat/completions",
        json.dumps({"model": "smart", "messages": [{"role": "user", "content": "hi"}]}).encode(),
        {"Authorization": f"Bearer {smart['api_key']}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    # A process would take a second to start.
    monkeypatch.setattr("parallel_core.demo_server.demo_server_process", DemoServerThread)
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(f'{{"n": {custom_id}}}\n' for custom_id in IDS))
    return path


@pytest.mark.parametrize(
    ("runs", "code", "said"),
    [
        ([("1 -2 3", 1), ("4 5", 1)], 0, "5 requests, 5 lines: 4 answers, 1 failure."),
        ([("1 2 3", 1), ("3 4 5", 0)], 1, "1 request has more than one line, such as 3"),
        ([("1 2 3", 1), ("4", 0)], 1, "1 of 5 requests has no line"),
        (
            [("1 -2 -3 -4", 1), ("5", 0)],
            1,
            "3 requests have failed, and at most 2 are meant to fail",
        ),
        (
            [("1 2 3 4", 0), ("5", 0)],
            1,
            "exit code 0, although a key was refused",
        ),
        ([("1", 130)], 130, ""),
        ([("1", 1), ("2", 130)], 130, ""),
        ([("1", 1), ("2", 3)], 3, ""),
    ],
)
def test_exit_code(
    runs: list[tuple[str, int]],
    code: int,
    said: str,
    requests: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    played = PlayedRuns(*runs)
    assert rehearse(played, requests, 4) == code
    output = capsys.readouterr()
    assert said in output.out + output.err
    assert ("What to look at" in output.out) is (len(runs) == 2 and code in (0, 1))
    # The second run is the same command, and the key is accepted.
    assert played.statuses == [401, 200][: len(runs)]
    assert played.commands == [played.commands[0]] * len(runs)


def test_the_command_has_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def exits_with_seven(run: object, requests: Path, concurrency: int) -> int:
        assert requests.name.endswith("requests.jsonl")
        return concurrency

    monkeypatch.setattr(commands, "rehearse", exits_with_seven)
    result = CliRunner().invoke(commands.app, ["demo", "--trouble", "--concurrency", "7"])
    assert result.exit_code == 7
