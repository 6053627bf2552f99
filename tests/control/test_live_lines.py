"""Lines that are drawn anew in their place, whatever happens to the terminal."""

from __future__ import annotations

import sys

import pytest
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.text import Text

from helpers.progress_values import console_on, snapshot
from helpers.terminal_screen import TerminalScreen
from parallel_core.control import LinePace
from parallel_core.control.live_lines import BAD, GOOD, WAITING, LiveLines, wraps_again
from parallel_core.control.live_output import is_live
from parallel_core.control.progress import Delay, Progress, Waiting
from parallel_core.control.progress_bar import ProgressBar, rows_of


def frame(width: int) -> list[Text]:
    return [Text("bar ".ljust(width, "-")), Text(f"at {width}"), Text("x" * (width - 1)), Text("e")]


@pytest.mark.parametrize("widths", [(80, 40), (80, 60, 33, 12), (80, 30, 100), (20, 90, 50, 49)])
def test_nothing_is_left_behind_when_the_terminal_is_resized(widths: tuple[int, ...]) -> None:
    screen = TerminalScreen(widths[0])
    screen.write("before\n")
    console = console_on(screen, widths[0])
    lines = LiveLines(console)
    lines.show(frame(widths[0]))
    above = ["before"]
    for number, width in enumerate(widths[1:]):
        screen.resize(width)
        console.width = width
        lines.show(frame(width))
        drawn = [line.plain for line in frame(width)]
        assert screen.text() == [*above, *drawn]
        lines.print_above([Text(f"note {number}")])
        above.append(f"note {number}")
        assert screen.text() == [*above, *drawn]
        screen.resize(width - 1)  # and the next lines are fewer
        console.width = width - 1
        lines.show([Text("short")])
        assert screen.text() == [*above, "short"]
        lines.show(frame(width - 1))
    lines.close()
    assert screen.text() == [*above, *(line.plain for line in frame(widths[-1] - 1))]


def test_output_of_the_program_appears_above_after_a_resize(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = TerminalScreen(60)
    monkeypatch.setattr(sys, "stdout", screen)
    console = console_on(screen, 60)
    lines = LiveLines(console)
    lines.show(frame(60))
    screen.resize(25)
    console.width = 25
    print("printed")  # before the lines are drawn again
    drawn = screen.text()
    assert drawn[0] == "printed"
    assert len(drawn) == 5
    lines.close()


def test_a_terminal_that_cuts_its_lines_is_not_erased_too_far() -> None:
    assert wraps_again({"TERM": "xterm-256color"})
    assert wraps_again({"TERM": "screen", "TMUX": "/tmp/tmux-0/default,1,0"})
    assert not wraps_again({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(379)"})
    assert not wraps_again({"TERM": "screen.xterm-256color"})


def test_more_lines_than_the_terminal_has_rows_are_cut() -> None:
    screen = TerminalScreen(20)
    console = console_on(screen, 20)
    console.height = 4
    lines = LiveLines(console)
    for turn in range(3):
        lines.show([Text(f"{turn} {number}") for number in range(9)])
    assert screen.text() == ["2 0", "2 1", "2 2"]
    lines.close()


@pytest.mark.parametrize("width", [20, 40, 60, 64, 72, 80, 94, 120, 121, 200])
def test_a_row_of_the_bar_fits(width: int) -> None:
    many = snapshot(total=100000, succeeded=1199, failed=34, in_flight=64, rate=123.4, eta=900.0)
    rows = rows_of([many, snapshot()], width)
    assert len({row.cell_len for row in rows}) == 1  # the figures are aligned
    assert all(row.cell_len <= max(width, 39) for row in rows)
    for figure in ("1233/100000", "34 failed", "123.4/s", "ETA 15:00"):
        assert figure in rows[0].plain


SERVER = Waiting("fast", "http://127.0.0.1:80", "no connection to the server", 40.0, 8.0)
HELD_UP = snapshot(in_flight=8, waiting=(SERVER,), delays=(Delay("rate_limit", 3),))


def texts_of(*snapshots: Progress, width: int = 120, height: int | None = 20) -> list[str]:
    return [row.plain.strip() for row in rows_of(snapshots, width, height)]


def test_below_its_row_stands_what_a_batch_waits_for() -> None:
    rows = texts_of(HELD_UP, snapshot(in_flight=8))
    assert rows[1:3] == [
        "waiting for http://127.0.0.1:80: no connection to the server, since 40 s, next try in 8 s",
        "3 calls wait for the rate limit",
    ]
    assert len(rows) == 4
    narrow = texts_of(HELD_UP, width=80)
    assert " ".join(narrow[1:3]) == rows[1]  # nothing is cut off
    ended = snapshot(waiting=(SERVER,), finished=True)
    assert len(texts_of(ended)) == len(texts_of(HELD_UP, height=None)) == 1


def test_every_batch_has_its_row_however_much_they_wait_for() -> None:
    rows = texts_of(*[HELD_UP] * 5, height=8)
    assert len(rows) == 8
    assert sum("failed" in row for row in rows) == 5


def test_texts_of_others_move_no_cursor() -> None:
    odd = Waiting("gpt\x1b[2J\n", None, "\x1b[31mred", 1.0, None)
    (line,) = texts_of(snapshot(waiting=(odd,)))[1:]
    assert line == r"waiting for gpt\x1b[2J\n: \x1b[31mred, since 1 s, trying now"


def test_a_bar_that_is_closed_early_says_no_more_what_it_waits_for() -> None:
    screen = TerminalScreen(100)
    bar = ProgressBar(console_on(screen, 100))
    bar(HELD_UP)
    assert any("waiting for" in line for line in screen.text())
    bar.close()
    assert len([line for line in screen.text() if line]) == 1


@pytest.mark.parametrize("style", [GOOD, BAD, WAITING])
@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (40, 44, 52), (253, 246, 227)])
def test_colours_are_readable_on_dark_and_light_terminals(
    style: str, ground: tuple[int, int, int]
) -> None:
    """WCAG 2 wants a contrast of 3 for large text. The last two grounds are those of themes."""
    text = _luminance(Color.parse(style).get_truecolor())
    behind = _luminance(ColorTriplet(*ground))
    contrast = (max(text, behind) + 0.05) / (min(text, behind) + 0.05)
    assert contrast >= (3.8 if ground[0] in (0, 255) else 2.9)


def _luminance(colour: ColorTriplet) -> float:
    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(part / 255) for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("environment", "live"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "CI": "true"}, False),
        ({"TERM": "xterm-256color", "CI": "false"}, True),
        ({"TERM": "xterm-256color", "CI": "1", "TTY_INTERACTIVE": "1"}, True),
        ({"TERM": "xterm-color", "GIT_PAGER": "cat"}, False),  # a command in a notebook
        ({"TERM": "xterm-color"}, True),
    ],
)
def test_where_lines_can_be_drawn_again(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], live: bool
) -> None:
    for name in ("CI", "GIT_PAGER", "TTY_INTERACTIVE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_live(console_on(TerminalScreen(80))) is live


def test_the_log_of_a_night_stays_readable() -> None:
    pace = LinePace()
    lines = [second for second in range(8 * 3600) if pace.is_due(float(second))]
    assert lines[:4] == [0, 5, 10, 15]
    assert len(lines) < 60 / 5 + 540 / 15 + 8 * 60 + 5
    news = LinePace()
    told = [second for second in range(3600) if news.is_due(float(second), is_news=True)]
    assert told[1] == 1
    assert len(told) < 60 + 540 / 3 + 3600 / 12 + 5
