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

# litellm would otherwise fetch its price map over the network at import.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# The benchmarks lie beside the tests. At the end, for the package is imported as it is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import parallel_core
from helpers import hosts
from helpers.forked_processes import ForkedProcesses
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

SERVER_TIMEOUT = 60.0  # seconds


def pytest_configure() -> None:
    """CI runs the suite against the built wheel, and must not pick up the sources instead."""
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRayScheduling:
    return OneRayScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests have cost, which a busy machine changes less than their time."""
    times = os.times()
    own, children = times.user + times.system, times.children_user + times.children_system
    terminalreporter.write_line(f"{own + children:.0f} s of CPU, but for processes that Ray owns")


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """What a test collects is what it has made, and not all of litellm each time."""
    is_forked = gc.get_freeze_count() > 0  # from one that froze what it had: tests/mutants.py
    gc.freeze()
    yield
    if not is_forked:
        gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _routers_are_forgotten() -> Iterator[None]:
    """litellm knows each Router by its callbacks, and takes no more than a hundred in a process."""
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
    """The process that forks for each command: it imports litellm once."""
    with ForkedProcesses() as started:
        yield started


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """Ray, started once: its workers are forks, and begin with litellm imported."""
    from helpers.ray_runtime import started_ray

    with started_ray() as module:
        yield module


@pytest.fixture(params=hosts.HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> hosts.Host:
    """Each world in which a batch can run, one after the other."""
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
# HYPOTHESIS_PROFILE=few is for one more Python.
settings.register_profile("few", derandomize=True, deadline=None, max_examples=20)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
