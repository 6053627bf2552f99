"""The errors of this package. Each docstring says where the error appears and what it means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping


class InvalidRequestError(ValueError):
    """A request cannot be sent as it is.

    A list, a tuple or another sequence, set or view is checked as a whole before the first call:
    the error then names every bad index and nothing has been sent. A bad item of a lazy source is
    the exception of that index's result, or the first error of a fail-fast batch.

    Attributes:
        problems: what is wrong, by index of the request.
    """

    def __init__(self, problems: Mapping[int, str]) -> None:
        # The argument is kept as it is, so that the error survives pickling.
        super().__init__(problems)
        self.problems: dict[int, str] = dict(problems)

    def __str__(self) -> str:
        indexes_by_problem: defaultdict[str, list[int]] = defaultdict(list)
        for index, problem in self.problems.items():
            indexes_by_problem[problem].append(index)
        lines = [
            f"{'request' if len(indexes) == 1 else 'requests'} {_ranges(indexes)}: {problem}"
            for problem, indexes in indexes_by_problem.items()
        ]
        return "; ".join(lines)


class CallCancelledError(Exception):
    """A call, or a source, ended in a cancellation that its batch had not asked for.

    For instance because the call awaited a future that somebody else cancelled. It is an error of
    that call alone: the exception of its result, or the first error of a fail-fast batch. Of a
    source it is what ends the batch. The original ``CancelledError`` is its ``__cause__``.
    """


def cancelled_unasked(what: str, cancellation: BaseException | None = None) -> CallCancelledError:
    """The error that stands for a cancellation nobody has asked for."""
    error = CallCancelledError(f"{what} ended in a cancellation that the batch had not asked for")
    error.__cause__ = cancellation
    return error


class BatchAbortedError(RuntimeError):
    """The event loop or trio run that carried a batch was shut down before the batch had ended.

    Raised by the batch's iterator, after every call has been cancelled, to a consumer that was
    not cancelled itself.
    """


class RouterHostClosedError(RuntimeError):
    """The asyncio loop on which trio has a Router's calls made has been closed.

    A call gets it that is made on a host whose ``async with`` block has been left (or on a loop of
    trio-asyncio that was closed), or that was running when that happened.
    """

    def __init__(self) -> None:
        super().__init__(
            "the host of the Router has been closed: make calls inside its async with block"
        )


def _ranges(indexes: Iterable[int]) -> str:
    """``[0, 1, 2, 7]`` as ``"0-2, 7"``: every index is named, a long list stays readable."""
    spans: list[list[int]] = []
    for index in sorted(indexes):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
