"""The web service of the examples, served for real: Hypercorn on trio, Quart, a Router, HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0  # seconds; importing litellm takes some of them
SERVER_TIMEOUT = 60.0


@pytest.fixture(scope="module")
def provider() -> Iterator[DemoServerThread]:
    models = {"gpt-4o-mini": 1.0}
    with DemoServerThread(DemoServerSettings(models=models, latency_median=0.2)) as server:
        yield server


@pytest.fixture(scope="module")
def address(provider: DemoServerThread) -> Iterator[tuple[str, int]]:
    with service(provider) as address:
        yield address


@pytest.fixture
def server(provider: DemoServerThread) -> DemoServerThread:
    provider.wait_idle(SERVER_TIMEOUT)
    provider.set_trouble(())
    provider.reset_stats()
    return provider


pytestmark = pytest.mark.thorough  # two fresh processes


@contextlib.contextmanager
def service(provider: DemoServerThread) -> Iterator[tuple[str, int]]:
    """The address of the service, started with the command that the example names."""
    command = "hypercorn --worker-class trio examples.trio_web:app --bind 127.0.0.1:0"
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its worker process can be ended with it
        env={**os.environ, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"},
    )
    try:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"Running on http://([\d.]+):(\d+)", line):
                break
        assert found is not None, "the service did not start"
        yield found[1], int(found[2])
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output
        assert "Traceback" not in output, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def post(address: tuple[str, int], count: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
    body = json.dumps({"questions": [f"Question {number}?" for number in range(count)]})
    connection.request("POST", "/ask", body, {"Content-Type": "application/json"})
    return connection


def test_one_request_fans_out(address: tuple[str, int], server: DemoServerThread) -> None:
    for _ in range(2):
        connection = post(address, 30)
        response = connection.getresponse()
        assert response.status == 200
        answers = json.loads(response.read())["answers"]
        assert len(answers) == 30
        assert all("synthetic" in answer for answer in answers)
        connection.close()
    stats = server.stats()
    assert stats.finished == 60
    assert 1 < stats.max_in_flight <= 16
    # One Router keeps its connections over the requests of the service.
    assert stats.open_connections <= 16


def test_a_client_that_disconnects_ends_its_calls_and_no_others(
    address: tuple[str, int], server: DemoServerThread
) -> None:
    server.set_trouble([Trouble("hang")])
    staying = post(address, 3)
    server.wait_in_flight(3, SERVER_TIMEOUT)
    leaving = post(address, 40)
    server.wait_in_flight(3 + 16, SERVER_TIMEOUT)
    leaving.close()
    wait_for_disconnects(server, 16)
    stats = server.stats()
    assert (stats.in_flight, stats.accepted) == (3, 19)
    staying.close()
    server.wait_idle(SERVER_TIMEOUT)
    assert server.stats().disconnected == 19


def wait_for_disconnects(server: DemoServerThread, count: int) -> None:
    deadline = time.monotonic() + SERVER_TIMEOUT
    while server.stats().disconnected < count:
        assert time.monotonic() < deadline, server.stats()
