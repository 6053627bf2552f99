"""Rows of Parquet and Arrow files, read a few at a time with pyarrow."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO, Final, cast

import msgspec

from parallel_core.errors import InputFileError
from parallel_core.files.contents import FEATHER_1, table_format
from parallel_core.files.input_records import LineError, shown

# Values are converted by column, for so many rows; more are hardly quicker, and all are in memory.
_MOST_ROWS: Final = 32
_MOST_BYTES: Final = 1 << 24  # of these rows, as the file has them
_BUFFER: Final = 1 << 19  # bytes of each column that are read ahead
_INSTALL: Final = (
    "a package is needed to read Parquet and Arrow files: pip install 'parallel_core[parquet]'"
)
_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


class _Unreadable:
    """A value that has no meaning in Python: a text that is not UTF-8, a date in the year 20000."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Rows:
    """A few rows of a table, whose columns are converted when they are asked for."""

    def __init__(self, columns: list[Any], names: list[str]) -> None:
        self.names = names
        self._columns = columns
        self._values: dict[int, list[Any]] = {}

    def value(self, row: int, column: int) -> Any:
        """Return a value as Python has it.

        Raises:
            LineError: it cannot be read.
        """
        values = self._values.get(column)
        if values is None:
            values = self._values[column] = _values_of(self._columns[column])
        value = values[row]
        if isinstance(value, _Unreadable):
            raise LineError(
                "invalid_encoding",
                f"the value of the column {shown(self.names[column])} cannot be read: "
                f"{value.reason}",
                "write it as text in UTF-8",
            )
        return value


class TableRow(Sequence[str]):
    """One row of a table as texts, which are made when they are asked for.

    Attributes:
        size: characters of the texts that were asked for.
    """

    def __init__(self, rows: Rows, number: int) -> None:
        self.size = 0
        self._rows = rows
        self._number = number

    def __len__(self) -> int:
        return len(self._rows.names)

    def __getitem__(self, column: Any) -> Any:
        text = text_of(self._rows.value(self._number, column))
        self.size += len(text)
        return text

    def value(self, column: int) -> Any:
        """Return a value as Python has it.

        Raises:
            LineError: it cannot be read.
        """
        return self._rows.value(self._number, column)

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield the names of the columns with their values, without null members of objects.

        Raises:
            LineError: a value cannot be read.
        """
        for column, name in enumerate(self._rows.names):
            value = self.value(column)
            yield name, _without_nulls(value) if type(value) in (list, dict) else value


class ArrowTable:
    """An open Parquet or Arrow file.

    Args:
        stream: its bytes; it can be positioned.
        beginning: the first of them.

    Attributes:
        names: names of the columns.

    Raises:
        InputFileError: it is broken, or pyarrow is not installed.
    """

    def __init__(self, stream: BinaryIO, beginning: bytes) -> None:
        if beginning.startswith(FEATHER_1):
            raise InputFileError("Feather version 1 is not supported: save the table as Parquet")
        self._format = "Parquet" if table_format(beginning) == "parquet" else "Arrow"
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise InputFileError(_INSTALL) from None
        with self._reading():
            if self._format == "Parquet":
                # Without pre_buffer, the columns of a group of rows are not read as a whole.
                source = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER)
                self._source = source
                schema = source.schema_arrow
            else:
                is_file = beginning.startswith(b"ARROW1")
                opened = self._arrow.ipc.open_file if is_file else self._arrow.ipc.open_stream
                self._source = opened(stream)
                schema = self._source.schema
        self.names = list(schema.names)
        if len(set(self.names)) < len(self.names):
            raise InputFileError("several columns have the same name: rename them")
        self._types = [self._readable(field.type) for field in schema]

    def rows(self) -> Iterator[TableRow]:
        """Yield the rows.

        Raises:
            InputFileError: the file is broken.
        """
        batches = self._batches()
        while True:
            with self._reading():
                batch = next(batches, None)
                if batch is None:
                    return
                columns = [
                    column if column.type.equals(type_) else column.cast(type_, safe=False)
                    for column, type_ in zip(batch.columns, self._types, strict=True)
                ]
            rows = Rows(columns, self.names)
            for number in range(batch.num_rows):
                yield TableRow(rows, number)
            del batch, columns, rows

    def _batches(self) -> Iterator[Any]:
        if self._format == "Parquet":
            groups = [
                self._source.metadata.row_group(number)
                for number in range(self._source.metadata.num_row_groups)
            ]
            largest = max(
                (group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0
            )
            most = max(1, min(_MOST_ROWS, int(_MOST_BYTES / max(largest, 1))))
            yield from self._source.iter_batches(batch_size=most, use_threads=False)
            return
        for batch in _arrow_batches(self._source):
            for start in range(0, batch.num_rows, _MOST_ROWS):
                yield batch.slice(start, _MOST_ROWS)

    def _readable(self, type_: Any) -> Any:
        """Return the type to which a column is cast, since Python has its values."""
        arrow, types = self._arrow, self._arrow.types
        if types.is_dictionary(type_):
            return self._readable(type_.value_type)
        if types.is_timestamp(type_) and type_.unit == "ns":
            return arrow.timestamp("us", type_.tz)
        if types.is_time64(type_) and type_.unit == "ns":
            return arrow.time64("us")
        if types.is_duration(type_) and type_.unit == "ns":
            return arrow.duration("us")
        if types.is_list(type_) or types.is_large_list(type_):
            inner = type_.value_field.with_type(self._readable(type_.value_type))
            return (arrow.list_ if types.is_list(type_) else arrow.large_list)(inner)
        if types.is_struct(type_):
            return arrow.struct([field.with_type(self._readable(field.type)) for field in type_])
        return type_

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        try:
            yield
        except InputFileError:  # of the stream: the file was changed
            raise
        except (self._arrow.ArrowException, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputFileError(
                f"the file cannot be read as {self._format}: it is broken, cut off or of a kind "
                f"that pyarrow does not know: {reason}"
            ) from None


def _arrow_batches(source: Any) -> Iterator[Any]:
    if hasattr(source, "num_record_batches"):
        return (source.get_batch(number) for number in range(source.num_record_batches))
    return iter(source)


def _values_of(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # of one value
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _Unreadable("it is not valid UTF-8")
    except (ValueError, OverflowError) as error:
        return _Unreadable(str(error))


def text_of(value: Any) -> str:
    """Return the text of a value in a prompt: null is empty, and others are as JSON has them.

    Raises:
        LineError: the value is bytes that are no text.
    """
    if type(value) is str:
        return value
    if type(value) is bytes:
        try:
            return value.decode()
        except UnicodeDecodeError:
            problem, hint = "bytes that are not text in UTF-8", "leave the column out of the prompt"
            raise LineError("invalid_encoding", problem, hint) from None
    text = _encode(value).decode()
    if text == "null":
        return ""
    return text[1:-1] if text[0] == '"' else text  # of dates


def json_of(value: Any) -> msgspec.Raw:
    """Return a value as JSON. Bytes are written in base64, dates in ISO form."""
    return msgspec.Raw(_encode(value))


def _without_nulls(value: object) -> object:
    """Return a nested value without members that are null.

    A struct has all of its members in every row. So null means that there is none.
    """
    if type(value) is dict:
        members = cast("dict[str, object]", value)
        return {name: _without_nulls(v) for name, v in members.items() if v is not None}
    if type(value) is list:
        return list(map(_without_nulls, cast("list[object]", value)))
    return value
