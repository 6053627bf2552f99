"""A file of requests: checked as a whole before the first call, then read request by request.

It is read twice and never held in memory, so its size does not matter. The formats are described
in ``docs/file-formats.md``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from parallel_core.config import RequestsDigest
from parallel_core.errors import InputFileError
from parallel_core.types import CHAT

from .bad_lines import BadLines
from .endpoints import EndpointName
from .formats import InputFormat, reader_of
from .input_bytes import InputBytes
from .input_members import ColumnOptions, describe_columns
from .input_records import InputProblem, InputRequest, InputSummary

_PROBLEMS_KEPT: Final = 20


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
        endpoint: endpoint of the lines that have no ``url``: ``chat``, ``responses``,
            ``embeddings``, ``completions``, ``moderations`` or ``rerank``. None: the members of a
            line say it, and CSV and text are prompts of chat.
        standard_input: stream to read for ``"-"``; ``sys.stdin`` if None.

    Raises:
        InputFileError: the options contradict each other.
        ValueError: there is no such format, or no such endpoint.
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
        endpoint: EndpointName | None = None,
        standard_input: BinaryIO | None = None,
    ) -> None:
        if isinstance(keep, str):
            raise TypeError("keep must be names of columns, not one str")
        columns = ColumnOptions(tuple(dict.fromkeys(keep)), drop_columns, send_columns, trust_input)
        self._path = Path(path)
        self._bytes = InputBytes(path, standard_input)
        with self._bytes.naming():
            self._reader = reader_of(
                format,
                self._path.suffix.lower(),
                template=template,
                model=model,
                columns=columns,
                endpoint=endpoint,
            )
        self._summary: InputSummary | None = None
        self._bad_lines = BadLines()

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
        reader, bad_lines = self._reader, BadLines()
        models: Counter[str] = Counter()
        operations: Counter[str] = Counter()
        digest = RequestsDigest()
        with self._bytes.first_reading() as stream:
            for line, row in reader.rows(stream):
                found = reader.check(line, row)
                if type(found) is not InputRequest:
                    bad_lines.add(line)
                elif reader.lines_are_ids or bad_lines.accepts(line, found.custom_id):
                    models[found.request.model] += 1
                    operations[found.request.operation or CHAT] += 1
                    digest.add(found.custom_id, found.request)
        with self._bytes.naming():
            if not bad_lines:  # a bad line may have the missing column
                reader.refuse_missing()
                if not models:
                    raise InputFileError("there is no request in the file")
        self._bad_lines = bad_lines
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
            dict(operations),
        )

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
            raise InputFileError(f"{self._bytes.name}: {describe_columns(columns)}")
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
        with self._bytes.reading() as stream:
            yield from self._bad_lines.without(self._reader.rows(stream))

    def close(self) -> None:
        """Delete the copy of standard input, if there is one."""
        self._bytes.close()

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
