"""Results of a file, as objects: of this package, of OpenAI's Batch API and of vLLM."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import sys
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from parallel_core.errors import InputFileError
from parallel_core.failures import FailureKind
from parallel_core.journal import BadLineError, FoundLine, read_json_line, read_result_lines

from .batch_output import describe_result_line
from .unpacking import Unpacked, compression_of

_decode = msgspec.json.Decoder().decode


class FileResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one request, from a file of results.

    Attributes:
        custom_id: id of the request.
        ok: True for an answer.
        text: text of the answer: of its first choice, or the output texts of a response. None if it
            has none, as with a tool call, an embedding or a failure.
        vectors: vectors of an embedding, as floats; None for other answers.
        finish_reason: why the first choice ended. For a response: why it is incomplete, else its
            status.
        model: name of the model that the provider reported.
        prompt_tokens, completion_tokens, total_tokens: as the provider counted them; None if it did
            not. Input and output tokens of a response are prompt and completion tokens.
        usage: the usage as the provider reported it.
        status_code: HTTP status; None if there was no response, or the line does not say.
        error_code: short reason of a failure, if the line has one.
        error_message: reason of a failure, if the line has one.
        failure_kind: kind of the failure (see ``docs/failures.md``); None for an answer.
        metadata: ``metadata`` of the request's line.
        columns: the columns of the request that were kept.
        body: body of the HTTP response: a chat completion, say, or an error.
    """

    custom_id: str
    ok: bool
    text: str | None = None
    vectors: list[list[float]] | None = None
    finish_reason: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    usage: dict[str, Any] | None = None
    status_code: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    failure_kind: FailureKind | None = None
    metadata: dict[str, Any] | None = None
    columns: dict[str, Any] | None = None
    body: Any = None


class _Returned(msgspec.Struct):
    """The members of a result line that were copied from its request."""

    metadata: Any = None
    columns: Any = None


_decode_returned = msgspec.json.Decoder(_Returned).decode


def read_results(path: Path | str) -> Iterator[FileResult]:
    """Yield the results of a file, in file order; in constant memory.

    A compressed file (gzip, zstd, bzip2, xz) is unpacked, whatever its name. Half a line at the end
    of a file, as a crash leaves it, is skipped, and so are lines that a loss of power destroyed.
    While failures are sent again, the failure of a request may be followed by its answer.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not a result, or the file cannot be unpacked. The message names the
            file and the line.
    """
    path = Path(path)
    path.stat()  # a wrong name is an error at once, and not at the first result
    return _results(path)


def _results(path: Path) -> Iterator[FileResult]:
    with open_results(path) as stream:
        for found in found_lines(stream, path):
            yield result_of(found)


@contextlib.contextmanager
def open_results(path: Path) -> Generator[BinaryIO]:
    """Open a file of results, and unpack it if it is compressed.

    Raises:
        OSError: it cannot be read.
        ValueError: a package is needed to unpack it.
    """
    # The types say BufferedReader only for the default size of the buffer.
    with cast("io.BufferedReader", path.open("rb", buffering=1 << 18)) as stream:
        compression = compression_of(stream.peek(1))
        if compression is None:
            yield stream
            return
        with io.BufferedReader(Unpacked(stream, compression)) as unpacked:
            yield unpacked


def found_lines(stream: Iterable[bytes], path: Path) -> Iterator[FoundLine]:
    """Yield the lines of a stream that are results.

    Raises:
        OSError: the stream cannot be read.
        ValueError: a line is not a result. The message names the file and the line.
    """
    try:
        for found in read_result_lines(stream):
            if found.result is not None:
                yield found
    except BadLineError as error:
        raise ValueError(f"{path}, line {error.number} {error.why}") from None
    except InputFileError as error:  # of a compressed file
        raise ValueError(f"{path}: {error}") from None


