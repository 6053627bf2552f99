"""Counts of a batch, snapshots of it, and a terminal on which they are drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from parallel_core.control.progress import Progress, ProgressReporter
from parallel_core.types import Usage


@dataclass
class Counts:
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    limit: int = 8
    usage: Usage = field(default_factory=Usage)


class CallbackFailed(Exception):
    pass


def reporter_of(
    counts: Counts, *callbacks: Callable[[Progress], object], total: int | None = None
) -> ProgressReporter:
    return ProgressReporter(counts, callbacks, total, started_at=100.0)


def snapshot(**changes: Any) -> Progress:
    values: dict[str, Any] = {
        "total": 10,
        "started": 6,
        "succeeded": 3,
        "failed": 1,
        "in_flight": 2,
        "elapsed": 2.0,
        "rate": 2.0,
        "token_rate": 617.0,
        "eta": 3.0,
        "usage": Usage(1000, 234, cost=0.0125),
        "limit": 8,
        "finished": False,
    }
    return Progress(**(values | changes))


class Terminal(io.StringIO):
    """A stream that claims to be a terminal, and may break."""

    broken = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if self.broken:
            raise OSError("the terminal has hung up")
        return super().write(text)


HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
REWRITE = re.compile(r"\r?\x1b\[[0-9;?]*[A-Za-z]")


def console_on(terminal: io.StringIO, width: int = 140) -> Console:
    return Console(
        file=terminal,
        force_terminal=True,
        force_interactive=True,
        color_system=None,
        width=width,
        height=40,
        legacy_windows=False,
    )


def rows(text: str) -> list[str]:
    """Return every drawn row, also those that were drawn over later."""
    plain = REWRITE.sub("\n", COLOUR.sub("", text)).replace("\r", "\n")
    return [" ".join(line.split()) for line in plain.split("\n") if line.strip()]
