"""The progress of a batch in a notebook, where IPython replaces a display that has an id."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from helpers.progress_values import snapshot
from parallel_core import BudgetUse, Delay, Waiting
from parallel_core.control.notebook import NotebookProgress, as_html
from parallel_core.control.progress_bar import ProgressBar


@dataclass
class Cell:
    """The output of a cell: the newest bundle of each display."""

    displays: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    updates: int = 0
    fails: bool = False

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.displays.append(bundle)
        place = len(self.displays) - 1
        return types.SimpleNamespace(update=lambda new, raw: self._update(place, new))

    def _update(self, place: int, bundle: dict[str, str]) -> None:
        if self.fails:
            raise RuntimeError("the front end is gone")
        self.displays[place] = bundle
        self.updates += 1


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    cell = Cell()
    install(monkeypatch, cell.display)
    return cell


def install(monkeypatch: pytest.MonkeyPatch, display: Callable[..., Any]) -> None:
    module = types.ModuleType("IPython.display")
    vars(module)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it fails


def notebook() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_jupyter=True), stream


@pytest.mark.filterwarnings("error")
def test_each_batch_has_one_display_that_changes_in_its_place(cell: Cell) -> None:
    console, stream = notebook()
    first, second = ProgressBar(console), ProgressBar(console)
    assert not first.quiet
    first(snapshot())
    second(snapshot(total=22))
    first(snapshot(succeeded=9, in_flight=0, finished=True))
    assert len(cell.displays) == 2
    assert cell.updates == 1
    assert cell.displays[0]["text/plain"].startswith("10/10, 9 ok, 1 failed, 0 in flight")
    assert cell.displays[0]["text/plain"].endswith("in 0:02")
    assert "4/22" in cell.displays[1]["text/html"]
    assert stream.getvalue() == ""


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.bar: dict[str, str | None] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("div", "span", "b", "progress")
        if tag == "progress":
            self.bar = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def shown(**fields: Any) -> _Texts:
    texts = _Texts()
    texts.feed(as_html(snapshot(**fields)))
    return texts


def test_it_shows_what_the_terminal_shows() -> None:
    texts = shown(
        eta_range=(2.0, 9.0),
        budget=BudgetUse(5.0, None, 1.5, 0, 0.25, 0),
        waiting=(Waiting("<b>m</b>", None, "no connection", 3.0, 1.0),),
        delays=(Delay("rate_limit", 2), Delay("retry", 1, "overloaded", 1.2)),
    )
    for text in (
        "3 ok",
        "1 failed",
        "2/8 in flight",
        "2.0/s",
        "617 tok/s",
        "1.5000 of 5 USD",
        "ETA 0:03 (0:02 to 0:09)",
        "waiting for <b>m</b>: no connection, since 3 s, next try in 1 s",  # as text
        "2 calls wait for the rate limit",
        "1 request to send again, the first in 2 s: overloaded",
    ):
        assert text in texts.text
    assert (texts.bar["value"], texts.bar["max"]) == ("4", "10")


def test_the_bar_moves_while_the_number_of_calls_is_unknown() -> None:
    assert "value" not in shown(total=None, eta=None).bar
    assert shown(total=None, eta=None, finished=True).bar["value"] == "4"
    assert shown(total=0, succeeded=0, failed=0).bar["max"] == "1"


@pytest.mark.parametrize("how", ["no IPython", "not running", "fails later"])
def test_plain_lines_where_nothing_can_be_displayed(
    monkeypatch: pytest.MonkeyPatch, cell: Cell, how: str
) -> None:
    if how == "no IPython":
        monkeypatch.setitem(sys.modules, "IPython.display", None)
    elif how == "not running":
        install(monkeypatch, lambda *_, **__: None)
    stream, now = io.StringIO(), 100.0
    progress = NotebookProgress(stream, lambda: now)
    cell.fails = how == "fails later"
    for second in range(13):
        now = 100.0 + second
        progress.show(snapshot(elapsed=float(second)))
    progress.show(snapshot(succeeded=9, finished=True))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # each five seconds, and the last snapshot
    assert lines[0].startswith("4/10, 3 ok, 1 failed, 2 in flight, 2.0/s")
    assert lines[-1].endswith("in 0:02")
