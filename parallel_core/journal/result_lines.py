"""The one reader of result lines: ours, those of OpenAI's Batch API and of vLLM's ``run-batch``.

``read_result_line`` reads one line, ``read_result_lines`` a file, in which a crash or a loss of
power may have left unfinished lines.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, cast

import msgspec

from parallel_core.failures import Failure, classify_line

from .json_lines import json_line, read_json_line

NULL = msgspec.Raw(b"null")
_LONGEST_KEPT = 1000  # bytes of an error
_NOT_A_RESULT = "is no result of a request"


class Response(msgspec.Struct):
    """What HTTP has answered."""

    status_code: int | None = 200
    body: msgspec.Raw = NULL


class ResultLine(msgspec.Struct):
    """A line of results. Bodies and errors stay JSON until somebody needs them."""

    custom_id: str
    response: Response | None = None
    error: msgspec.Raw = NULL

    @property
    def ok(self) -> bool:
        """Return True for an answer: a body with a status of success, and no error."""
        response = self.response
        if response is None or self.error != NULL or response.body == NULL:
            return False
        return response.status_code is None or 200 <= response.status_code < 300

    @property
    def failure(self) -> Failure:
        """What the line means, if it is no answer."""
        response = self.response
        status = None if response is None else response.status_code
        error = self.error
        if error == NULL and response is not None:
            error = response.body
        raw = bytes(error)
        # Classifying takes 0.1 ms, and a file may have the same failure a hundred thousand times.
        return (_failure if len(raw) > _LONGEST_KEPT else _kept_failure)(status, raw)


def _failure(status_code: int | None, error: bytes) -> Failure:
    try:
        document: object = read_json_line(_decode_anything, error)
    except RecursionError:
        document = None
    return classify_line(status_code, document)


_kept_failure = functools.lru_cache(maxsize=256)(_failure)


class BadLineError(ValueError):
    """A line is no result of a request, and no crash has made it so.

    Attributes:
        number: of the line, from 1; None for a single line.
        why: what it is instead; a phrase that follows the name of the line.
        may_be_torn: whether it is the beginning of a line, as far as it can be told.
    """

    def __init__(self, why: str, number: int | None = None, *, may_be_torn: bool = False) -> None:
        self.number = number
        self.why = why
        self.may_be_torn = may_be_torn
        super().__init__(why if number is None else f"line {number} {why}")


class FoundLine(NamedTuple):
    """A piece of a file of results, up to the end of a line.

    Attributes:
        line: its bytes.
        end: where in the file the part ends that is good. Behind it are only zero bytes.
        what: ``"blank"``, ``"hole"``: a loss of power has left zero bytes in it, and ``"torn"``:
            the writing of the last line was cut off, have no result.
        result: what it says.
    """

    line: bytes
    end: int
    what: Literal["result", "blank", "hole", "torn"]
    result: ResultLine | None


_decode: Callable[[bytes], ResultLine] = msgspec.json.Decoder(ResultLine).decode
_decode_anything: Callable[[bytes], Any] = msgspec.json.Decoder().decode


def read_result_line(line: bytes) -> ResultLine:
    """Read one line.

    Raises:
        BadLineError: it is no result.
    """
    try:
        result = _decoded(line)
        if not line.isascii():
            line.decode()  # the bodies too, which the decoder passes over
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise _bad(line, error) from None
    if result.response is None and result.error == NULL:
        raise _bad(line, None)
    return result


def _decoded(line: bytes) -> ResultLine:
    try:
        return _decode(line)
    except msgspec.DecodeError:
        result = read_json_line(_decode, line)
        if result.response is not None and result.response.body != NULL:
            # As it is: with half a pair of UTF-16.
            result.response.body = msgspec.Raw(json_line(json.loads(line)["response"]["body"]))
        return result


def read_result_lines(lines: Iterable[bytes]) -> Iterator[FoundLine]:
    """Read a file of results, as far as it was written.

    Args:
        lines: of the file, with their ends.

    Raises:
        BadLineError: a line that no crash leaves.
        OSError: the file cannot be read.
    """
    start = 0
    for number, line in enumerate(lines, 1):
        end = start + len(line)
        try:
            yield FoundLine(line, end, "result", read_result_line(line))
        except BadLineError as error:
            if line.endswith(b"\n"):
                if line.isspace():
                    yield FoundLine(line, end, "blank", None)
                elif b"\0" in line:  # JSON has none: a block that never reached the disk
                    yield FoundLine(line, end, "hole", None)
                else:
                    raise BadLineError(error.why, number) from None
            else:
                yield _unended(line, start, number)
        start = end


def _unended(line: bytes, start: int, number: int) -> FoundLine:
    """What the last line is, whose end is missing."""
    whole = line.rstrip(b"\0")
    try:
        return FoundLine(line, start + len(whole), "result", read_result_line(whole))
    except BadLineError as error:
        # A torn line of ours is the beginning of an object; so a file of something else is told.
        if whole and not error.may_be_torn:
            raise BadLineError(error.why, number) from None
    return FoundLine(line, start, "torn", None)


def _bad(line: bytes, error: Exception | None) -> BadLineError:
    """Say what a line is instead of a result, without quoting it."""
    try:
        value: object = read_json_line(_decode_anything, line)
    except RecursionError:
        return BadLineError(f"{_NOT_A_RESULT}: nested too deeply")
    except ValueError as unreadable:
        is_text = not isinstance(unreadable, UnicodeDecodeError)
        return BadLineError(
            f"is {'no JSON' if is_text else 'not valid UTF-8'}",
            may_be_torn=line.startswith(b"{") or b"\0" in line,
        )
    if isinstance(error, UnicodeDecodeError):
        return BadLineError("is not valid UTF-8")
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if "kind" in fields:
        hint = "it is a line of a statistics file; name the output file that lies beside it"
    elif "messages" in fields or "body" in fields:
        hint = "it is a request; name the file with the results"
    elif isinstance(error, RecursionError):
        hint = "nested too deeply"
    elif error is not None and "custom_id" in fields:
        hint = str(error)  # msgspec names the field and its type, and quotes nothing
    else:
        hint = "it needs a custom_id, and a response or an error"
    return BadLineError(f"{_NOT_A_RESULT}: {hint}")
