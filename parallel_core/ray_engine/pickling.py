"""Pickle values that go from one process to another.

Plain pickle refers to a class or a function by its name. That is fast, and correct if the other
process can import the name, but names of ``__main__`` cannot be imported there. If plain pickle
fails or writes such a name, cloudpickle pickles the value again, by value. Ray's copy of
cloudpickle is used: it recognises a class that came to a worker by value and returns, so that it is
the same class again. (Each copy of cloudpickle knows only the classes that it sent itself.)

Failures mean any ``Exception``; a ``KeyboardInterrupt`` is not caught.
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
_MAIN = b"__main__"
# A message of pickle that does not quote the value.
_HARMLESS = re.compile(r"cannot pickle '[\w.]+' object")


def dumps(value: Any) -> bytes:
    """Pickle a whole value.

    Raises:
        Exception: a part of the value cannot be pickled.
    """
    try:
        packed = pickle.dumps(value, PROTOCOL)
    except Exception:  # noqa: BLE001 - whatever the value's own code raises
        return _by_value(value)
    # A message may contain this name, too. Then pickling by value is slower, but also correct.
    return _by_value(value) if _MAIN in packed else packed


def _by_value(value: Any) -> bytes:
    from ray import cloudpickle

    pickled = cast("Callable[..., bytes]", getattr(cloudpickle, "dumps"))  # noqa: B009 - without types
    return pickled(value, protocol=PROTOCOL)


def loads(packed: bytes | memoryview) -> Any:
    """Load a value that :func:`dumps` or :func:`dumps_with_gaps` pickled."""
    return pickle.loads(packed)  # noqa: S301 - from another process of the same program


def pickling_problem(error: Exception) -> str:
    """Describe why pickling failed, without quoting the value."""
    harmless = _HARMLESS.search(text_of(error))
    return harmless.group() if harmless else f"pickling it raises a {full_name(error)}"


class LeftOut:
    """Placeholder for a part of an exception or a response that could not be pickled."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __repr__(self) -> str:
        return self.shown


class _PicklerWithGaps(pickle.Pickler):
    """Pickle a value and replace each part that cannot be pickled with a :class:`LeftOut`."""

    def reducer_override(self, obj: Any, /) -> Any:
        try:
            if isinstance(obj, type | types.FunctionType):
                dumps(obj)
            else:
                obj.__reduce_ex__(PROTOCOL)
        except Exception:  # noqa: BLE001 - whatever the value's own code raises
            return LeftOut, (object.__repr__(obj),)
        if isinstance(obj, type | types.FunctionType) and not _pickles_by_name(obj):
            return loads, (_by_value(obj),)
        return NotImplemented


def _pickles_by_name(obj: Any) -> bool:
    try:
        return _MAIN not in pickle.dumps(obj, PROTOCOL)
    except Exception:  # noqa: BLE001 - for instance, a class defined in a function
        return False


def dumps_with_gaps(value: Any) -> bytes:
    """Pickle a value with a :class:`LeftOut` in place of each part that cannot be pickled.

    Raises:
        Exception: the value cannot be pickled at all.
    """
    buffer = io.BytesIO()
    _PicklerWithGaps(buffer, PROTOCOL).dump(value)
    return buffer.getvalue()
