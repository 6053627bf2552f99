"""The server and the hosts of this folder."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.trio_routers import names


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> Any:
    """The name of a host of a Router, as ``router_host=`` takes it."""
    return request.param
