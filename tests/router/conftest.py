"""What the tests of Routers share."""

from __future__ import annotations

import pytest

from helpers.jumping_clocks import JumpingClock


@pytest.fixture(params=["trio", "asyncio"])
def clock(request: pytest.FixtureRequest) -> JumpingClock:
    """A clock that can be moved on, in either library."""
    return JumpingClock(request.param)
