"""A file of requests: checked as a whole before the first call, then read request by request.

It is read twice and never held in memory, so its size does not matter. The formats are described
in ``docs/file-formats.md``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import stat
import threading
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import msgspec

from parallel_core.config import RequestsDigest
from parallel_core.errors import InputFileError

from .input_lines import JsonLines
from .input_members import ColumnOptions, describe_columns
from .input_prompts import CsvTable, TextLines
from .input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    InputSummary,
    RecordReader,
    shown,
)
from .input_streams import (
    BLOCK,
    STANDARD_INPUT,
    Blocks,
    View,
    copied,
    digest_of_block,
    standard_input,
    state_of,
)

__all__ = [
    "InputColumn",
    "InputFile",
    "InputFormat",
    "InputProblem",
    "InputRequest",
    "InputSummary",
]
InputFormat: TypeAlias = Literal["auto", "jsonl", "csv", "text"]
_BUFFER = 1 << 16  # bytes
_PROBLEMS_KEPT = 20
_MOST_DIGITS = 18  # of a line number
_FORMATS_BY_ENDING: dict[str, InputFormat] = {".csv": "csv", ".tsv": "csv", ".txt": "text"}
_PACKED = {
    b"\x1f\x8b": "gzip -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"BZh": "bzip2 -dc",
    b"\xfd7zXZ": "xz -dc",
}
_ARCHIVE = b"PK\x03\x04"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def never(custom_id: str) -> bool:
    """Return False: no request is finished."""
    return False


class InputFile:
    """A file of requests.

    Args:
        path: path of the file; ``"-"`` is standard input. Standard input and pipes are copied into
            a temporary file first.
        format: ``"auto"`` uses the ending of the name: ``.csv`` and ``.tsv``, ``.txt``, and JSON
            lines for all others.
        template: makes a prompt of a row, for instance ``"Translate: {{text}}"``. CSV needs one;
            text without one sends each line unchanged.
        model: model of the lines that name none. CSV and text need it.
        keep: columns, or members beside ``body``, that are copied to the output line as
            ``columns``. They are not sent, unless OpenAI has a parameter of that name.
        drop_columns: leave out all other members of plain lines that are not parameters.
        send_columns: send those members, as parameters of the provider.
        trust_input: also send members that litellm takes as its own settings: keys, addresses,
            retries, prices.
        standard_input: stream to read for ``"-"``; ``sys.stdin`` if None.

    Raises:
        InputFileError: the options contradict each other.
        ValueError: there is no such format.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        format: InputFormat = "auto",
        template: str | None = None,
        model: str | None = None,
        keep: Iterable[str] = (),
        drop_columns: bool = False,
        send_columns: bool = False,
        trust_input: bool = False,
        standard_input: BinaryIO | None = None,
    ) -> None:
        if isinstance(keep, str):
            raise TypeError("keep must be names of columns, not one str")
        columns = ColumnOptions(tuple(dict.fromkeys(keep)), drop_columns, send_columns, trust_input)
        self._path = Path(path)
        self._is_standard_input = str(path) == STANDARD_INPUT
        # A name may have newlines, and bytes that are not UTF-8; messages must be text.
        name = str(path).encode("utf-8", "replace").decode().replace("\n", "\\n")
        self._name = "standard input" if self._is_standard_input else name
        self._standard_input = standard_input
        ending = self._path.suffix.lower()
        if format == "auto":
            format = _FORMATS_BY_ENDING.get(ending, "jsonl")
        if drop_columns and send_columns:
            raise InputFileError(
                f"{self._name}: columns are dropped or sent, not both: give one of "
                "--drop-columns and --send-columns"
            )
        self._reader = self._reader_of(format, template, model, ending, columns)
        self._summary: InputSummary | None = None
        self._blocks: list[bytes] = []  # digests of the blocks that were checked
        self._size = 0  # bytes that were checked
        self._bad_lines = array("Q")
        self._endings = array("Q")  # for each bad line, how often "#line-N" is added to its id
        self._repeated: set[int] = set()  # digests of ids that several lines have
        self._copy: BinaryIO | None = None
        self._copy_lock = threading.Lock()

    def _reader_of(
        self,
        format: InputFormat,
        template: str | None,
        model: str | None,
        ending: str,
        columns: ColumnOptions,
    ) -> RecordReader:
        if format == "jsonl":
            if template is not None:
                raise InputFileError(
                    f"{self._name}: a template is for CSV and text, but this is read as JSON "
                    "lines: leave the template out, or set the format to csv or text"
                )
            return JsonLines(model, columns)
        if format not in ("csv", "text"):
            raise ValueError(f"format must be auto, jsonl, csv or text, not {format!r}")
        if not model:
            raise InputFileError(
                f"{self._name}: {format} does not name a model: give one (--model)"
            )
        if columns.send or columns.trust or (format == "text" and columns.keep):
            raise InputFileError(
                f"{self._name}: {format} has no parameters to send (--send-columns, "
                "--trust-input), and text has no columns to keep (--keep)"
            )
        try:
            if format == "csv":
                delimiter = "\t" if ending == ".tsv" else ","
                return CsvTable(model, template, delimiter, columns.keep)
            return TextLines(model, template)
        except InputFileError as error:
            raise self._named(error) from None

    @property
    def path(self) -> Path:
        """Path of the file; ``-`` is standard input."""
        return self._path

    @property
    def format(self) -> str:
        """Format of the file: ``jsonl``, ``csv`` or ``text``."""
        return self._reader.format

    def check(self) -> InputSummary:
        """Read the whole file and return its summary.

        This needs about 100 bytes of memory per named request, and 9 per bad line. A second call
        returns the same summary.

        Raises:
            InputFileError: the file cannot be read, is empty, is compressed, was changed
                meanwhile, or does not fit the template.
        """
        if self._summary is None:
            self._summary = self._check()
        return self._summary

    def _check(self) -> InputSummary:
        digest = RequestsDigest()
        reader = self._reader
        self._bad_lines, self._endings = array("Q"), array("Q")
        self._repeated = set()
        models: Counter[str] = Counter()
        ids: set[int] = set()
        blocks: list[bytes] = []

        def note(file: int, number: int, block: memoryview) -> None:
            if block:
                blocks.append(digest_of_block(block))

        with self._opened(note) as (stream, file):
            before = state_of(file)
            for line, row in reader.rows(stream):
                found = reader.check(line, row)
                if type(found) is InputRequest:
                    if not reader.lines_are_ids:
                        known = len(ids)
                        digest_of_id = _digest(found.custom_id)
                        ids.add(digest_of_id)
                        if len(ids) == known:
                            self._repeated.add(digest_of_id)
                            self._bad_lines.append(line)
                            continue
                    models[found.request.model] += 1
                    digest.add(found.custom_id, found.request)
                else:
                    self._bad_lines.append(line)
            while not stream.closed and stream.read(BLOCK):
                pass  # read to the end for the digests: a reader may stop early
            if state_of(file) != before:
                raise self._changed()
            if not self._bad_lines:  # a bad line may have the missing column
                reader.refuse_missing()
        requests = models.total()
        if not requests and not self._bad_lines:
            raise InputFileError(f"{self._name}: there is no request in the file")
        self._blocks, self._size = blocks, before[2]
        undecided = reader.undecided()
        first: list[InputProblem] = []
        for problem in self._problems():
            self._endings.append(self._endings_needed(problem, ids))
            if len(first) < _PROBLEMS_KEPT:
                first.append(_named(problem, self._endings[-1]))
        return InputSummary(
            requests,
            first,
            len(self._bad_lines),
            dict(models),
            digest.hexdigest(),
            reader.format,
            undecided,
            reader.names_lines,
        )

    def fingerprint_of_format_1(self) -> str:
        """Return the fingerprint of this file in manifests of the first format: of its bytes.

        Raises:
            InputFileError: as in ``check``.
        """
        self.check()
        digest = hashlib.sha256()
        with self._opened_again() as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        meaning = [digest.hexdigest(), self._reader.format, *self._reader.meaning()]
        return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()

    def problems(self) -> Iterator[InputProblem]:
        """Yield the bad lines of the file, in file order.

        This reads the file again, and checks it first if that was not done yet.

        Raises:
            InputFileError: as in ``check``; or the file was changed after the check.
        """
        self.check()
        yield from map(_named, self._problems(), self._endings)

    def _problems(self) -> Iterator[InputProblem]:
        """Yield each bad line, with the id that the file gives it.

        This reads the file again instead of keeping them: every line of a file may be bad.
        """
        if not self._bad_lines:
            return
        first_lines: dict[int, int] = {}  # the first line of each repeated id
        bad_lines = iter(self._bad_lines)
        next_bad = next(bad_lines)
        with self._opened_again() as stream:
            for line, row in self._reader.rows(stream):
                is_bad = line == next_bad
                if is_bad or self._repeated:
                    found = self._reader.check(line, row)
                    if type(found) is not InputRequest:
                        if is_bad:
                            yield cast("InputProblem", found)
                    elif is_bad:
                        yield _duplicate(found, first_lines.get(_digest(found.custom_id)))
                    elif (digest := _digest(found.custom_id)) in self._repeated:
                        first_lines.setdefault(digest, line)
                if is_bad and (next_bad := next(bad_lines, 0)) == 0:
                    break

    def _endings_needed(self, problem: InputProblem, ids: set[int]) -> int:
        """Return how many endings make the id of a bad line unique in the output."""
        endings = 0
        while True:
            name = str(_named(problem, endings).custom_id)
            if name == str(problem.line):
                if _digest(name) not in ids:
                    return endings  # no need to add it to `ids`: `_is_bad_line` finds it
            elif (digest := _digest(name)) not in ids and not self._is_bad_line(name):
                ids.add(digest)
                return endings
            endings += 1

    def _is_bad_line(self, name: str) -> bool:
        """Return True if an id is the number of a bad line, which may have no other id."""
        if not name.isdecimal() or len(name) > _MOST_DIGITS:
            return False
        number = int(name)
        place = bisect_left(self._bad_lines, number)
        return place < len(self._bad_lines) and self._bad_lines[place] == number

    def requests(self, finished: Callable[[str], bool] = never) -> Iterator[InputRequest]:
        """Yield the unfinished requests of the file, in file order.

        Bad lines are skipped. The file is checked first if that was not done yet.

        Args:
            finished: returns True if the request with this ``custom_id`` is finished.

        Raises:
            InputFileError: as in ``check``; or the file was changed after the check; or no option
                decides what to do with some of its columns.
        """
        columns = self.check().columns
        if columns:
            raise InputFileError(f"{self._name}: {describe_columns(columns)}")
        for line, row in self._good_rows():
            found = self._reader.request(line, row, finished)
            if found is not None:
                yield found

    def names(self) -> Iterator[str]:
        """Yield the ids of all requests, without building the requests.

        Raises:
            InputFileError: as in ``check``; or the file was changed after the check.
        """
        found: list[str] = []

        def note(custom_id: str) -> bool:
            found.append(custom_id)
            return True

        self.check()
        for line, row in self._good_rows():
            self._reader.request(line, row, note)
            yield found.pop()

    def _good_rows(self) -> Iterator[tuple[int, Any]]:
        bad_lines = iter(self._bad_lines)
        next_bad = next(bad_lines, 0)
        with self._opened_again() as stream:
            for line, row in self._reader.rows(stream):
                if line == next_bad:
                    next_bad = next(bad_lines, 0)
                else:
                    yield line, row

    def close(self) -> None:
        """Delete the copy of standard input, if there is one."""
        if self._copy is not None:
            self._copy.close()

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _opened_again(self) -> Generator[BinaryIO]:
        """Open the file at its beginning. The stream returns only bytes that were checked."""

        def compare(file: int, number: int, block: memoryview) -> None:
            known = self._blocks[number] if number < len(self._blocks) else b""
            found = digest_of_block(block) if block else b""
            if found != known or os.fstat(file).st_size != self._size:
                raise self._changed()

        with self._opened(compare) as (stream, _):
            yield stream

    @contextlib.contextmanager
    def _opened(
        self, on_block: Callable[[int, int, memoryview], object]
    ) -> Generator[tuple[BinaryIO, int]]:
        """Open the file at its beginning. Return a stream and the file descriptor.

        ``on_block`` gets the descriptor, the number of each block and the block.
        """
        try:
            raw, number = self._raw()
        except OSError as error:
            reason = error.strerror or type(error).__qualname__
            raise InputFileError(f"{self._name}: cannot be read: {reason}") from None
        blocks = Blocks(raw, functools.partial(on_block, number))
        with raw, io.BufferedReader(blocks, _BUFFER) as stream:
            self._refuse_packed(stream.peek(8)[:8])
            try:
                yield stream, number
            except InputFileError as error:
                raise self._named(error) from None

    def _raw(self) -> tuple[io.RawIOBase, int]:
        if self._copy is None:
            if self._is_standard_input:
                self._copy = copied(self._standard_input or standard_input())
            else:
                raw = self._path.open("rb", buffering=0)
                if stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                    return raw, raw.fileno()
                with raw:  # a pipe cannot be read twice
                    self._copy = copied(raw)
        return View(self._copy, self._copy_lock), self._copy.fileno()

    def _refuse_packed(self, beginning: bytes) -> None:
        for mark, command in _PACKED.items():
            if beginning.startswith(mark):
                raise InputFileError(
                    f"{self._name}: the file is compressed: unpack it first, for instance with "
                    f"{command} FILE | parallel-core run -"
                )
        if beginning.startswith(_ARCHIVE):
            raise InputFileError(
                f"{self._name}: the file is an archive or a spreadsheet: unpack it, or save it as "
                "CSV"
            )
        if beginning.startswith(_UTF16_MARKS):
            raise InputFileError(
                f"{self._name}: the file is UTF-16: convert it to UTF-8, for instance with "
                "iconv -f UTF-16 -t UTF-8"
            )

    def _named(self, error: InputFileError) -> InputFileError:
        text = str(error)
        return error if text.startswith(self._name) else InputFileError(f"{self._name}: {text}")

    def _changed(self) -> InputFileError:
        return InputFileError(
            f"{self._name}: the file has been changed since it was checked, and nothing more of it "
            "is sent: do not change it during a run. With its old contents, the same command "
            "resumes the run; with new contents it is a different run (see allow_changed, "
            "--allow-changed)"
        )


def _digest(custom_id: str) -> int:
    # 128 bits: among a billion ids, the chance that two have the same digest is 1e-21.
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=16).digest())


def _duplicate(found: InputRequest, line: int | None) -> InputProblem:
    earlier = "an earlier line" if line is None else f"line {line}"
    return InputProblem(
        found.line,
        "duplicate_custom_id",
        f"the custom_id {shown(found.custom_id)} is already used by {earlier}",
        "give each line a different custom_id (a line without one gets its line number)",
        found.custom_id,
    )


def _named(problem: InputProblem, endings: int) -> InputProblem:
    given = problem.custom_id or str(problem.line)
    name = given + f"#line-{problem.line}" * endings
    if name == problem.custom_id:
        return problem
    return msgspec.structs.replace(problem, custom_id=name)
