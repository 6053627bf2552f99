"""Reader of plain text: each line is a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from parallel_core.files.endpoints import CHAT_COMPLETIONS, Endpoint
from parallel_core.files.input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    not_utf8,
    text_rows,
)

from .prompts import Template, prompt_request

_WHOLE_LINE: Final = "{{line}}"


class TextLines:
    """Reads text: each line that is not blank is a prompt.

    Args:
        model: model of all requests.
        template: template of the prompts; its only column is ``line``.
        endpoint: endpoint of all requests.

    Raises:
        InputFileError: the template is invalid.
    """

    format = "text"
    lines_are_ids = names_lines = True

    def __init__(
        self, model: str, template: str | None, endpoint: Endpoint = CHAT_COMPLETIONS
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._source = template or _WHOLE_LINE
        self._template = Template(self._source, ["line"])

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        return text_rows(stream)

    def meaning(self) -> list[str | None]:
        return [self._model, self._source]

    def refuse_missing(self) -> None:
        """Do nothing: text has no columns."""

    def undecided(self) -> list[InputColumn]:
        return []

    def check(self, line: int, row: bytes) -> InputRequest | InputProblem:
        try:
            text = row.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            return not_utf8(line)
        request = prompt_request(self._endpoint, self._model, self._template.fill([text]))
        return InputRequest(line, str(line), request)

    def request(
        self, line: int, row: bytes, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        if finished(str(line)):
            return None
        found = self.check(line, row)
        return found if isinstance(found, InputRequest) else None
