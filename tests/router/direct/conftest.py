"""What the tests of the direct lane share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _litellm_prints_nothing() -> Iterator[None]:
    """Keep litellm from printing where to ask for help with each failure."""
    import litellm

    before = litellm.suppress_debug_info
    litellm.suppress_debug_info = True
    yield
    litellm.suppress_debug_info = before
