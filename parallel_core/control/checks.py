"""Checks of option values. Each message names the option and what it accepts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any


def checked_number(name: str, value: object, *, zero: bool = False) -> float:
    """Return a value that must be a finite number above 0 (``zero``: at least 0).

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__qualname__}")
    accepted = "at least 0" if zero else "above 0"
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        raise ValueError(f"{name} must be a finite number {accepted}: it is too large") from None
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {accepted}, not {value!r}")
    return number


def checked_count(name: str, value: object, *, minimum: int = 1) -> int:
    """Return a value that must be an integer of at least ``minimum``.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below the minimum.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {type(value).__qualname__}")
    number: Any = value
    count = int(number.__index__())
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {count}")
    return count


def checked_callback(name: str, value: object) -> Callable[[Any], object]:
    """Return a wrapper of a value that must be a plain function of one argument.

    The wrapper raises TypeError if ``value`` returns an awaitable, which nothing would await. It
    closes a coroutine first.

    Raises:
        TypeError: it cannot be called, or it is an async function.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a plain function, not {type(value).__qualname__}")
    if _is_async(value) or _is_async(getattr(value, "__call__", None)):  # noqa: B004
        raise TypeError(f"{name} must be a plain function, not an async function")

    def call(argument: Any) -> object:
        returned = value(argument)
        if inspect.isawaitable(returned):
            close: Any = getattr(returned, "close", None)
            if callable(close):
                close()  # or Python would warn that it was never awaited
            raise TypeError(
                f"{name} must be a plain function: it has returned "
                f"{type(returned).__qualname__}, which nobody awaits"
            )
        return returned

    return call


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def checked_flag(name: str, value: object) -> bool:
    """Return a value that must be True or False.

    Raises:
        TypeError: it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__qualname__}")
    return value


def is_amount(value: object) -> bool:
    """Return True if it is a finite number >= 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
