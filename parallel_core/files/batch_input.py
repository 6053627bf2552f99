"""A file of requests: checked as a whole before the first call, then read request by request.

It is read twice and never held in memory, so its size does not matter. The formats are described
on the page ``docs/file-formats.md``.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from parallel_core.config import RequestsDigest
from parallel_core.errors import InputFileError
from parallel_core.journal import RequestRecords, id_key
from parallel_core.types import CHAT

from .bad_lines import BadLines
from .endpoints import EndpointName, endpoint_named
from .formats import InputFormat, reader_of
from .formats.request_options import Parameters, RequestOptions
from .input_bytes import InputBytes
from .input_members import ColumnOptions, describe_columns
from .input_records import InputProblem, InputRequest, InputSummary
from .line_limits import LONGEST_LINE, bytes_of

_PROBLEMS_KEPT: Final = 20


def never(custom_id: str) -> bool:
    """Return False: no request is finished."""
    return False


class InputFile:
    """A file of requests.

    Args:
        path: path of the file; ``"-"`` is standard input; as a str also an address that fsspec can
            open, such as ``s3://…``. What is no file on this machine is copied into a temporary
            file first. Compressed files, JSON arrays, Parquet and Arrow are recognised by their
            contents.
        format: ``"auto"`` uses the ending of the name for all others: ``.csv`` and ``.tsv``,
            ``.txt``, and JSON lines for the rest.
        template: makes a prompt of a row, for instance ``"Translate: {{text}}"``. CSV needs one;
            text without one sends each line unchanged. JSON lines with one are rows, too. Values
            that are no text become JSON. In Parquet and Arrow, null becomes an empty text, dates
            have ISO form, and bytes must be UTF-8.
        system: makes a system message before each prompt, in the same way.
        parameters: parameters of the requests that do not have them: ``{"temperature": 0}``.
        model: model of the lines that name none. CSV, text and a template need it.
        override_model: model of every request, in place of what a line names.
        id_column: column that has the ids: strings, or whole numbers.
        keep: columns, or members beside ``body``, that are copied to the output line as
            ``columns``. They are not sent, unless OpenAI has a parameter of that name.
        drop_columns: leave out all other members of plain lines that are not parameters.
        send_columns: send those members, as parameters of the provider.
        trust_input: also send members that litellm takes as its own settings: keys, addresses,
            retries, prices.
        max_line: MiB of the longest line, element or row that is read; a longer one is a bad line.
            Reading one takes several times its size of memory.
        endpoint: endpoint of the lines that have no ``url``: ``chat``, ``responses``,
            ``embeddings``, ``completions``, ``moderations`` or ``rerank``. None: the members of a
            line say it, and CSV and text are prompts of chat.
        standard_input: stream to read for ``"-"``; ``sys.stdin`` if None.

    Raises:
        InputFileError: the options contradict each other.
        ValueError: there is no such format or endpoint, or the limit is not finite and above 0.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        format: InputFormat = "auto",
        template: str | None = None,
        model: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        id_column: str | None = None,
        override_model: str | None = None,
        keep: Iterable[str] = (),
        drop_columns: bool = False,
        send_columns: bool = False,
        trust_input: bool = False,
        max_line: float = LONGEST_LINE,
        endpoint: EndpointName | None = None,
        standard_input: BinaryIO | None = None,
    ) -> None:
        if isinstance(keep, str):
            raise TypeError("keep must be names of columns, not one str")
        columns = ColumnOptions(tuple(dict.fromkeys(keep)), drop_columns, send_columns, trust_input)
        self._path = Path(path)
        self._bytes = InputBytes(path, standard_input)
        self._reader_of = functools.partial(
            reader_of,
            format,
            self._bytes.ending,
            template=template,
            model=model,
            columns=columns,
            requests=RequestOptions(
                system,
                Parameters(parameters),
                id_column,
                override_model,
                None if endpoint is None else endpoint_named(endpoint),
            ),
            longest=bytes_of(max_line),
        )
        with self._bytes.naming():
            self._reader = self._reader_of()
        self._summary: InputSummary | None = None
        self._bad_lines = BadLines()
        self._records = RequestRecords()

    @property
    def path(self) -> Path:
        """Path of the file; ``-`` is standard input."""
        return self._path

    @property
    def name(self) -> str:
        """Name of the file for messages. An address is without its query, which may hold keys."""
        return self._bytes.name

    @property
    def format(self) -> str:
        """Format of the file, as in :class:`InputSummary`. It is sure after a check."""
        return self._reader.format

    def check(self) -> InputSummary:
        """Read the whole file and return its summary.

        This needs about 125 bytes of memory per named request, and 9 per bad line. A second call
        returns the same summary.

        Raises:
            InputFileError: the file cannot be read, is empty or broken, was changed meanwhile, or
                does not fit the template.
        """
        if self._summary is None:
            self._summary = self._check()
        return self._summary

    def _check(self) -> InputSummary:
        bad_lines = BadLines()
        models: Counter[str] = Counter()
        operations: Counter[str] = Counter()
        digest, records = RequestsDigest(), RequestRecords()
        with self._bytes.first_reading() as stream:
            reader = self._reader = self._reader_of(self._bytes.beginning)
            for line, row in reader.rows(stream):
                found = reader.check(line, row)
                del row  # a long line must not stay in memory longer than it is needed
                if type(found) is not InputRequest:
                    bad_lines.add(line)
                    continue
                key = id_key(found.custom_id)
                if reader.lines_are_ids or bad_lines.accepts(line, key):
                    models[found.request.model] += 1
                    operations[found.request.operation or CHAT] += 1
                    records.add(key, digest.add(found.custom_id, found.request))
                del found
        with self._bytes.naming():
            if not bad_lines:  # a bad line may have the missing column
                reader.refuse_missing()
                if not models:
                    raise InputFileError("there is no request in the file")
        self._bad_lines = bad_lines
        self._records = records
        columns = reader.undecided()  # before the next reading, which counts them again
        return InputSummary(
            models.total(),
            bad_lines.make_unique(self._problems(), _PROBLEMS_KEPT),
            len(bad_lines),
            dict(models),
            digest.hexdigest(),
            reader.format,
            columns,
            reader.names_lines,
            reader.unit,
            dict(operations),
        )

    def records(self) -> RequestRecords:
        """Return a record of each request, by which a later run finds those that have changed.

        Raises:
            InputFileError: as in ``check``.
        """
        self.check()
        return self._records

    def fingerprint_of_format_1(self) -> str:
        """Return the fingerprint of this file in manifests of the first format: of its bytes.

        Raises:
            InputFileError: as in ``check``.
        """
        self.check()
        meaning = [self._bytes.digest(), self._reader.format, *self._reader.meaning()]
        return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()

    def problems(self) -> Iterator[InputProblem]:
        """Yield the bad lines of the file, in file order.

        This reads the file again, and checks it first if that was not done yet.

        Raises:
            InputFileError: as in ``check``; or the file was changed after the check.
        """
        self.check()
        yield from self._bad_lines.named(self._problems())

    def _problems(self) -> Iterator[InputProblem]:
        if self._bad_lines:
            with self._bytes.reading() as stream:
                yield from self._bad_lines.found(self._reader, self._reader.rows(stream))

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
            raise InputFileError(
                f"{self._bytes.name}: {describe_columns(columns, self._reader.unit)}"
            )
        for line, row in self._good_rows():
            found = self._reader.request(line, row, finished)
            del row  # a long line must not stay in memory longer than it is needed
            if found is not None:
                yield found
            del found

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
        with self._bytes.reading() as stream:
            yield from self._bad_lines.without(self._reader.rows(stream))

    def close(self) -> None:
        """Delete the copy of standard input, if there is one."""
        self._bytes.close()

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
