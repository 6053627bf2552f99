"""Where a view may be redrawn, and how often a view that is not redrawn writes a line.

The bar of a batch and the command ``run`` ask here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich takes a while to import, and most batches draw nothing
    from rich.console import Console

# Seconds between lines, by the age of the view in seconds: the log of a night stays readable.
_PAUSES = ((60.0, 5.0), (600.0, 15.0))
_LONGEST_PAUSE = 60.0
_NEWS = 1 / 5  # share of the pause to a line about something new


def is_live(console: Console) -> bool:
    """Return True if lines on this console can be redrawn: it is a terminal.

    A dumb terminal is none, nor are the terminals of CI services and of commands in a notebook:
    what is redrawn there piles up. ``TTY_INTERACTIVE=1`` overrides that, as it does for rich.
    """
    # rich alone takes a pipe for a terminal if FORCE_COLOR is set.
    if not is_terminal(console.file) or not console.is_interactive:
        return False
    return os.environ.get("TTY_INTERACTIVE") == "1" or not _keeps_every_line(os.environ)


def _keeps_every_line(environment: Mapping[str, str]) -> bool:
    if environment.get("CI", "").lower() not in ("", "0", "false"):
        return True
    # A command in a cell (!parallel-core run) gets a terminal that does not move its cursor. This
    # is how ipykernel describes it.
    return environment.get("TERM") == "xterm-color" and environment.get("GIT_PAGER") == "cat"


def is_terminal(stream: Any) -> bool:
    """Return True if a stream writes to a terminal. It may be None, as on Windows."""
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError):  # it is not a real file, or it is closed
        return False


class LinePace:
    """A bounded rate for lines: one each 5 s for a minute, each 15 s for ten, then each minute.

    News may come after a fifth of that time.
    """

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._last_at = 0.0

    def is_due(self, now: float, *, is_news: bool = False) -> bool:
        """Return True if a line is due at this time, and count it."""
        if self._first_at is None:
            self._first_at = now
        else:
            age = now - self._first_at
            pause = next((pause for until, pause in _PAUSES if age <= until), _LONGEST_PAUSE)
            if now - self._last_at < pause * (_NEWS if is_news else 1):
                return False
        self._last_at = now
        return True
