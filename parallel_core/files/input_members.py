"""Members of a line: decide which are sent, copied to the output, or refused.

All members of a ``body`` are parameters. A member of a plain line is a parameter if OpenAI's API
has one of that name for the endpoint of the line; other members are columns, and the user decides
what happens to them. The page ``docs/file-formats.md`` has the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, cast

import msgspec

from parallel_core.config import nearest
from parallel_core.errors import InputFileError

from .endpoints import ENDPOINTS, Endpoint
from .input_records import InputColumn, LineError, RecordUnit, kind_of, shown
from .parameters import is_key_or_address, is_litellm_setting, is_private, parameters_of

# Not columns, although OpenAI lacks them: a timeout in seconds, a vendor's members of the body, and
# metadata, which some endpoints have, and which comes back in the line of the result.
_OURS: Final = frozenset(("timeout", "extra_body", "metadata"))
# Members that set where litellm sends a request.
_ADDRESSES: Final = ("api_base", "base_url")
# Limits of memory: every line of a file may have another shape or other names.
_MOST_SHAPES: Final = 1000
_MOST_COLUMNS: Final = 1000
_MOST_SHOWN: Final = 20

_SETTING_HINT: Final = (
    "leave it out: keys, addresses and settings of litellm belong in the Router's config. Put a "
    "provider parameter of this name into extra_body. If the file is as trustworthy as the config, "
    "give --trust-input"
)
_COLUMN_HINT: Final = (
    "litellm has a setting of this name. Name the column with --keep to copy it to the output "
    "instead, or give --drop-columns instead of --send-columns"
)


class ColumnOptions(NamedTuple):
    """Options for the columns of a file.

    Attributes:
        keep: names of columns that are copied to the output line, and not sent.
        drop: leave out all other columns.
        send: send all other columns, as parameters of a vendor.
        trust: also send settings of litellm.
    """

    keep: tuple[str, ...] = ()
    drop: bool = False
    send: bool = False
    trust: bool = False

    def meaning(self) -> list[str | None]:
        """Return the options that decide which members are sent."""
        words: list[str | None] = ["trust"] if self.trust else []
        return [*words, "send", *sorted(self.keep)] if self.send else words


class _Shape(NamedTuple):
    """The decisions for objects with the same member names."""

    columns: tuple[str, ...]  # not sent
    kept: tuple[str, ...]
    undecided: tuple[str, ...]
    forbidden: tuple[str, ...]
    looks_inside: bool  # it has a member whose members must be checked too
    has_address: bool  # it may set where the request is sent


class Members:
    """Sorts the members of lines, and counts the columns that no option covers."""

    def __init__(self, options: ColumnOptions) -> None:
        self._options = options
        self._bodies = {name: dict[tuple[str, ...], _Shape]() for name in ENDPOINTS}
        self._plain = {name: dict[tuple[str, ...], _Shape]() for name in ENDPOINTS}
        # Number of lines, the first line, and its endpoint.
        self._undecided: dict[str, tuple[int, int, str]] = {}
        self._missing = set(options.keep)

    def sort(
        self, line: int, record: dict[str, Any], body: dict[str, Any], endpoint: Endpoint
    ) -> None:
        """Check the members of a line, and remove those that are not sent from its body.

        Raises:
            LineError: a member must not come from a file.
        """
        shape = self._shape(record, body, endpoint)
        if self._missing:
            self._missing.difference_update(record)
        if shape.forbidden:
            raise _forbidden(shape.forbidden, _COLUMN_HINT if body is record else _SETTING_HINT)
        if shape.looks_inside:
            self.look_inside(body, endpoint)
        if shape.has_address:
            _refuse_address_without_key(body)
        for name in shape.undecided:
            self._count(line, name, endpoint)
        for name in shape.columns:
            del body[name]

    def split(
        self, record: dict[str, Any], body: dict[str, Any], endpoint: Endpoint
    ) -> dict[str, msgspec.Raw] | None:
        """Remove the columns from a body.

        Returns:
            The members to copy to the result line, as JSON: ``metadata`` and ``columns``. None if
            there are none.
        """
        shape = self._shape(record, body, endpoint)
        returned: dict[str, msgspec.Raw] = {}
        metadata = record.get("metadata")
        if metadata is None:
            metadata = body.get("metadata")
        if metadata is not None:
            returned["metadata"] = as_json(metadata)
        kept = shape.kept if body is record else [n for n in self._options.keep if n in record]
        if kept:
            # Encode each value separately: it was decoded, so its nesting is not too deep.
            returned["columns"] = as_json({name: as_json(record[name]) for name in kept})
        for name in shape.columns:
            del body[name]
        return returned or None

    def undecided(self) -> list[InputColumn]:
        """Return the columns that no option covers, the most frequent first."""
        columns = [InputColumn(name, *counts) for name, counts in self._undecided.items()]
        return sorted(columns, key=lambda column: (-column.lines, column.first_line))

    def refuse_missing(self) -> None:
        """Check that every column to keep is in some line.

        Raises:
            InputFileError: no line has a column; the message names it.
        """
        if "custom_id" in self._missing:
            raise InputFileError(
                "custom_id is in each line of the output anyway: leave it out of --keep"
            )
        if self._missing:
            raise InputFileError(
                f"no line has a member {_listed(sorted(self._missing))} to keep: correct --keep"
            )

    def _shape(self, record: dict[str, Any], body: dict[str, Any], endpoint: Endpoint) -> _Shape:
        shapes = (self._plain if body is record else self._bodies)[endpoint.name]
        names = tuple(body)
        shape = shapes.get(names)
        if shape is None:
            shape = self._shape_of(names, endpoint, is_plain=body is record)
            if len(shapes) < _MOST_SHAPES:
                shapes[names] = shape
        return shape

    def _shape_of(self, names: tuple[str, ...], endpoint: Endpoint, *, is_plain: bool) -> _Shape:
        keep, drop, send, trust = self._options
        operation = endpoint.operation
        known = parameters_of(operation) | _OURS
        others = tuple(name for name in names if name not in known)
        kept: tuple[str, ...] = ()
        columns: tuple[str, ...] = ()
        undecided: tuple[str, ...] = ()
        if is_plain:
            kept = tuple(name for name in names if name in keep)
            columns = tuple(name for name in others if name in keep or not send)
            undecided = () if drop else tuple(name for name in columns if name not in keep)
            others = tuple(name for name in others if name not in columns)
        return _Shape(
            columns,
            kept,
            undecided,
            () if trust else tuple(name for name in others if is_litellm_setting(name, operation)),
            "metadata" in names or "extra_body" in names,
            any(name in _ADDRESSES for name in others),
        )

    def look_inside(self, body: dict[str, Any], endpoint: Endpoint) -> None:
        """Check the members of the members that a provider, or litellm, may act on.

        Raises:
            LineError: one of them must not come from a file, or would replace what was checked.
        """
        metadata, extra = body.get("metadata"), body.get("extra_body")
        if type(metadata) is dict and not self._options.trust:
            private = filter(is_private, cast("dict[str, Any]", metadata))
            _refuse(f"metadata.{name}" for name in private)
        if extra is None:
            return
        if type(extra) is not dict:
            raise LineError(
                "invalid_type",
                f"extra_body must be an object, not {kind_of(extra)}",
                'for instance "extra_body": {"top_k": 20}',
            )
        members = cast("dict[str, Any]", extra)
        twice = [name for name in members if name in endpoint.fixed or name in body]
        if twice:
            raise LineError(
                "forbidden_parameter",
                f"extra_body has {_listed(twice)}, which would replace what was checked",
                "write it as a member of the line, not in extra_body",
            )
        if not self._options.trust:
            of_endpoint = endpoint.operation
            _refuse(
                f"extra_body.{name}" for name in members if is_key_or_address(name, of_endpoint)
            )

    def _count(self, line: int, name: str, endpoint: Endpoint) -> None:
        lines, first, of = self._undecided.get(name, (0, line, endpoint.operation))
        if lines or len(self._undecided) < _MOST_COLUMNS:
            self._undecided[name] = (lines + 1, first, of)


def describe_columns(columns: list[InputColumn], unit: RecordUnit = "line") -> str:
    """Describe undecided columns, and what to do, as a text for people.

    Args:
        columns: the columns.
        unit: what the numbers of requests count in this file.
    """
    listed = [
        f"  {shown(column.name)}: {column.lines:,} {unit if column.lines == 1 else f'{unit}s'}, "
        f"first in {unit} {column.first_line}{_meant(column)}"
        for column in columns[:_MOST_SHOWN]
    ]
    if len(columns) > _MOST_SHOWN:
        listed.append(f"  and {len(columns) - _MOST_SHOWN:,} more")
    first = columns[0].name
    example = first if first.isidentifier() else "NAME"
    advice = (
        f"give --keep {example} to copy some to the output, and --drop-columns to leave the "
        "others out, or --send-columns to send them as parameters of the provider"
    )
    return "\n".join(
        (f"{unit}s have members that are not parameters of their endpoint:", *listed, advice)
    )


def _meant(column: InputColumn) -> str:
    parameter = nearest(column.name, parameters_of(column.operation))
    return "" if parameter is None else f" (is {parameter} meant?)"


def as_json(value: object) -> msgspec.Raw:
    """Encode a value as JSON, to insert it into a result line."""
    return msgspec.Raw(msgspec.json.encode(value))


def _refuse(names: Iterable[str]) -> None:
    listed = list(names)
    if listed:
        raise _forbidden(listed, _SETTING_HINT)


def _forbidden(names: Iterable[str], hint: str) -> LineError:
    message = f"{_listed(names)} must not come from a file: not a parameter of the request"
    return LineError("forbidden_parameter", message, hint)


def _refuse_address_without_key(body: dict[str, Any]) -> None:
    """Refuse an address without a key: litellm would send the Router's key to it."""
    given = [name for name in _ADDRESSES if name in body]
    key = body.get("api_key")
    if given and not (type(key) is str and key.strip()):
        raise LineError(
            "forbidden_parameter",
            f"{_listed(given)} without an api_key: the key of the Router would be sent there",
            'give the line the api_key of that address, or "none" if it needs none',
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))
