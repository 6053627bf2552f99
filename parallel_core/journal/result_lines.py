"""The reader of result lines: of this package, OpenAI's Batch API and vLLM's ``run-batch``.

``read_result_line`` reads one line. ``read_result_lines`` reads a file in which a crash or a loss
of power may have left unfinished lines.
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
_LONGEST_KEPT = 1000  # bytes of an error whose classification is cached
_GZIP = b"\x1f\x8b"
_NOT_A_RESULT = "is not the result of a request"


class Response(msgspec.Struct):
    """The HTTP response of a result line."""

    status_code: int | None = 200
    body: msgspec.Raw = NULL


class ResultLine(msgspec.Struct):
    """A result line. Bodies and errors stay encoded until they are needed."""

    custom_id: str
    response: Response | None = None
    error: msgspec.Raw = NULL

    @property
    def ok(self) -> bool:
        """True for an answer: a body with a success status, and no error."""
        response = self.response
        if response is None or self.error != NULL or response.body == NULL:
            return False
        return response.status_code is None or 200 <= response.status_code < 300

    @property
    def failure(self) -> Failure:
        """Return the classified failure of a line that is not an answer."""
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
    """A line is not the result of a request, and a crash cannot have caused that.

    Attributes:
        number: line number, from 1; None for a single line.
        why: what is wrong; a phrase that follows "line 3".
        may_be_torn: True if it may be the beginning of a line that was cut off.
    """

    def __init__(self, why: str, number: int | None = None, *, may_be_torn: bool = False) -> None:
        self.number = number
        self.why = why
        self.may_be_torn = may_be_torn
        super().__init__(why if number is None else f"line {number} {why}")


class FoundLine(NamedTuple):
    """A line of a result file.

    Attributes:
        line: its bytes.
        end: offset in the file where its valid part ends. Only zero bytes follow in the line.
        what: ``"result"``; ``"blank"``; ``"hole"``: a loss of power left zero bytes in the line;
            ``"torn"``: writing of the last line was cut off.
        result: the parsed result; None unless ``what`` is ``"result"``.
    """

    line: bytes
    end: int
    what: Literal["result", "blank", "hole", "torn"]
    result: ResultLine | None


class _NamedLine(msgspec.Struct):
    custom_id: str


_decode: Callable[[bytes], ResultLine] = msgspec.json.Decoder(ResultLine).decode
_decode_name: Callable[[bytes], _NamedLine] = msgspec.json.Decoder(_NamedLine).decode
_decode_anything: Callable[[bytes], Any] = msgspec.json.Decoder().decode


def read_result_line(line: bytes) -> ResultLine:
    """Read one line.

    Raises:
        BadLineError: the line is not a result.
    """
    try:
        result = _decoded(line)
        if not line.isascii():
            line.decode()  # check the bodies too, which the decoder skips
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise _bad(line, error) from None
    if result.response is None and result.error == NULL:
        raise _bad(line, None)
    return result


def id_of_line(line: bytes) -> str | None:
    """Return the id of a line that was read before, in half the time; None if it is blank."""
    try:
        return _decode_name(line).custom_id
    except msgspec.DecodeError:
        return None if line.isspace() else read_result_line(line).custom_id


def _decoded(line: bytes) -> ResultLine:
    try:
        return _decode(line)
    except msgspec.DecodeError:
        result = read_json_line(_decode, line)
        if result.response is not None and result.response.body != NULL:
            # Keep lone surrogates (half a UTF-16 pair).
            result.response.body = msgspec.Raw(json_line(json.loads(line)["response"]["body"]))
        return result


def read_result_lines(lines: Iterable[bytes]) -> Iterator[FoundLine]:
    """Read a result file up to where it was written.

    Args:
        lines: the lines of the file, with their newlines.

    Raises:
        BadLineError: a line is invalid, and a crash cannot have caused that.
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
                elif b"\0" in line and _may_be_damaged(line):
                    yield FoundLine(line, end, "hole", None)
                else:
                    raise BadLineError(error.why, number) from None
            else:
                yield _unended(line, start, number)
        start = end


def _unended(line: bytes, start: int, number: int) -> FoundLine:
    """Parse the last line of a file, which has no newline."""
    whole = line.rstrip(b"\0")
    try:
        return FoundLine(line, start + len(whole), "result", read_result_line(whole))
    except BadLineError as error:
        # A torn result line is the beginning of an object. Anything else is another kind of file.
        if whole and not error.may_be_torn:
            raise BadLineError(error.why, number) from None
    return FoundLine(line, start, "torn", None)


def _may_be_damaged(line: bytes) -> bool:
    """Return True if a crash may have made this of a result line.

    It is the beginning of an object, or a block of the file did not reach the disk: then zero
    bytes, which JSON never has, are in its place. Other bytes are those of another kind of file.
    """
    return line.startswith((b"{", b"\0"))


def _bad(line: bytes, error: Exception | None) -> BadLineError:
    """Describe why a line is not a result, without quoting it."""
    try:
        value: object = read_json_line(_decode_anything, line)
    except RecursionError:
        return BadLineError(f"{_NOT_A_RESULT}: nested too deeply")
    except ValueError as unreadable:
        if line.startswith(_GZIP):
            return BadLineError("is compressed data: unpack the file first")
        is_text = not isinstance(unreadable, UnicodeDecodeError)
        return BadLineError(
            f"is not valid {'JSON' if is_text else 'UTF-8'}",
            may_be_torn=_may_be_damaged(line),
        )
    if isinstance(error, UnicodeDecodeError):
        return BadLineError("is not valid UTF-8")
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if "kind" in fields:
        hint = "it is a line of a statistics file; give the output file beside it"
    elif "messages" in fields or "body" in fields:
        hint = "it is a request; give the file with the results"
    elif isinstance(error, RecursionError):
        hint = "nested too deeply"
    elif error is not None and "custom_id" in fields:
        hint = str(error)  # msgspec names the field and its type but quotes no value
    else:
        hint = "it needs a custom_id, and a response or an error"
    return BadLineError(f"{_NOT_A_RESULT}: {hint}")
