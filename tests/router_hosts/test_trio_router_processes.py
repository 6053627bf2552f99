"""Routers in trio, in processes of their own: trio-asyncio, Ctrl-C, and what a process becomes.

What is about a fresh interpreter runs in one. The others are forked, and have litellm already.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.forked_processes import ForkedProcess, ForkedProcesses
from parallel_core.demo_server import DemoServerThread

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
TIMEOUT = 100.0  # seconds; importing litellm takes some of them, and many on a busy machine
SERVER_TIMEOUT = 60.0

needs_trio_asyncio = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="trio-asyncio does not work there"
)

NOISE = (
    "Task was destroyed",
    "asynchronous generator",
    "TrioInternalError",
    "Task exception was never retrieved",
    "Exception ignored",
    "nhandled exception",
    "ResourceWarning",
    "Traceback",
)


class Scripts:
    """Runs scripts that use the server."""

    def __init__(self, forks: ForkedProcesses, folder: Path, server: DemoServerThread) -> None:
        self._forks = forks
        self._folder = folder
        self._server = server
        self._started: list[ForkedProcess] = []

    def start(self, name: str, *arguments: str) -> ForkedProcess:
        process = self._forks.start(
            arguments,
            script=SCRIPTS / f"{name}.py",
            folder=self._folder,
            standard_input=None,
            environment={"DEMO_URL": self._server.url},
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()

    def check(self, name: str, *arguments: str) -> None:
        """Run it. It must say that all is fine, and nothing that is not."""
        process = self.start(name, *arguments)
        self._check(process.wait(TIMEOUT), process.stdout, process.stderr)

    def check_afresh(self, name: str) -> None:
        """The same, in an interpreter that has imported nothing."""
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / f"{name}.py")],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={
                **os.environ,
                "DEMO_URL": self._server.url,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
        self._check(done.returncode, done.stdout, done.stderr)

    def _check(self, code: int, out: str, err: str) -> None:
        assert code == 0, err
        assert out.splitlines()[-1:] == ["fine"], out + err
        assert_no_noise(err)
        self._server.wait_idle(SERVER_TIMEOUT)


def assert_no_noise(err: str) -> None:
    for word in NOISE:
        assert word not in err, err


@pytest.fixture
def scripts(
    commands: ForkedProcesses, tmp_path: Path, server: DemoServerThread
) -> Iterator[Scripts]:
    with contextlib.closing(Scripts(commands, tmp_path, server)) as runs:
        yield runs


@needs_trio_asyncio
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("test_trio_router", ["-k", "fail_fast or leaving_early"]),
        pytest.param("test_trio_router", ["-m", "not thorough"], marks=pytest.mark.thorough),
        pytest.param("test_trio_router", ["-m", "thorough"], marks=pytest.mark.thorough),
        pytest.param("test_trio_router_streams", [], marks=pytest.mark.thorough),
    ],
    ids=["ends", "calls", "thorough", "streams"],
)
def test_everything_works_on_a_loop_of_trio_asyncio(
    name: str, chosen: list[str], scripts: Scripts
) -> None:
    """The tests that stand beside this for the other hosts, on the host "trio-asyncio"."""
    process = scripts.start("pytest_on_trio_asyncio", *chosen, str(HERE / f"{name}.py"))
    code = process.wait(TIMEOUT)
    assert code == 0, process.output
    assert " passed" in process.stdout
    assert "skipped" not in process.stdout


def test_a_process_stays_what_it_was(scripts: Scripts) -> None:
    scripts.check("stays_what_it_was")


@pytest.mark.thorough
def test_a_fresh_interpreter_stays_what_it_was(scripts: Scripts) -> None:
    """Also what litellm imports and starts at its first calls changes nothing of it."""
    scripts.check_afresh("stays_what_it_was")


@needs_trio_asyncio
@pytest.mark.parametrize(
    "what",
    [
        "opened_by_the_application",
        "with_an_executor_of_its_own",
        "closed_under_a_batch",
        "cancelled_in_the_executor",
        "closed_with_its_host",
    ],
)
def test_a_loop_of_trio_asyncio(what: str, scripts: Scripts) -> None:
    """Each is described in the script."""
    scripts.check("on_trio_asyncio", what)


@needs_trio_asyncio
def test_asyncio_code_under_trio_asyncio(scripts: Scripts, server: DemoServerThread) -> None:
    """It uses the asyncio API, and the trio run that is there."""
    scripts.check("on_trio_asyncio", "asyncio_code")
    assert server.stats().finished == 32


FORMS = {"list": 16, "block": 16, "host": 1, "stream": 1}  # and their calls in flight
# Daily, each host once: what a form does is the same on each host.
DAILY = {("list", "thread-uvloop"), ("stream", "trio-asyncio"), ("block", "thread")}


@pytest.mark.parametrize(
    ("form", "host"),
    [
        pytest.param(form, host, marks=[] if (form, host) in DAILY else pytest.mark.thorough)
        for form in FORMS
        for host in ("thread", "thread-uvloop", "trio-asyncio")
    ],
)
def test_ctrl_c(form: str, host: str, scripts: Scripts, server: DemoServerThread) -> None:
    if host == "trio-asyncio" and sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio does not work there")
    if host == "thread-uvloop":
        pytest.importorskip("uvloop")
    count = FORMS[form]
    process = scripts.start("ctrl_c", host, form)
    server.wait_in_flight(count, TIMEOUT)
    if form == "stream":
        process.wait_for("a chunk\n")
    process.write("now\n")
    code, out, err = process.wait(TIMEOUT), process.stdout, process.stderr
    lines = [line for line in out.splitlines() if line != "a chunk"]
    assert lines == ["ended", "interrupted []"], out + err
    assert code == 0, err
    assert_no_noise(err)
    server.wait_idle(SERVER_TIMEOUT)
    stats = server.stats()
    assert stats.accepted == stats.disconnected == count
    assert stats.open_connections == 0
