"""What the demo server counts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from .recording import digest

RequestEnd = Literal["finished", "disconnected"]
_MOST_KEYS: Final = 1000  # a client that invents keys does not fill the memory


@dataclass(frozen=True)
class DemoModelStats:
    """Counts of requests. ``accepted == finished + disconnected + in_flight``, at any moment.

    Attributes:
        accepted: requests that were understood, those answered with a fault included.
        finished: requests that the server is done with: what is left of the answer goes to the
            socket next, so that a client that has it all finds itself counted; or the server has
            failed the request on purpose.
        disconnected: requests whose client closed the connection before the answer was complete.
        in_flight: requests that the server is busy with right now.
        max_in_flight: the most requests in flight at any one moment.
        faults: how many requests met with each kind of fault: those of the settings (of ``away``:
            how many it has cut off), as well as
            ``over_capacity`` (answered 429) and ``shutdown`` (cut off because the server stopped).
            All of these are in ``finished``, but for ``hang``: it is counted here when it begins,
            and ends as ``disconnected`` or by the server's shutdown.
        prompt_tokens: tokens of the prompts of those requests whose answer was sent as a whole.
        completion_tokens: tokens of these answers.
        last_finished_at: when the last of ``finished`` was, in seconds since the epoch
            (``time.time``); None: there was none.
        last_disconnected_at: the same of ``disconnected``.
    """

    accepted: int
    finished: int
    disconnected: int
    in_flight: int
    max_in_flight: int
    faults: Mapping[str, int]
    prompt_tokens: int = field(default=0, kw_only=True)
    completion_tokens: int = field(default=0, kw_only=True)
    # When is no count: two servers that have counted the same are equal.
    last_finished_at: float | None = field(default=None, kw_only=True, compare=False)
    last_disconnected_at: float | None = field(default=None, kw_only=True, compare=False)


@dataclass(frozen=True)
class DemoServerStats(DemoModelStats):
    """What a demo server has counted, over all models and for each.

    Attributes:
        rejected: chat completions that were not understood (400, 404, 413). Not in ``accepted``.
        open_connections: sockets open right now as the server sees it, the one that asks for
            ``/stats`` included.
        models: the counts of every model, by its name.
        keys: the counts of the first 1,000 API keys, by what :func:`digest` makes of them;
            :meth:`of_key` looks one up.
    """

    rejected: int
    open_connections: int
    models: Mapping[str, DemoModelStats]
    keys: Mapping[str, DemoModelStats] = field(default_factory=dict[str, DemoModelStats])

    def of_key(self, key: str) -> DemoModelStats:
        """The counts of the requests with an API key; all 0 if there was none."""
        return self.keys.get(digest(key)) or DemoModelStats(0, 0, 0, 0, 0, {})

    def to_json(self) -> dict[str, Any]:
        """The same as a dictionary that ``json.dumps`` takes."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DemoServerStats:
        """Read what ``/stats`` answers."""
        fields: dict[str, Any] = dict(value)
        for what in ("models", "keys"):
            fields[what] = {name: DemoModelStats(**of) for name, of in fields[what].items()}
        return DemoServerStats(**fields)


@dataclass
class _Counts:
    """The counts of one model, of one key, or of all."""

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
        """Begin and end a request at once: it does not raise ``max_in_flight``."""
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
    """Counts requests, and wakes those who wait for a number of requests.

    A ``key`` is what :func:`digest` makes of an API key; None where a request has none.
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
        """Count from nothing again. What is in flight stays, as the first of the accepted."""
        self.rejected = 0
        for counts in (self._total, *self._by_model.values(), *self._by_key.values()):
            counts.reset()
        # One that has requests in flight is to count their ends.
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
            keys={key: DemoModelStats(**_as_fields(of)) for key, of in self._by_key.items()},
        )

    async def wait_until(self, reached: Callable[[Ledger], bool]) -> None:
        """Wait until ``reached`` holds for the numbers of requests."""
        if reached(self):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = reached
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def fail_waiters(self, reason: str) -> None:
        """What they wait for cannot happen any more."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(RuntimeError(reason))

    def _wake(self) -> None:
        for waiter, reached in self._waiters.items():
            if not waiter.done() and reached(self):
                waiter.set_result(None)


def _as_fields(counts: _Counts) -> dict[str, Any]:
    return {**vars(counts), "faults": dict(counts.faults)}
