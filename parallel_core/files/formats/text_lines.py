"""Reader of plain text: each line is a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from parallel_core.files.input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    not_utf8,
    text_rows,
)

from .prompts import Prompts, empty_prompt
from .request_options import RequestOptions

_WHOLE_LINE: Final = "{{line}}"
_NO_OPTIONS: Final = RequestOptions()


class TextLines:
    """Reads text: each line that is not blank is a prompt.

    Args:
        model: model of all requests.
        template: template of the prompts; its only column is ``line``.
        options: what the requests have in common.

    Raises:
        InputFileError: the template is invalid.
    """

    format = "text"
    lines_are_ids = names_lines = True

    def __init__(
        self, model: str, template: str | None, options: RequestOptions = _NO_OPTIONS
    ) -> None:
        self._model = model
        self._source = template or _WHOLE_LINE
        self._options = options
        self._prompts = Prompts(model, self._source, options)
        self._prompts.check_columns(["line"])

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        return text_rows(stream)

    def meaning(self) -> list[str | None]:
        return [self._model, self._source, *self._options.meaning()]

    def refuse_missing(self) -> None:
        """Do nothing: text has no columns."""

    def undecided(self) -> list[InputColumn]:
        return []

    def check(self, line: int, row: bytes) -> InputRequest | InputProblem:
        try:
            text = row.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            return not_utf8(line)
        request = self._prompts.request({"line": text})
        if request is None:
            return empty_prompt(line, str(line))
        return InputRequest(line, str(line), request)

    def request(
        self, line: int, row: bytes, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        if finished(str(line)):
            return None
        found = self.check(line, row)
        return found if isinstance(found, InputRequest) else None
