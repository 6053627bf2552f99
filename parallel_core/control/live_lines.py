"""Lines at the end of a terminal that are drawn anew in their place.

This module imports rich, which takes a while: import it where something is drawn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, TextIO, cast

from rich.console import Console, ConsoleRenderable, Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from .live_output import is_terminal

# Colours that are readable on dark and on light terminals: their contrast to black and to white is
# about the same. The usual green and yellow vanish on white.
GOOD: Final = "color(28)"
BAD: Final = "color(196)"
WAITING: Final = "color(130)"
QUIET: Final = "dim"


class LiveLines:
    """Lines that are drawn anew in their place, below all other output.

    Other output of the program to the same terminal appears above them. They stay in their place
    when the terminal is resized. At the end the last lines stay on the terminal.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        # Redirected output appears on this console. That is right only for output that goes to the
        # same terminal: results that are piped into a file must still reach the file.
        stream = console.file
        self._live = _SteadyLive(
            console=console,
            auto_refresh=False,  # no thread: each call of `show` draws
            redirect_stdout=is_terminal(sys.stdout) and is_terminal(stream),
            redirect_stderr=without_proxy(sys.stderr) is stream,
        )
        self._console = console

    def show(self, lines: Sequence[Text]) -> None:
        """Draw these lines in the place of the earlier ones. They are cut at the edges."""
        self._live.lines = lines
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._live.fitted(), refresh=True)

    def print_above(self, lines: Sequence[Text]) -> None:
        """Print lines above the others. They stay there."""
        self._console.print(Group(*lines), no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        """Leave the lines as they are, and end the redirection of other output."""
        self._live.stop()


class _SteadyLive(Live):
    """A live display that finds its lines again after the terminal was resized.

    rich moves the cursor up by the number of lines that it has drawn. A terminal that was made
    narrower has wrapped them: they take more rows than that.
    """

    lines: Sequence[Text] = ()
    _drawn: Sequence[int] = ()  # cells of the lines on the terminal

    def fitted(self) -> Group:
        """Return the lines, cut at the edges of the terminal."""
        # One row is left: a display as high as the terminal cannot be moved to its beginning.
        lines = self.lines[: max(1, self.console.height - 1)]
        for line in lines:
            line.no_wrap, line.overflow, line.end = True, "ellipsis", "\n"
        return Group(*lines)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Move the cursor to where rich expects it, and let rich draw."""
        width = self.console.width
        wrapped = sum(-(-cells // width) - 1 for cells in self._drawn if cells > width)
        shown = self.lines[: max(1, self.console.height - 1)]
        self._drawn = [min(line.cell_len, width) for line in shown]
        processed = super().process_renderables(renderables)
        if not wrapped or not wraps_again(os.environ):
            return processed
        up = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * wrapped
        return [Control(ControlType.CARRIAGE_RETURN, *up), *processed]


def wraps_again(environment: Mapping[str, str]) -> bool:
    """Return True if the terminal wraps its lines anew when it gets narrower.

    xterm and GNU screen cut them, and Linux's console has one size. All other terminals in use wrap
    them, and so does tmux, which sets ``TERM`` to ``screen`` on old systems.
    """
    if "TMUX" in environment:
        return True
    term = environment.get("TERM", "")
    return "XTERM_VERSION" not in environment and not term.startswith(("screen", "linux"))


def without_proxy(stream: TextIO | None) -> TextIO | None:
    """Return the original stream if rich has replaced it with a redirection."""
    return cast("TextIO | None", getattr(stream, "rich_proxied_file", stream))


def bar(done: int, total: int | None, width: int) -> Text:
    """Return a bar of this width, in characters. It is empty while the total is unknown."""
    full = round(width * min(1.0, done / total)) if total else 0
    return Text.assemble(("━" * full, GOOD), ("─" * (width - full), QUIET))
