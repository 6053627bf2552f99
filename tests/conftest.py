from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# Otherwise litellm fetches its price map over the network when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
# Otherwise nothing is drawn again on the terminals of the tests.
os.environ.pop("CI", None)

# Tests import the benchmarks from the repository. It comes last in the path, so that the package is
# imported as it is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import parallel_core
from helpers import hosts
from helpers.forked_processes import ForkedProcesses
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

SERVER_TIMEOUT = 60.0  # seconds


def pytest_configure() -> None:
    """Fail where CI tests the built wheel and Python has found the sources instead."""
    if os.environ.get("PARALLEL_CORE_EXPECT_INSTALLED"):
        repository = Path(__file__).resolve().parent.parent
        package = Path(parallel_core.__file__).resolve().parent
        if package == repository / "parallel_core":
            raise pytest.UsageError(f"parallel_core is imported from the sources: {package}")


class OneRayScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Give each file to one process, and all tests that need Ray to the same one.

    The name of the file or of the case says which do.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        name = Path(file).stem
        needs_ray = "ray" in name or "workers" in name or nodeid.endswith("[ray]")
        return "ray" if needs_ray else file


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave asyncio's debug mode to the thorough tests: it is asyncio with more checks."""
    for item in items:
        callspec = getattr(item, "callspec", None)  # of a test with parameters
        values = callspec.params.values() if callspec else ()
        if any(isinstance(value, hosts.Host) and value.debug for value in values):
            item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRayScheduling:
    return OneRayScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the CPU time of the tests. It depends less on a busy machine than their duration."""
    times = os.times()
    own, children = times.user + times.system, times.children_user + times.children_system
    terminalreporter.write_line(f"{own + children:.0f} s of CPU, without processes of Ray")


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """Let a test collect what it has made itself, and not all of litellm each time."""
    is_forked = gc.get_freeze_count() > 0  # from one that froze what it had: tests/mutants.py
    gc.freeze()
    yield
    if not is_forked:
        gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _routers_are_forgotten() -> Iterator[None]:
    """Remove the callbacks of Routers: litellm accepts a hundred in a process."""
    yield
    litellm: Any = sys.modules.get("litellm")
    if litellm is None:
        return
    for name in dir(litellm):
        callbacks = getattr(litellm, name) if name.endswith("callback") else None
        if isinstance(callbacks, list):
            callbacks[:] = [
                callback
                for callback in callbacks
                if not hasattr(getattr(callback, "__self__", None), "acompletion")
            ]


@pytest.fixture
def no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove keys, addresses and proxies from the environment."""
    for name in list(os.environ):
        if name.upper().endswith(("_KEY", "_TOKEN", "_PROXY", "_API_BASE", "_BASE_URL")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    """The server behind ``server``. A file that needs other settings defines its own."""
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        yield server


@pytest.fixture
def server(running_server: DemoServerThread) -> DemoServerThread:
    """A demo server that is idle and has counted nothing."""
    running_server.wait_idle(SERVER_TIMEOUT)
    running_server.reset_stats()
    return running_server


@pytest.fixture(scope="session")
def commands() -> Iterator[ForkedProcesses]:
    """A process that has imported litellm, and forks for each command."""
    with ForkedProcesses() as started:
        yield started


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """Ray, started once. Its workers are forks of a process that has imported litellm."""
    from helpers.ray_runtime import started_ray

    with started_ray() as module:
        yield module


@pytest.fixture(params=hosts.HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> hosts.Host:
    """Each host in turn: trio, and every kind of asyncio loop."""
    value: hosts.Host = request.param
    return value


@pytest.fixture(params=hosts.EACH_LIBRARY, ids=lambda host: host.name)
def either_library(request: pytest.FixtureRequest) -> hosts.Host:
    """Trio and plain asyncio, where the kind of asyncio loop cannot matter."""
    value: hosts.Host = request.param
    return value


@pytest.fixture(params=hosts.ASYNCIO_HOSTS, ids=lambda host: host.name)
def asyncio_host(request: pytest.FixtureRequest) -> hosts.Host:
    """Each kind of asyncio loop."""
    value: hosts.Host = request.param
    return value


# The same examples on every run. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("default", derandomize=True, deadline=None, max_examples=100)
# `make test` and CI on further Pythons use HYPOTHESIS_PROFILE=few.
settings.register_profile("few", derandomize=True, deadline=None, max_examples=20)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
