"""Pickling, for values that go from one process to another.

Plain pickle takes a class or a function by its name. That is quick, and right wherever the other
process can import it; of ``__main__`` it cannot. Where plain pickle fails, or has written that
name, cloudpickle does it again, by value. It is the one of Ray: it knows a class that has come to
a worker by value when that comes back, which is then the same class again. (Each copy of
cloudpickle knows only the classes that it has brought itself.)

What is said about failing holds for every ``Exception``; a ``KeyboardInterrupt`` goes through.
"""

from __future__ import annotations

import io
import pickle
import re
import types
from collections.abc import Callable
from typing import Any, cast

from parallel_core.errors import full_name, text_of

PROTOCOL = 5
_OF_MAIN = b"__main__"
# What pickle says without quoting the value.
_HARMLESS = re.compile(r"cannot pickle '[\w.]+' object")


def dumps(value: Any) -> bytes:
    """The whole value.

    Raises:
        Exception: something of it cannot be pickled.
    """
    try:
        packed = pickle.dumps(value, PROTOCOL)
    except Exception:  # noqa: BLE001 - whatever the value's own code raises
        return _by_value(value)
    # A message may have these letters, too: then this takes longer, and is right as well.
    return _by_value(value) if _OF_MAIN in packed else packed


def _by_value(value: Any) -> bytes:
    from ray import cloudpickle

    pickled = cast("Callable[..., bytes]", getattr(cloudpickle, "dumps"))  # noqa: B009 - without types
    return pickled(value, protocol=PROTOCOL)


def loads(packed: bytes | memoryview) -> Any:
    """What was pickled by any of these."""
    return pickle.loads(packed)  # noqa: S301 - from another process of the same program


def why_not(error: Exception) -> str:
    """What pickling has failed with, without anything that the value holds."""
    harmless = _HARMLESS.search(text_of(error))
    return harmless.group() if harmless else f"pickling it raises a {full_name(error)}"


class LeftOut:
    """Stands for what could not be brought with an exception or a response."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __repr__(self) -> str:
        return self.shown


class _PicklerWithGaps(pickle.Pickler):
    """Pickles the rest of a value of which something cannot be pickled."""

    def reducer_override(self, obj: Any, /) -> Any:
        try:
            if isinstance(obj, type | types.FunctionType):
                dumps(obj)
            else:
                obj.__reduce_ex__(PROTOCOL)
        except Exception:  # noqa: BLE001 - whatever the value's own code raises
            return LeftOut, (object.__repr__(obj),)
        if isinstance(obj, type | types.FunctionType) and not _goes_by_name(obj):
            return loads, (_by_value(obj),)
        return NotImplemented


def _goes_by_name(obj: Any) -> bool:
    try:
        return _OF_MAIN not in pickle.dumps(obj, PROTOCOL)
    except Exception:  # noqa: BLE001 - a class of a function, for instance
        return False


def dumps_with_gaps(value: Any) -> bytes:
    """The value with a :class:`LeftOut` in place of each part that cannot be pickled.

    Raises:
        Exception: it cannot be pickled even so.
    """
    buffer = io.BytesIO()
    _PicklerWithGaps(buffer, PROTOCOL).dump(value)
    return buffer.getvalue()
