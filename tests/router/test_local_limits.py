"""Open files, and connections to one host: what a run makes of the limits of its machine."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.forked_processes import ForkedProcesses
from parallel_core import AdaptiveConcurrency
from parallel_core.control import local_limits
from parallel_core.control.local_limits import (
    allow_connections,
    fit_open_files,
    warn_of_connections,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

SCRIPT = Path(__file__).parent / "scripts" / "too_many_open_files.py"

resource = pytest.importorskip("resource")  # Windows has none


class Limits:
    """Stands for the system: a soft and a hard limit, and what it allows at most."""

    def __init__(self, soft: int, hard: int, most: float = float("inf")) -> None:
        self.now = (soft, hard)
        self.most = most

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        soft = limits[0]
        if soft == resource.RLIM_INFINITY or soft > self.most:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


@pytest.fixture
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Limits:
    limits = Limits(*request.param)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    monkeypatch.setattr(local_limits, "_open_files", lambda: 10)
    return limits


INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "soft"),
    [
        ((256, 4096), 4096),
        ((4096, 4096), 4096),
        ((256, INFINITE, 10_240), 10_240),
        ((256, 4096, 1000), 256),
        ((INFINITE, INFINITE), INFINITE),
    ],
    indirect=["limits"],
)
def test_the_soft_limit_becomes_the_hard_one(limits: Limits, soft: int) -> None:
    local_limits.raise_open_files()
    assert limits.now[0] == soft


@pytest.mark.parametrize(
    ("limits", "concurrency", "per_call", "fits"),
    [
        ((4096, 4096), 500, 1, 500),
        ((256, 4096), 500, 1, 182),
        ((256, 256), 500, 2, 91),
        ((64, 64), 500, 1, 1),
        ((INFINITE, INFINITE), 100_000, 1, 100_000),
        ((256, 256), "auto", 1, AdaptiveConcurrency(initial=16, maximum=182)),
        ((4096, 4096), "auto", 1, "auto"),
    ],
    indirect=["limits"],
)
def test_a_concurrency_that_does_not_fit_is_lowered_and_said(
    limits: Limits, concurrency: Any, per_call: int, fits: Any
) -> None:
    lowered, note = fit_open_files(concurrency, per_call)
    assert lowered == fits
    if fits == concurrency:
        assert note is None
    else:
        assert note is not None
        assert f"{limits.now[0]} files" in note


def test_litellm_is_to_open_a_connection_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AIOHTTP_SO_KEEPALIVE", "AIOHTTP_CONNECTOR_LIMIT", "AIOHTTP_CONNECTOR_LIMIT_PER_HOST")

    def variables(calls: int, **given: str) -> list[str | None]:
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        allow_connections(calls)
        found = [os.environ.get(name) for name in names]
        for name in names:
            monkeypatch.delenv(name, raising=False)
        return found

    assert variables(500) == ["true", None, None]
    assert variables(800) == ["true", None, "800"]
    assert variables(2000) == ["true", "2000", "2000"]
    own = {"AIOHTTP_SO_KEEPALIVE": "false", "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "10"}
    assert variables(800, **own) == ["false", None, "10"]


def test_a_library_user_is_told_of_connections(caplog: pytest.LogCaptureFixture) -> None:
    import litellm.constants

    limit = litellm.constants.AIOHTTP_CONNECTOR_LIMIT_PER_HOST
    with caplog.at_level(logging.WARNING, "parallel_core"):
        warn_of_connections(limit)
        assert not caplog.messages
        for _ in range(2):
            warn_of_connections(limit + 7)
    (message,) = caplog.messages
    assert f"{limit} connections" in message


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts its open files there")
def test_too_many_open_files_is_no_failure_of_a_line(
    commands: ForkedProcesses, tmp_path: Path
) -> None:
    with (tmp_path / "in.jsonl").open("w") as lines:
        for number in range(24):
            body: dict[str, Any] = {
                "model": "fast",
                "messages": [{"role": "user", "content": f"{number}"}],
            }
            if number:  # the first one is sent on its own
                body["extra_body"] = {"demo": {"held": True}}
            lines.write(json.dumps(body) + "\n")
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        server.hold()
        process = commands.start([str(tmp_path), server.url], script=SCRIPT, folder=tmp_path)
        process.wait_for("local\n")  # so many are in flight that there are no more files
        server.release()
        assert process.wait() == 0, process.output
        assert process.stdout == "local\ncomplete 23 0\n", process.output
        assert server.stats().accepted == 24
