"""Record ``parallel-core demo`` on a real terminal, as an animated picture for the documentation.

``python -m benchmarks.recording docs/images/run.svg`` runs the demo in tmux, looks at the screen
several times a second, and writes the screens as one SVG. Waiting times are shortened; nothing else
is changed. It needs tmux.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from rich.ansi import AnsiDecoder
from rich.style import Style
from rich.text import Text

_COLUMNS, _ROWS = 80, 26
_EVERY: Final = 0.25  # seconds between two looks at the screen
_LEAST: Final = 0.6  # seconds between two screens that are kept
_LONGEST: Final = 1.5  # seconds for which a screen is shown at most
_LAST: Final = 5.0  # seconds for which the last screen is shown
_TIMEOUT: Final = 180.0
_ENDED: Final = "the recording has ended"
_STILL: Final = "no connection to the server, since"  # in the picture that does not move
# In pixels. The widths of fonts differ: each piece of text is stretched to its cells.
_CELL_WIDTH, _LINE_HEIGHT, _MARGIN = 8.4, 18, 14
_GROUND, _TEXT = "#15191e", "#d8dee4"
_STYLE: Final = f"""
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  fill: {_TEXT}; white-space: pre }}
.b {{ font-weight: bold }} .d {{ opacity: .6 }}
"""


@dataclass(frozen=True)
class Screen:
    """What the terminal showed.

    Attributes:
        lines: its lines.
        seconds: how long it was shown.
    """

    lines: Sequence[Text]
    seconds: float

    @staticmethod
    def of(escaped: str, seconds: float) -> Screen:
        """Read a screen whose colours are escape sequences. They may last for several lines."""
        return Screen(list(AnsiDecoder().decode(escaped)), seconds)

    @property
    def text(self) -> str:
        return "\n".join(line.plain for line in self.lines)


def record(command: str) -> list[Screen]:
    """Run a command in tmux and return the screens that differ.

    Raises:
        TimeoutError: it has not ended after three minutes.
    """
    socket = f"parallel-core-recording-{time.monotonic_ns()}"

    def tmux(*words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", socket, "-f", "/dev/null", *words],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    shown = f"echo '$ {command}'; {command}; echo {shlex.quote(_ENDED)}; sleep 60"
    size = ["-x", str(_COLUMNS), "-y", str(_ROWS)]
    tmux("new-session", "-d", *size, f"env TERM=tmux-256color sh -c {shlex.quote(shown)}")
    try:
        return list(_screens(lambda: tmux("capture-pane", "-p", "-e")))
    finally:
        tmux("kill-server")


def _screens(look: Callable[[], str]) -> Iterator[Screen]:
    deadline = time.monotonic() + _TIMEOUT
    last, since = look(), time.monotonic()
    while _ENDED not in last:
        time.sleep(_EVERY)
        seen, now = look(), time.monotonic()
        if now > deadline:
            raise TimeoutError(f"the command has not ended after {_TIMEOUT:.0f} s:\n{seen}")
        is_spinner = _without_spinner(seen) == _without_spinner(last)
        if seen != last and not is_spinner and (now - since >= _LEAST or _ENDED in seen):
            yield Screen.of(last, min(now - since, _LONGEST))
            last, since = seen, now
    yield Screen.of(last.replace(_ENDED, ""), _LAST)


def _without_spinner(screen: str) -> str:
    """Return a screen without the sign that turns while something is imported."""
    return "".join(letter for letter in screen if not "\u2800" <= letter <= "\u28ff")


def svg(screens: Sequence[Screen]) -> str:
    """Return screens as an animated picture.

    They stand below each other; the picture shows one at a time. A line that several screens have
    is in it once.
    """
    width = round(_COLUMNS * _CELL_WIDTH + 2 * _MARGIN)
    height = _ROWS * _LINE_HEIGHT + 2 * _MARGIN
    numbers: dict[str, int] = {}
    film: list[str] = []
    for place, screen in enumerate(screens):
        for row, line in enumerate(screen.lines):
            drawn = _line(line)
            if drawn:
                number = numbers.setdefault(drawn, len(numbers))
                y = place * height + row * _LINE_HEIGHT
                film.append(f'<use href="#l{number}" y="{y}"/>')
    lines = "".join(f'<g id="l{number}">{drawn}</g>' for drawn, number in numbers.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><title>parallel-core demo</title>'
        f"<style>{_STYLE}{_animation(screens, height)}</style><defs>{lines}</defs>"
        f'<rect width="{width}" height="{height}" rx="8" fill="{_GROUND}"/>'
        f'<svg width="{width}" height="{height}"><g class="film">'
        f'<g transform="translate({_MARGIN} {_MARGIN + 13})">{"".join(film)}</g></g></svg></svg>\n'
    )


def _animation(screens: Sequence[Screen], height: int) -> str:
    total = sum(screen.seconds for screen in screens)
    still = max((n for n, screen in enumerate(screens) if _STILL in screen.text), default=0)
    steps: list[str] = []
    begin = 0.0
    for place, screen in enumerate(screens):
        steps.append(f"{100 * begin / total:.2f}%{{transform:translateY({-place * height}px)}}")
        begin += screen.seconds
    return (
        f".film{{transform:translateY({-still * height}px)}}"
        f"@keyframes film{{{''.join(steps)}}}"
        "@media (prefers-reduced-motion:no-preference)"
        f"{{.film{{animation:film {total:.1f}s step-end infinite}}}}"
    )


def _line(line: Text) -> str:
    """Return a line as elements, one for each piece of one style."""
    edges = sorted({0, len(line), *(edge for span in line.spans for edge in span[:2])})
    pieces: list[str] = []
    for begin, end in itertools.pairwise(edges):
        text = line.plain[begin:end]
        if text.strip():
            styles = [span.style for span in line.spans if span.start <= begin and end <= span.end]
            cells, x = Text(text).cell_len, Text(line.plain[:begin]).cell_len * _CELL_WIDTH
            pieces.append(
                f'<text x="{x:g}" textLength="{cells * _CELL_WIDTH:g}"{_attributes(styles)}>'
                f"{escape(text, quote=False)}</text>"
            )
    return "".join(pieces)


def _attributes(styles: Sequence[str | Style]) -> str:
    style = Style.combine([Style.null(), *(Style.parse(str(one)) for one in styles)])
    classes = " ".join(name for name, on in (("b", style.bold), ("d", style.dim)) if on)
    colour = ""
    if style.color is not None and not style.color.is_default:
        colour = f' style="fill:{style.color.get_truecolor().hex}"'
    return (f' class="{classes}"' if classes else "") + colour


def main() -> None:
    """Record the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write, such as docs/images/run.svg")
    picture: Path = parser.parse_args().picture
    screens = record("parallel-core demo")
    picture.write_text(svg(screens), encoding="utf-8")
    print(f"{picture}: {len(screens)} screens, {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
