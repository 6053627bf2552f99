"""Cases that `make test` leaves out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def thorough_but(
    daily: Collection[T], values: Iterable[T], name: Callable[[T], str] = str
) -> list[Any]:
    """Parameters of a test: all of these values, of which `make test` takes the daily ones."""
    return [
        pytest.param(value, id=name(value), marks=[] if value in daily else pytest.mark.thorough)
        for value in values
    ]
