"""What the files of this folder share: a server, and what runs batches or makes tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.hosts import HOSTS, Host
from helpers.routers import make_router
from parallel_core.demo_server import DemoServerSettings, DemoServerThread


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    models = {"fast": 1.0, "slow": 1.0, "smart": 1.0}
    with DemoServerThread(DemoServerSettings(latency_median=0.0, models=models)) as running:
        yield running


@pytest.fixture(params=[host for host in HOSTS if not host.debug], ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Each host but asyncio's debug mode, which adds nothing here; starts of workers take time."""
    value: Host = request.param
    return value


@pytest.fixture
def asyncio_only() -> Host:
    return Host("asyncio", "asyncio")


@pytest.fixture
def make(server: DemoServerThread) -> Callable[[], Any]:
    """Makes a Router of the server."""
    server.reset_stats()
    address: Any = SimpleNamespace(url=server.url)  # a server could not be sent
    return lambda: make_router(address)


@pytest.fixture(params=["as_numpy", "as_pandas", "as_arrow"])
def table(request: pytest.FixtureRequest) -> Any:
    """Makes a table of lists, in each format of ray.data."""
    from helpers import ray_tables  # where its libraries are missing, tests of tables are skipped

    return getattr(ray_tables, request.param)
