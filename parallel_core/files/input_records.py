"""What a file of requests is made of, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol

import msgspec

from parallel_core.types import RouterParallelRequest

_LONGEST_SHOWN = 60  # characters


class InputRequest(msgspec.Struct, frozen=True):
    """One request of a file.

    Attributes:
        line: where it begins, from 1.
        custom_id: its name in the output; the number of the line where the file gives none.
        request: what the call is made of.
        returned: what the line of its result has beside the answer: ``metadata`` and ``columns`` of
            its own line, as JSON. None where there is nothing of the kind.
    """

    line: int
    custom_id: str
    request: RouterParallelRequest
    returned: Mapping[str, msgspec.Raw] | None = None


class InputProblem(msgspec.Struct, frozen=True):
    """A line that is no request.

    Attributes:
        line: where it begins, from 1.
        code: the reason in short, for instance ``invalid_json_line``.
        message: what is wrong. It quotes no prompt.
        hint: what to do.
        custom_id: the name of the line in the output. It is the one that the file gives, or the
            number of the line; with an ending where another line has that name already.
    """

    line: int
    code: str
    message: str
    hint: str
    custom_id: str | None


class LineError(Exception):
    """What is wrong with a line."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class InputColumn(msgspec.Struct, frozen=True):
    """A member of plain lines that is no parameter, and on which nobody has decided.

    Attributes:
        name: of the member.
        lines: how many have it.
        first_line: the first of them.
    """

    name: str
    lines: int
    first_line: int


class InputSummary(msgspec.Struct, frozen=True):
    """What a file holds.

    Attributes:
        requests: how many can be sent.
        problems: the first lines that cannot, at most 20; :meth:`InputFile.problems` has them all.
        bad_lines: how many there are of those.
        models: requests by model.
        fingerprint: 32 hexadecimal digits: the same for the same requests (names, models, messages
            and parameters that may change an answer), in whichever order and form they are written.
        format: ``jsonl``, ``csv`` or ``text``.
        columns: members of plain lines on which ``keep``, ``drop_columns`` or ``send_columns`` has
            to decide. Nothing can be sent while there are any.
        named_by_line: whether there are requests without a name of their own: they are named by the
            number of their line.
    """

    requests: int
    problems: list[InputProblem]
    bad_lines: int
    models: dict[str, int]
    fingerprint: str
    format: str
    columns: list[InputColumn] = []
    named_by_line: bool = False


class RecordReader(Protocol):
    """Reads one format.

    What ``rows`` gives is understood by the same reader only. It is a step of its own so that a
    line which is known to be bad, or to be finished, costs no more than reading it.
    """

    format: str

    @property
    def lines_are_ids(self) -> bool:
        """Whether no line can have the name of another."""
        ...

    @property
    def names_lines(self) -> bool:
        """Whether a record is named by the number of its line. Known after a check."""
        ...

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
        """Each record that is not blank, with the number of the line where it begins.

        Raises:
            InputFileError: the file as a whole cannot be used.
        """
        ...

    def check(self, line: int, row: Any) -> InputRequest | InputProblem:
        """What a record is."""
        ...

    def request(self, line: int, row: Any, finished: Callable[[str], bool]) -> InputRequest | None:
        """The request of a record that ``check`` has found good; None where it is finished."""
        ...

    def refuse_missing(self) -> None:
        """Refuse the name of a column that is to be kept, and that no record had in a check.

        Raises:
            InputFileError: it names them.
        """
        ...

    def undecided(self) -> list[InputColumn]:
        """Columns that somebody has to decide on. Known after a check."""
        ...

    def meaning(self) -> list[str | None]:
        """What has made requests out of the bytes, beside the format. Known after a check."""
        ...


def shown(name: str) -> str:
    """A name of the file as it is quoted in a message: short, and harmless in a terminal."""
    return repr(name if len(name) <= _LONGEST_SHOWN else name[:_LONGEST_SHOWN] + "…")


def not_utf8(line: int, custom_id: str | None = None) -> InputProblem:
    """The problem of bytes that are no text."""
    return InputProblem(
        line,
        "invalid_encoding",
        "not valid UTF-8",
        "save the file as UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8",
        str(line) if custom_id is None else custom_id,
    )
