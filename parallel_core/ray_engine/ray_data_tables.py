"""Convert rows of ``ray.data`` into requests, and results into columns.

A table is a dict of NumPy arrays, a pandas DataFrame or an Arrow table. Each of these libraries is
imported only for a table of its type.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import msgspec

from parallel_core.config import Redactor
from parallel_core.errors import InvalidRequestError, full_name
from parallel_core.files import call_statistics, parse_output_line, result_line, unwritable_line
from parallel_core.journal import read_json_line
from parallel_core.router import as_request
from parallel_core.types import RouterParallelRequest, RouterParallelResult

Kind: TypeAlias = Literal["text", "count", "number"]

COLUMNS: dict[str, Kind] = {
    "text": "text",
    "response": "text",
    "finish_reason": "text",
    "prompt_tokens": "count",
    "completion_tokens": "count",
    "cost": "number",
    "duration": "number",
    "error": "text",
    "error_type": "text",
}
"""New columns with their kinds, in order."""


# --- reading ---


@dataclass(frozen=True)
class InputColumns:
    """Columns that hold the parts of requests.

    ``model`` is the model of rows that name none. ``required`` are the columns that must exist.
    """

    messages: str
    prompt: str
    model_column: str
    kwargs: str
    model: str | None
    required: tuple[str, ...]

    def requests(self, table: Any) -> list[RouterParallelRequest | InvalidRequestError]:
        """Return the request of each row, or the error of an invalid row.

        Raises:
            ValueError: a column is missing.
        """
        names = names_of(table)
        count = _count_of(table)
        if count:
            self._check(names)
        columns = {
            name: values_of(table, name)
            for name in (self.messages, self.prompt, self.model_column, self.kwargs)
            if name in names
        }
        return [
            self._request(row, {name: column[row] for name, column in columns.items()})
            for row in range(count)
        ]

    def _check(self, names: Sequence[str]) -> None:
        has = f"it has {', '.join(map(repr, names))}"
        for name in self.required:
            if name not in names:
                raise ValueError(f"the batch has no column {name!r}: {has}")
        if self.messages not in names and self.prompt not in names:
            raise ValueError(
                f"the batch has neither a column {self.messages!r} nor {self.prompt!r}: {has}; "
                "set messages_column or prompt_column to the column to read"
            )
        if self.model is None and self.model_column not in names:
            raise ValueError(
                f"the batch has no column {self.model_column!r}: {has}; give model=, or set "
                "model_column to the column of model names"
            )

    def _request(
        self, row: int, values: Mapping[str, Any]
    ) -> RouterParallelRequest | InvalidRequestError:
        try:
            model = _plain(values.get(self.model_column))
            request = RouterParallelRequest(
                cast("str", self.model if model is None else model),
                self._messages(values),
                _decoded(self.kwargs, _plain(values.get(self.kwargs))),
            )
            return as_request(row, request)
        except InvalidRequestError as error:
            return error
        except ValueError as error:
            return InvalidRequestError({row: str(error)})
        except RecursionError:
            return InvalidRequestError({row: "nested too deeply"})

    def _messages(self, values: Mapping[str, Any]) -> Any:
        messages = _decoded(self.messages, _plain(values.get(self.messages)))
        if messages is not None:
            return messages
        prompt = _plain(values.get(self.prompt))
        if prompt is None:
            empty = [name for name in (self.messages, self.prompt) if name in values]
            raise ValueError(f"nothing to send: {' and '.join(map(repr, empty))} has no value")
        if not isinstance(prompt, str):
            raise ValueError(  # noqa: TRY004 - becomes the error of the row
                f"{self.prompt!r} must be a text, not {type(prompt).__qualname__}"
            )
        return [{"role": "user", "content": prompt}]


def _decoded(name: str, value: Any) -> Any:
    """Decode a value that is a JSON text. Return any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise ValueError(f"{name!r} is a text, but not valid JSON") from None


def _plain(value: Any) -> Any:
    """Convert a value into types of JSON.

    Null members of structs are left out: Arrow adds them if other rows have such a member.
    """
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        plain = {
            str(name): _plain(member) for name, member in cast("Mapping[str, Any]", value).items()
        }
        return {name: member for name, member in plain.items() if member is not None}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in cast("Sequence[Any]", value)]
    if hasattr(value, "tolist"):  # an array of NumPy, or one of its scalars
        return _plain(value.tolist())
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return None
    return value


def names_of(table: Any) -> list[str]:
    """Return the names of the columns.

    Raises:
        TypeError: ``table`` is not a table.
    """
    if isinstance(table, Mapping):
        return list(cast("Mapping[str, Any]", table))
    if _is_of("pyarrow", "Table", table):
        return list(table.column_names)
    if _is_of("pandas", "DataFrame", table):
        return list(table.columns)
    raise TypeError(
        "a batch is a dict of NumPy arrays, a pandas DataFrame or a pyarrow Table, not "
        f"{type(table).__qualname__}"
    )


def values_of(table: Any, name: str) -> list[Any]:
    """Return the values of a column."""
    column = table[name]
    if _is_of("pyarrow", "Table", table):
        try:
            return cast("list[Any]", column.to_pylist())
        except Exception:  # noqa: BLE001 - Python has no type for some value
            return [_of_arrow(value) for value in column]
    return list(column)


class ValueOutOfRange:
    """Placeholder for an Arrow value that no Python type can hold. Its row gets an error."""


