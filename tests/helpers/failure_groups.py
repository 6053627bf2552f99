"""A key and a prompt that no output may have, and an error that quotes them."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

from rich.console import Console

from parallel_core.cli.text_view import TextView
from parallel_core.run import FailureGroup

KEY = "abcdefgh-0123456789-wxyz"
PROMPT = "My neighbour Zebedee stole 4711 doughnuts."


class HTTPStatusError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(f"Error code: {status}")
        self.status_code = status
        self.body = {"error": {"message": message, "code": code}}


GROUPS = [
    FailureGroup("overloaded", 64, "429 slow: Slow down.", ["a", "b", "c" * 99], 429),
    FailureGroup("request", 1, "400 bad: Bad.", ["x\x1b\n"], 400),
]


def shown_by(width: int, *, live: bool, show: Callable[[TextView], None]) -> str:
    file = StringIO()
    view = TextView(*[Console(file=file, width=width, force_terminal=live, markup=False)] * 2)
    view._is_live = live
    show(view)
    view.close()
    return file.getvalue()