def result_of(found: FoundLine) -> FileResult:
    """Return the result of a line that has one."""
    parsed = found.result
    assert parsed is not None
    line = describe_result_line(parsed)
    returned = _returned(found.line)
    body = None if line.body is None else _decoded(bytes(line.body))
    given: dict[str, Any] = {
        "custom_id": line.custom_id,
        "ok": line.ok,
        "status_code": line.status_code,
        "metadata": _mapping_or_none(returned.metadata),
        "columns": _mapping_or_none(returned.columns),
        "body": body,
    }
    if not line.ok:
        return FileResult(
            **given,
            error_code=line.error_code,
            error_message=line.error_message,
            failure_kind=parsed.failure.kind,
        )
    answer = _mapping(body)
    usage = _mapping_or_none(answer.get("usage"))
    return FileResult(
        **given,
        text=_text_of(answer),
        vectors=_vectors_of(answer),
        finish_reason=_finish_reason_of(answer),
        model=_text(answer.get("model")),
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
        total_tokens=_count(usage, "total_tokens"),
        usage=usage,
    )


def text_of_content(content: Any) -> str | None:
    """Return the text of a message: a text, or the texts among its parts. None: there is none."""
    if isinstance(content, str):
        return content
    parts = [_mapping(part).get("text") for part in list_or_empty(content)]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else None


# --- answers ---


def _text_of(answer: Mapping[str, Any]) -> str | None:
    choice = _first(answer.get("choices"))
    if choice is not None:  # a chat completion, or a completion
        message = choice.get("message")
        return _text(choice.get("text")) if message is None else _text_of_message(message)
    # A response of OpenAI: its messages, without reasoning and tool calls.
    items = map(_mapping, list_or_empty(answer.get("output")))
    texts = [text_of_content(item.get("content")) for item in items if item.get("type") == _MESSAGE]
    found = [text for text in texts if text is not None]
    return "".join(found) if found else None


_MESSAGE = "message"  # type of an item of a response


def _text_of_message(message: Any) -> str | None:
    return text_of_content(_mapping(message).get("content"))


def _finish_reason_of(answer: Mapping[str, Any]) -> str | None:
    choice = _first(answer.get("choices"))
    if choice is not None:
        return _text(choice.get("finish_reason"))
    reason = _mapping(answer.get("incomplete_details")).get("reason")
    return _text(reason) or _text(answer.get("status"))


def _vectors_of(answer: Mapping[str, Any]) -> list[list[float]] | None:
    vectors: list[list[float]] = []
    for item in map(_mapping, list_or_empty(answer.get("data"))):
        vector = item.get("embedding")
        if isinstance(vector, str):
            vector = _from_base64(vector)
        if not isinstance(vector, list):
            return None
        vectors.append(cast("list[float]", vector))
    return vectors or None


def _from_base64(text: str) -> list[float] | None:
    """Decode a vector that was asked for as base64: float32, little-endian."""
    try:
        floats = array("f", base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        return None
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()


# --- JSON ---


def _returned(line: bytes) -> _Returned:
    if b'"metadata"' not in line and b'"columns"' not in line:
        return _Returned()
    try:
        return read_json_line(_decode_returned, line.rstrip(b"\0\r\n"))
    except RecursionError:
        return _Returned()


def _decoded(document: bytes) -> Any:
    try:
        return read_json_line(_decode, document)
    except RecursionError:  # too deep to be an answer of a model
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _mapping_or_none(value: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _first(choices: Any) -> Mapping[str, Any] | None:
    found = list_or_empty(choices)
    return _mapping(found[0]) if found else None


def list_or_empty(value: Any) -> list[Any]:
    """Return a JSON array; an empty one for any other value."""
    return value if value.__class__ is list else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(usage: Mapping[str, Any] | None, *names: str) -> int | None:
    for name in names if usage else ():
        value = cast("Mapping[str, Any]", usage).get(name)
        if type(value) is int:
            return value
    return None
