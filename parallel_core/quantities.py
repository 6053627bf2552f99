"""Counts, money, durations and rates as texts."""

from __future__ import annotations

NOTHING = "-"
_MINUTE = 60.0
_HOUR = 60.0 * _MINUTE
_DAY = 24.0 * _HOUR
_LONGEST = 100_000 * _DAY  # an estimate may be infinite


def count(number: int) -> str:
    """Format a count: ``1,234,567``."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Format a count of things: ``1 request``, ``1,234 requests``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seconds(value: float | None) -> str:
    """Format a latency with three significant digits: ``0.0123``, ``1.23``, ``123``."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.4f}"


def span(value: float) -> str:
    """Format a duration in seconds: ``12.3 s``, ``4 min 05 s``, ``3 h 20 min``, ``2 d 4 h``."""
    if value < _MINUTE:
        return f"{value:.3g} s"
    if value < _HOUR:
        whole = round(value)
        return f"{whole // 60} min {whole % 60:02} s"
    if value < _DAY:
        whole = round(value / _MINUTE)
        return f"{whole // 60} h {whole % 60:02} min"
    whole = round(value / _HOUR)
    return f"{whole // 24:,} d {whole % 24} h"


def money(value: float) -> str:
    """Format USD with all significant digits: ``123.45``, ``0.001200``."""
    if value == 0 or value >= 100:
        return f"{value:,.2f}"
    return f"{value:.4f}" if value >= 0.01 else f"{value:.6f}"


def short_money(value: float) -> str:
    """Format USD with few characters: ``$1,234.50``, ``$0.0125``."""
    return f"${value:,.{2 if value >= 1 else 4}f}"


def rate(value: float | None) -> str:
    """Format calls per second with three significant digits."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def clock(value: float) -> str:
    """Format a duration in seconds like a clock: ``4000.3`` as ``1:06:40``, ``61`` as ``1:01``."""
    minutes, second = divmod(round(min(value, _LONGEST)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def short_count(number: int) -> str:
    """Format a count with three digits at most: ``1234`` as ``1.2k``."""
    amount = float(number)
    for unit in ("", "k", "M"):
        if round(amount, 1) < 1000:
            return f"{amount:.1f}{unit}" if unit else str(number)
        amount /= 1000
    return f"{amount:.1f}B"
