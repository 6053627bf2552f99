"""An estimate of the memory that a request takes."""

from __future__ import annotations

import sys
from typing import Any, Final, cast

from parallel_core.types import RouterParallelRequest

_MOST_VALUES: Final = 100_000  # that are looked at: a structure may contain itself
_NUMBER: Final = 32  # bytes of a number in a list
_FEW: Final = 16
_CONTAINER: Final = 128  # bytes of a small dict or list


def request_size(item: object) -> int:
    """Return about how many bytes a request or another item takes.

    Texts count in full, in a request as well as in dicts, lists and tuples: they are what is large
    about a request. Any other object counts as it reports itself, without what it refers to. A text
    that requests share counts for each.
    """
    size = 0
    waiting: list[Any] = [item]
    for _ in range(_MOST_VALUES):
        if not waiting:
            break
        value = waiting.pop()
        if isinstance(value, (str, bytes)):
            size += sys.getsizeof(value)
        elif isinstance(value, dict):
            size += _CONTAINER
            waiting += cast("dict[str, object]", value).values()
        elif isinstance(value, (list, tuple)):
            values = cast("list[Any]", value)
            size += _CONTAINER
            if len(values) > _FEW and isinstance(values[0], (int, float)):  # tokens, or a vector
                size += _NUMBER * len(values)
            else:
                waiting += values
        elif isinstance(value, RouterParallelRequest):
            waiting += (value.messages, value.kwargs)
        else:
            size += sys.getsizeof(value, 0)
    return size
