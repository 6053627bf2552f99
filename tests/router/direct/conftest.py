"""What the tests of the direct lane share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.direct_parity import LISTENERS


@pytest.fixture(autouse=True, scope="package")
def _litellm_prints_nothing() -> Iterator[None]:
    """Keep litellm from printing where to ask for help with each failure."""
    import litellm

    before = litellm.suppress_debug_info
    litellm.suppress_debug_info = True
    yield
    litellm.suppress_debug_info = before


@pytest.fixture(autouse=True, scope="module")
def _nobody_listens() -> Iterator[None]:
    """Take away the callbacks that other tests have left in litellm's lists."""
    import litellm

    before = {name: list(getattr(litellm, name)) for name in LISTENERS}
    for name in LISTENERS:
        getattr(litellm, name).clear()
    yield
    for name, callbacks in before.items():
        getattr(litellm, name)[:] = callbacks
