"""Fixtures of the controls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.threads import Together
from parallel_core.control import progress_bar


@pytest.fixture
def threads() -> Any:
    together = Together()
    yield together
    together.join()


@pytest.fixture
def nothing_stays_on_a_terminal() -> Iterator[None]:
    streams = sys.stdout, sys.stderr
    yield
    assert vars(progress_bar)["_displays"] == {}
    assert (sys.stdout, sys.stderr) == streams
