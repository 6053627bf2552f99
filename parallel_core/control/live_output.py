"""Where a view may be redrawn: on a terminal and in a notebook, not in a log or on a dumb terminal.

The bar of a batch and the command ``run`` ask here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich takes a while to import, and most batches draw nothing
    from rich.console import Console


def is_live(console: Console) -> bool:
    """Return True if lines on this console can be redrawn."""
    # rich alone takes a pipe for a terminal if FORCE_COLOR is set.
    return console.is_jupyter or (is_terminal(console.file) and console.is_interactive)


def is_terminal(stream: Any) -> bool:
    """Return True if a stream writes to a terminal. It may be None, as on Windows."""
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError):  # it is not a real file, or it is closed
        return False
