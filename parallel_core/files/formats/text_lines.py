"""Reader of plain text: each line is a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

from parallel_core.files.input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    RecordUnit,
    not_utf8,
)
from parallel_core.files.line_limits import text_rows

from .prompts import Prompts, empty_prompt
from .request_options import RequestOptions

_WHOLE_LINE: Final = "{{line}}"


class TextLines:
    """Reads text: each line that is not blank is a prompt.

    Args:
        model: model of all requests.
        template: template of the prompts; its only column is ``line``.
        options: what the requests have in common.
        longest: bytes of the longest line that is read.

    Raises:
        InputFileError: the template is invalid.
    """

    format = "text"
    unit: RecordUnit = "line"
    lines_are_ids = names_lines = True

    def __init__(
        self, model: str, template: str | None, options: RequestOptions, longest: int
    ) -> None:
        self._model = model
        self._longest = longest
        self._source = template or _WHOLE_LINE
        self._options = options
        self._prompts = Prompts(model, self._source, options)
        self._prompts.check_columns(["line"])

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes | InputProblem]]:
        return text_rows(stream, self._longest)

    def place_of(self, line: int, row: Any) -> str:
        return ""

    def meaning(self) -> list[str | None]:
        return [self._model, self._source, *self._options.meaning()]

    def refuse_missing(self) -> None:
        """Do nothing: text has no columns."""

    def undecided(self) -> list[InputColumn]:
        return []

    def check(self, line: int, row: bytes | InputProblem) -> InputRequest | InputProblem:
        if isinstance(row, InputProblem):
            return row
        try:
            text = row.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            return not_utf8(line)
        request = self._prompts.request({"line": text})
        if request is None:
            return empty_prompt(line, str(line))
        return InputRequest(line, str(line), request)

    def request(
        self, line: int, row: bytes | InputProblem, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        if finished(str(line)):
            return None
        found = self.check(line, row)
        return found if isinstance(found, InputRequest) else None
