"""Pack requests, responses and exceptions into bytes for other processes.

Each value is packed separately, so a value that cannot be packed affects no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from parallel_core.errors import RemoteCallError, full_name, text_of

from .pickling import dumps, dumps_with_gaps, loads, pickling_problem
from .remote_exceptions import pack_tree, unpack_tree

_RESPONSE, _EXCEPTION = b"r", b"e"


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """Outcome of a call: a value or an exception.

    Attributes:
        value: the value that the call returned; ``None`` if it failed.
        exception: the exception that the call raised; ``None`` if it succeeded.
    """

    value: Any = None
    exception: Exception | None = None


def pack_request(request: Mapping[str, Any]) -> bytes:
    """Pack the arguments of one call of ``acompletion``.

    Raises:
        TypeError: an argument cannot be sent to another process. The message names it and says why.
    """
    arguments = dict(request)
    try:
        return dumps(arguments)
    except Exception as error:  # noqa: BLE001 - whatever the argument's own code raises
        problem = _problem_of(arguments, error)
    # Raised outside the except block, because the text of that error may quote messages.
    raise TypeError(problem)


def unpack_request(packed: bytes) -> dict[str, Any]:
    """Unpack the arguments that :func:`pack_request` packed."""
    return cast("dict[str, Any]", loads(packed))


def pack_response(response: Any) -> bytes:
    """Pack the value that a call returned.

    A :class:`LeftOut` replaces each part that cannot be pickled, so that a paid answer is not lost.
    An answer that cannot be pickled at all becomes a RemoteCallError.
    """
    try:
        return _RESPONSE + dumps(response)
    except Exception as error:  # noqa: BLE001 - whatever the response's own code raises
        why = pickling_problem(error)
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
    """Pack the exception that a call raised, with its causes, notes and attributes.

    Attributes that cannot be pickled are left out. The traceback becomes a note. An exception that
    cannot be packed at all is packed as a RemoteCallError.
    """
    try:
        packed = pack_tree(exception)
    except Exception:  # noqa: BLE001 - whatever the exception's own code raises
        packed = pack_tree(RemoteCallError.standing_for(exception))
    return _EXCEPTION + packed


def unpack_outcome(packed: bytes) -> Outcome:
    """Unpack the bytes that :func:`pack_response` or :func:`pack_exception` made.

    If they cannot be loaded here, the exception of the outcome is a RemoteCallError.
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
        except Exception as value_error:  # noqa: BLE001 - whatever the argument's own code raises
            return (
                f"argument {name!r} (a {full_name(value)}) cannot be sent to another process "
                f"({pickling_problem(value_error)}): omit it, or configure it on the workers' "
                "Router"
            )
    return f"the arguments cannot be sent to another process ({pickling_problem(error)})"
