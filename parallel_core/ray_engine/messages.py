"""Messages between the driver and its workers, and how often a worker sends one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, TypeAlias

# A message to a worker and one back cost the driver 1 ms and the worker about as much. At this
# interval that is 1 % of a core. A worker with a Router makes 25 calls in this time.
INTERVAL = 0.1  # seconds between two messages of a worker
_MESSAGES_PER_SECOND = 400.0  # that one driver can take in addition to its other work
_CALLS_PER_SECOND = 300.0  # maximum of one worker with a Router
BETWEEN_BEATS = 10.0
"""Seconds after which a worker without news sends an empty message."""


class Kind(IntEnum):
    """Kind of a worker's message. Each message is a kind, a number and bytes."""

    READY = 0  # the Router is made; the process id and the name of the machine
    REFUSED = 1  # no Router could be made; the packed exception
    OUTCOME = 2  # the number and the packed outcome of a call
    CANCELLED = 3  # the number of a call that was cancelled, or given back before it began
    DIRECT = 4  # the number of a call, and its packed DirectCounts; before its end, if it has any


Message: TypeAlias = tuple[Kind, int, bytes]


class Given(NamedTuple):
    """A message to a worker.

    Attributes:
        calls: calls to make, each a number and packed arguments.
        cancelled: numbers of calls to cancel.
        recalled: numbers of calls to give back unless they have begun, because another worker can
            make them sooner.
    """

    calls: Sequence[tuple[int, bytes]] = ()
    cancelled: Sequence[int] = ()
    recalled: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """Pace at which a worker reports outcomes.

    A message costs the worker and the driver a part of the cost of a call, so many outcomes share a
    message.

    Attributes:
        every: minimum seconds between two messages, unless there are many outcomes.
        many: number of outcomes that are reported without waiting.
    """

    every: float
    many: int


def interval(workers: int) -> float:
    """Return the seconds between two messages of each worker, for a number of workers."""
    return max(INTERVAL, workers / _MESSAGES_PER_SECOND)


def largest_block(workers: int, concurrency: int) -> int:
    """Return how many calls may queue in a worker, so that it stays busy between two messages."""
    return min(concurrency, round(_CALLS_PER_SECOND * interval(workers)))


class WorkerHandle(Protocol):
    """A worker in another process."""

    def messages(self) -> AsyncIterator[list[Message]]:
        """Run the worker and yield its messages.

        Raises an exception if the worker is lost. The iterator ends after ``stop``.
        """
        ...

    def give(self, sequence: int, given: Given) -> None:
        """Send the worker calls and cancellations. Does not wait or raise."""
        ...

    def stop(self) -> None:
        """Make the worker cancel its calls and end. Does not wait or raise."""
        ...

    def kill(self) -> None:
        """Kill the worker's process, in any state. Does not wait or raise."""
        ...

    async def gone(self) -> None:
        """Wait until the worker's process has ended, for a few seconds at most. Does not raise."""
        ...


class WorkerSource(Protocol):
    """Source of new workers."""

    def spawn(self, concurrency: int, pace: Pace) -> WorkerHandle:
        """Begin to start a new worker and return its handle."""
        ...

    def why_none_starts(self) -> str:
        """Return the likely reason why no worker starts, and what to do."""
        ...
