"""What the tests of the asyncio bridge share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from helpers import bridge_checks
from helpers.bridge_processes import Scripts
from helpers.forked_processes import ForkedProcesses


@pytest.fixture
def leaving_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    with bridge_checks.leaving_nothing(capfd, caplog):
        yield


@pytest.fixture(scope="session")
def scripts() -> Iterator[Scripts]:
    """Starts the scripts of this folder, in development mode and with warnings as errors."""
    with ForkedProcesses(
        warnings=["error"], dev_mode=True, modules=["helpers.bridge_scripts"]
    ) as forks:
        yield Scripts(forks)


@pytest.fixture(params=["asyncio", "uvloop", "eager"])
def loop(request: pytest.FixtureRequest) -> str:
    """The loop of a script."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    if request.param == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    name: str = request.param
    return name
