"""``parallel-core run`` while a server is away: it says so, goes on by itself, loses no line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.forked_processes import ForkedProcesses
from helpers.ports import held_port
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.report import summarize

SETTINGS = DemoServerSettings(latency_median=0.0, models={"fast": 1.0})
REFUSED = "no connection to the server"


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine on which nothing listens."""
    with held_port() as number:
        yield number


def write(folder: Path, port: int, number: int) -> None:
    url = f"http://127.0.0.1:{port}/v1"
    (folder / "config.yaml").write_text(
        "model_list:\n  - model_name: fast\n"
        f"    litellm_params: {{model: openai/fast, api_base: '{url}', api_key: none}}\n"
    )
    with (folder / "in.jsonl").open("w") as lines:
        for n in range(number):
            body = {"model": "fast", "messages": [{"role": "user", "content": f"{n}"}]}
            lines.write(json.dumps({"custom_id": f"id-{n}", "body": body}) + "\n")


@pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(40, [], id="plain lines", marks=pytest.mark.thorough),
        pytest.param(1, [], id="one request"),
        pytest.param(
            40,
            ["--concurrency=auto", "--json"],
            id="auto, JSON",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_server_that_is_not_up_yet_is_waited_for(
    tmp_path: Path, commands: ForkedProcesses, port: int, number: int, options: list[str]
) -> None:
    write(tmp_path, port, number)
    words = ["run", "in.jsonl", "-o", "out.jsonl", "--config=config.yaml", *options]
    process = commands.start(words, folder=tmp_path)
    try:
        if "--json" in options:
            process.wait_for(f'"endpoint":"http://127.0.0.1:{port}","reason":"{REFUSED}","since":')
        else:
            process.wait_for(f"waiting for http://127.0.0.1:{port}: {REFUSED}, since ")
            process.wait_for(", next try in ")
        with DemoServerThread(SETTINGS, port=port) as server:
            assert process.wait() == 0, process.output
            assert server.stats().accepted == number
    finally:
        process.kill()
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == number
    assert all(json.loads(line)["error"] is None for line in lines)
    if "--json" in options:
        events = [json.loads(line) for line in process.stdout.splitlines()]
        progress = [event for event in events if event["event"] == "progress"]
        assert progress[-1]["finished"]
        assert progress[-1]["waiting"] == progress[-1]["stragglers"] == []
    # The report knows when nothing got through, and that the run has ended.
    report = summarize(tmp_path / "out.jsonl")
    assert (report.expected, report.ending, report.total.ok) == (number, "complete", number)
    assert report.waits
    for wait in report.waits:
        assert (wait.model, wait.reason) == ("fast", REFUSED)
        assert wait.seconds is not None
        assert wait.seconds > 0
