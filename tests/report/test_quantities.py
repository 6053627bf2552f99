"""Counts, money and durations as texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from parallel_core import quantities


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        (quantities.clock, 0.0, "0:00"),
        (quantities.clock, 61.0, "1:01"),
        (quantities.clock, 4000.3, "1:06:40"),
        (quantities.clock, math.inf, "2400000:00:00"),
        (quantities.money, 0.0, "0.00"),
        (quantities.money, 0.0012, "0.001200"),
        (quantities.money, 0.5, "0.5000"),
        (quantities.money, 1234.5, "1,234.50"),
        (quantities.short_count, 999, "999"),
        (quantities.short_count, 1234, "1.2k"),
        (quantities.short_count, 999_999, "1.0M"),
    ],
)
def test_quantities(text: Callable[[Any], str], value: float, shown: str) -> None:
    assert text(value) == shown
