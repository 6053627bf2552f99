"""Counts of the demo server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from .recording import digest

RequestEnd = Literal["finished", "disconnected"]
_MOST_KEYS: Final = 1000  # a limit, so that a client that invents keys does not fill the memory


@dataclass(frozen=True)
class DemoModelStats:
    """Counts of requests. ``accepted == finished + disconnected + in_flight``, at any moment.

    Attributes:
        accepted: valid requests, including those answered with a fault.
        finished: requests that the server has completed or failed on purpose. A request is counted
            before the rest of its answer is written to the socket. So a client that has the whole
            answer finds it counted.
        disconnected: requests whose client closed the connection before the answer was complete.
        in_flight: requests that the server is working on now.
        max_in_flight: the most requests in flight at any moment.
        faults: number of requests with each kind of fault: those of the settings (for ``away``,
            the number of requests that were cut off), ``over_capacity`` (answered 429) and
            ``shutdown`` (cut off because the server stopped). All of them are in ``finished``,
            except ``hang``: it is counted here when it begins, and ends as ``disconnected`` or by
            the server's shutdown.
        prompt_tokens: prompt tokens of the requests whose answer was sent as a whole.
        completion_tokens: tokens of these answers.
        last_finished_at: time of the last request in ``finished``, in seconds since the epoch
            (``time.time``); None: there was none.
        last_disconnected_at: time of the last request in ``disconnected``, likewise.
    """

    accepted: int
    finished: int
    disconnected: int
    in_flight: int
    max_in_flight: int
    faults: Mapping[str, int]
    prompt_tokens: int = field(default=0, kw_only=True)
    completion_tokens: int = field(default=0, kw_only=True)
    # Times are not compared: statistics with the same counts are equal.
    last_finished_at: float | None = field(default=None, kw_only=True, compare=False)
    last_disconnected_at: float | None = field(default=None, kw_only=True, compare=False)


@dataclass(frozen=True)
class DemoServerStats(DemoModelStats):
    """Counts of a demo server, in total and for each model and key.

    Attributes:
        rejected: invalid chat completions (400, 404, 413). They are not in ``accepted``.
        open_connections: sockets that the server sees open now, including the one that asks for
            ``/stats``.
        models: the counts of every model, by its name.
        keys: the counts of the first 1,000 API keys, by their :func:`digest`; :meth:`of_key` looks
            one up.
    """

    rejected: int
    open_connections: int
    models: Mapping[str, DemoModelStats]
    keys: Mapping[str, DemoModelStats] = field(default_factory=dict[str, DemoModelStats])

    def of_key(self, key: str) -> DemoModelStats:
        """Return the counts of the requests with an API key; all 0 if there were none."""
        return self.keys.get(digest(key)) or DemoModelStats(0, 0, 0, 0, 0, {})

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a dictionary for ``json.dumps``."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DemoServerStats:
        """Read the answer of ``/stats``."""
        fields: dict[str, Any] = dict(value)
        for what in ("models", "keys"):
            fields[what] = {name: DemoModelStats(**counts) for name, counts in fields[what].items()}
        return DemoServerStats(**fields)


@dataclass
class _Counts:
    """Counts of one model, of one key, or of all requests."""

    accepted: int = 0
    finished: int = 0
    disconnected: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_finished_at: float | None = None
    last_disconnected_at: float | None = None

    def begin(self) -> None:
        self.accepted += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, how: RequestEnd) -> None:
        self.in_flight -= 1
        if how == "finished":
            self.finished += 1
            self.last_finished_at = time.time()
        else:
            self.disconnected += 1
            self.last_disconnected_at = time.time()

    def refuse(self) -> None:
        """Begin and end a request at once. It does not increase ``max_in_flight``."""
        self.accepted += 1
        self.finished += 1
        self.last_finished_at = time.time()

    def reset(self) -> None:
        self.accepted = self.max_in_flight = self.in_flight
        self.finished = self.disconnected = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.last_finished_at = self.last_disconnected_at = None
        self.faults.clear()


class Ledger:
    """Counts requests, and wakes tasks that wait for a number of requests.

    A ``key`` is the :func:`digest` of an API key, or None if a request has no key.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self._total = _Counts()
        self._by_model = {model: _Counts() for model in models}
        self._by_key: dict[str, _Counts] = {}  # by their digests
        self._waiters: dict[asyncio.Future[None], Callable[[Ledger], bool]] = {}
        self.rejected = 0

    @property
    def in_flight(self) -> int:
        return self._total.in_flight

    @property
    def finished(self) -> int:
        return self._total.finished

    def begin(self, model: str, key: str | None) -> None:
        for counts in self._counts_of(model, key):
            counts.begin()
        self._wake()

    def end(self, model: str, key: str | None, how: RequestEnd) -> None:
        for counts in self._counts_of(model, key):
            counts.end(how)
        self._wake()

    def count_tokens(self, model: str, key: str | None, prompt: int, completion: int) -> None:
        for counts in self._counts_of(model, key):
            counts.prompt_tokens += prompt
            counts.completion_tokens += completion

    def refuse(self, model: str, key: str | None, fault: str) -> None:
        for counts in self._counts_of(model, key):
            counts.refuse()
        self.count_fault(model, key, fault)
        self._wake()

    def count_fault(self, model: str, key: str | None, kind: str) -> None:
        for counts in self._counts_of(model, key):
            counts.faults[kind] += 1

    def _counts_of(self, model: str, key: str | None) -> list[_Counts]:
        found = [self._total, self._by_model[model]]
        if key is not None and (key in self._by_key or len(self._by_key) < _MOST_KEYS):
            found.append(self._by_key.setdefault(key, _Counts()))
        return found

    def reset(self) -> None:
        """Restart all counts. ``accepted`` starts at the number of requests in flight."""
        self.rejected = 0
        for counts in (self._total, *self._by_model.values(), *self._by_key.values()):
            counts.reset()
        # Keep the counts of keys with requests in flight: they count how these end.
        self._by_key = {key: counts for key, counts in self._by_key.items() if counts.in_flight}

    def snapshot(self, open_connections: int) -> DemoServerStats:
        return DemoServerStats(
            **_as_fields(self._total),
            rejected=self.rejected,
            open_connections=open_connections,
            models={
                model: DemoModelStats(**_as_fields(counts))
                for model, counts in self._by_model.items()
            },
            keys={
                key: DemoModelStats(**_as_fields(counts)) for key, counts in self._by_key.items()
            },
        )

    async def wait_until(self, reached: Callable[[Ledger], bool]) -> None:
        """Wait until ``reached`` returns True for the counts."""
        if reached(self):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = reached
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def fail_waiters(self, reason: str) -> None:
        """Raise ``RuntimeError`` in all waiting tasks: their counts can no longer be reached."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(RuntimeError(reason))

    def _wake(self) -> None:
        for waiter, reached in self._waiters.items():
            if not waiter.done() and reached(self):
                waiter.set_result(None)


def _as_fields(counts: _Counts) -> dict[str, Any]:
    return {**vars(counts), "faults": dict(counts.faults)}
