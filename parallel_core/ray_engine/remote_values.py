"""Requests, responses and exceptions, as bytes that go from one process to another.

Every value is packed for itself, so that one that cannot be brought spoils no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from parallel_core.errors import RemoteCallError, full_name, text_of

from .pickling import dumps, dumps_with_gaps, loads, why_not
from .remote_exceptions import pack_tree, unpack_tree

_RESPONSE, _EXCEPTION = b"r", b"e"


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """How a call has ended: with a value, or with an exception.

    Attributes:
        value: what the call returned; ``None`` when it failed.
        exception: what the call raised; ``None`` when it succeeded.
    """

    value: Any = None
    exception: Exception | None = None


def pack_request(request: Mapping[str, Any]) -> bytes:
    """The arguments of one call of ``acompletion``.

    Raises:
        TypeError: one of them cannot be sent to another process; says which one and why.
    """
    arguments = dict(request)
    try:
        return dumps(arguments)
    except Exception as error:  # noqa: BLE001 - whatever the argument's own code raises
        problem = _problem_of(arguments, error)
    # Not in the except block: the text of that error may quote messages.
    raise TypeError(problem)


def unpack_request(packed: bytes) -> dict[str, Any]:
    """What :func:`pack_request` has packed."""
    return cast("dict[str, Any]", loads(packed))


def pack_response(response: Any) -> bytes:
    """What a call has returned.

    In place of what cannot be pickled inside of it is a :class:`LeftOut`: an answer that has been
    paid for is not lost for that. One that cannot be pickled at all becomes a RemoteCallError.
    """
    try:
        return _RESPONSE + dumps(response)
    except Exception as error:  # noqa: BLE001 - whatever the response's own code raises
        why = why_not(error)
    try:
        packed = dumps_with_gaps(response)
        if type(loads(packed)) is type(response):
            return _RESPONSE + packed
    except Exception:  # noqa: BLE001, S110 - whatever the response's own code raises
        pass
    return pack_exception(
        RemoteCallError.for_response(response, f"it cannot be sent to another process ({why})")
    )


def pack_exception(exception: Exception) -> bytes:
    """What a call has raised, with its causes, notes and attributes.

    Attributes that cannot be pickled are left out. Where the exception comes from is a note of it.
    One that cannot be packed at all is packed as a RemoteCallError.
    """
    try:
        packed = pack_tree(exception)
    except Exception:  # noqa: BLE001 - whatever the exception's own code raises
        packed = pack_tree(RemoteCallError.standing_for(exception))
    return _EXCEPTION + packed


def unpack_outcome(packed: bytes) -> Outcome:
    """What :func:`pack_response` or :func:`pack_exception` has packed.

    What cannot be loaded here becomes the outcome's exception, a RemoteCallError.
    """
    content = memoryview(packed)[1:]
    try:
        if packed[:1] == _RESPONSE:
            return Outcome(value=loads(content))
        exception = unpack_tree(content)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the value's own code raises
        what = "response" if packed[:1] == _RESPONSE else "exception"
        problem = f"the {what} of a worker cannot be loaded here ({full_name(error)})"
        exception = RemoteCallError(problem, full_name(error), text_of(error))
        exception.__cause__ = error
    return Outcome(exception=exception)


def _problem_of(arguments: Mapping[str, Any], error: Exception) -> str:
    for name, value in arguments.items():
        try:
            dumps(value)
        except Exception as of_value:  # noqa: BLE001 - whatever the argument's own code raises
            return (
                f"argument {name!r} (a {full_name(value)}) cannot be sent to another process "
                f"({why_not(of_value)}): leave it out, or give the workers' Router what it is for"
            )
    return f"the arguments cannot be sent to another process ({why_not(error)})"
