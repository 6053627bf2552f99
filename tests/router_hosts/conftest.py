"""The server and the hosts of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.trio_routers import SERVER_TIMEOUT, names
from parallel_core.demo_server import DemoServerSettings, DemoServerThread


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> Any:
    """Of a host of a Router."""
    return request.param


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        yield server


@pytest.fixture
def server(running_server: DemoServerThread) -> DemoServerThread:
    running_server.wait_idle(SERVER_TIMEOUT)
    running_server.reset_stats()
    return running_server