def _of_arrow(value: Any) -> Any:
    try:
        return value.as_py()
    except Exception:  # noqa: BLE001 - Python has no type for this value
        return ValueOutOfRange()


def _count_of(table: Any) -> int:
    if isinstance(table, Mapping):
        columns = cast("Mapping[str, Any]", table)
        return max((len(column) for column in columns.values()), default=0)
    return len(table)


def _is_of(module: str, name: str, table: object) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(table, getattr(loaded, name))


# --- writing ---


def cells(result: RouterParallelResult, redactor: Redactor) -> tuple[Any, ...]:
    """Return the new cells of a result's row, in the order of :data:`COLUMNS`."""
    try:
        return _cells(result, redactor)
    except Exception as error:  # noqa: BLE001 - from one result: the other rows are paid for
        failed = error if result.exception is None else result.exception
        text = f"the result cannot be converted into columns ({full_name(error)})"
        return (*[None] * (len(COLUMNS) - 2), text, type(failed).__name__)


def _cells(result: RouterParallelResult, redactor: Redactor) -> tuple[Any, ...]:
    name = str(result.index)
    statistics = call_statistics(name, result, None)
    try:
        line = parse_output_line(result_line(name, result, redactor))
        body = None if not line.ok or line.body is None else bytes(line.body)
        document: Any = {} if body is None else read_json_line(msgspec.json.decode, body)
    except Exception as error:  # noqa: BLE001 - for instance, an answer that is nested too deeply
        line = parse_output_line(unwritable_line(name, error)[0])
        body, document = None, {}
    text, finish_reason = _first_choice(document)
    is_sent = not isinstance(result.exception, InvalidRequestError)
    has_usage = bool(statistics.prompt_tokens or statistics.completion_tokens)
    message = None
    if body is None:
        message = redactor.redact(line.error_message or "") or line.error_code or "the call failed"
    return (
        text,
        None if body is None else body.decode(),
        finish_reason,
        _int64(statistics.prompt_tokens) if has_usage else None,
        _int64(statistics.completion_tokens) if has_usage else None,
        statistics.cost,
        result.duration if is_sent else None,
        message,
        None if body is not None else statistics.error or line.error_code,
    )


def _first_choice(document: Any) -> tuple[str | None, str | None]:
    """Return the text and the finish reason of an answer's first choice; None if missing."""
    try:
        choice = document["choices"][0]
    except (LookupError, TypeError):
        return None, None
    if not isinstance(choice, dict):
        return None, None
    fields = cast("dict[str, Any]", choice)
    message = fields.get("message")
    content = cast("dict[str, Any]", message).get("content") if isinstance(message, dict) else None
    return _text_or_none(content), _text_or_none(fields.get("finish_reason"))


def _int64(number: int) -> int | None:
    """Return the number if it fits into the column, else None: a provider can send any number."""
    return number if number < 2**63 else None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def check_new_columns(table: Any, prefix: str) -> None:
    """Check that no new column has the name of an existing one.

    Raises:
        ValueError: a name is taken. The message lists the columns.
    """
    taken = [prefix + name for name in COLUMNS if prefix + name in names_of(table)]
    if taken:
        raise ValueError(
            f"the batch has a column {', '.join(map(repr, taken))} already: rename the new columns "
            "with column_prefix"
        )


def with_columns(table: Any, rows: Sequence[tuple[Any, ...]], prefix: str) -> Any:
    """Return the table with the new cells, in columns that always have the same types."""
    columns: dict[str, tuple[Kind, list[Any]]] = {
        prefix + name: (kind, [row[position] for row in rows])
        for position, (name, kind) in enumerate(COLUMNS.items())
    }
    if _is_of("pyarrow", "Table", table):
        for name, column in _arrow_columns(columns).items():
            table = table.append_column(name, column)
        return table
    if isinstance(table, Mapping):
        # NumPy has no type for texts that may be null. ray.data converts the column to Arrow and
        # would give a column of nulls the null type. So Arrow columns are returned there.
        new = (
            _arrow_columns(columns)
            if _is_in_ray_worker()
            else {name: _numpy_column(kind, values) for name, (kind, values) in columns.items()}
        )
        return {**cast("Mapping[str, Any]", table), **new}
    pandas: Any = importlib.import_module("pandas")
    if importlib.util.find_spec("pyarrow") is not None:
        # With any other type, ray.data loses the type of a column of nulls.
        return table.assign(
            **{
                name: pandas.array(column, dtype=pandas.ArrowDtype(column.type))
                for name, column in _arrow_columns(columns).items()
            }
        )
    types = {"text": "string", "count": "Int64", "number": "Float64"}
    return table.assign(
        **{
            name: pandas.array(values, dtype=types[kind])
            for name, (kind, values) in columns.items()
        }
    )


def _arrow_columns(columns: Mapping[str, tuple[Kind, list[Any]]]) -> dict[str, Any]:
    arrow: Any = importlib.import_module("pyarrow")
    types = {"text": arrow.string(), "count": arrow.int64(), "number": arrow.float64()}
    return {name: arrow.array(values, type=types[kind]) for name, (kind, values) in columns.items()}


def _numpy_column(kind: Kind, values: list[Any]) -> Any:
    import numpy

    if kind != "text":
        return numpy.array([math.nan if value is None else value for value in values], dtype=float)
    column = numpy.empty(len(values), dtype=object)
    column[:] = values
    return column


def _is_in_ray_worker() -> bool:
    """Return True in a Ray worker, where the returned table becomes a block of ray.data."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)
