"""Orders in which the requests of a batch begin."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, cast

from parallel_core.types import RouterParallelRequest

from .request_size import request_size

MOST_BYTES = 64 << 20
"""Bytes of requests that are drawn ahead, about. A thousand requests of 64 KiB, some 16,000 tokens,
fit in, so only larger ones are drawn less far ahead."""


class QueuedRequest(Protocol):
    """A request that waits for a slot."""

    index: int
    item: Any
    key: Hashable


def fair_key(fair_by: object) -> Callable[[Any], Hashable]:
    """Return the function that returns the key of a request.

    Raises:
        TypeError, ValueError: ``fair_by`` is neither ``"model"`` nor a function.
    """
    if fair_by == "model":
        return _model_of
    if isinstance(fair_by, str):
        raise ValueError(  # noqa: TRY004 - a string has the right type
            f"fair_by must be 'model' or a function of the request or item, not {fair_by!r}"
        )
    if not callable(fair_by):
        raise TypeError(
            "fair_by must be 'model' or a function of the request or item, not "
            f"{type(fair_by).__qualname__}"
        )
    if inspect.iscoroutinefunction(fair_by):  # each coroutine would be a different key
        raise TypeError("fair_by must be 'model' or a plain function, not an async function")
    return cast("Callable[[Any], Hashable]", fair_by)


def _model_of(item: object) -> Hashable:
    """Return the model of a request; None for an item that is no request: it is refused later."""
    model: object = None
    if isinstance(item, RouterParallelRequest):
        model = item.model
    elif isinstance(item, Mapping):
        model = cast("Mapping[str, object]", item).get("model")
    return model if isinstance(model, str) else None


class FirstInFirstOut:
    """The order of the source, except that requests of a held model wait aside.

    It draws ahead only the next request, and as many as wait aside.

    Args:
        most_held: highest number of requests that wait aside; beyond it, all others wait too.

    Attributes:
        allowed: returns the number of calls of a model that another control allows in flight. Call
            :meth:`make_room` when it grows although no call of the model has ended.
    """

    def __init__(self, most_held: int = 0) -> None:
        self.allowed: Callable[[Hashable], float] | None = None
        self.is_full = False
        self.uncounted = self._most_held = most_held
        self._waiting: deque[Any] = deque()
        self._held: dict[Hashable, deque[Any]] = {}  # requests that wait aside, by model
        self._released: deque[Hashable] = deque()  # models whose held requests may begin
        self._held_count = 0
        self._running: dict[Hashable, int] = {}

    @property
    def look_ahead(self) -> int:
        return min(self._held_count, self._most_held)

    def __len__(self) -> int:
        return len(self._waiting) + self._held_count

    def push(self, entry: QueuedRequest) -> None:
        entry.key = _model_of(entry.item)
        self._waiting.append(entry)

    def pop(self, limit: int) -> Any:
        while self._released:
            model = self._released[0]
            held = self._held.get(model)
            if held and self._may_begin(model):
                self._held_count -= 1
                return self._begins(held.popleft())
            self._released.popleft()
            if not held:
                self._held.pop(model, None)
        while self._waiting:
            entry = self._waiting.popleft()
            # Requests that wait aside are older.
            if not self._held.get(entry.key) and self._may_begin(entry.key):
                return self._begins(entry)
            self._held.setdefault(entry.key, deque()).append(entry)
            self._held_count += 1
            if self._may_begin(entry.key):
                self._released.append(entry.key)
                return self.pop(limit)
        return None

    def resume(self, entry: QueuedRequest, limit: int) -> bool:
        may_begin = self._may_begin(entry.key)
        if may_begin:
            self._begins(entry)
        return may_begin

    def _may_begin(self, model: Hashable) -> bool:
        return self.allowed is None or self._running.get(model, 0) < self.allowed(model)

    def _begins(self, entry: Any) -> Any:
        self._running[entry.key] = self._running.get(entry.key, 0) + 1
        return entry

    def ended(self, entry: QueuedRequest) -> None:
        running = self._running.pop(entry.key) - 1
        if running:
            self._running[entry.key] = running
        self.make_room(entry.key)

    def make_room(self, key: Hashable) -> bool:
        """Let held requests of this model begin. Return True if there are any."""
        held = bool(self._held.get(key))
        if held and key not in self._released:
            self._released.append(key)
        return held

    def source_ended(self) -> None:
        pass

    def skip_waits(self) -> None:
        """Let all requests begin, without regard to :attr:`allowed`."""
        self.allowed = None
        self._released.extend(self._held)


class _Key:
    """The waiting requests of one key, and the number of its running calls."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Any, int]] = deque()  # requests, with their sizes
        self.running = 0


class FairQueue:
    """A queue in which keys take turns: deficit round robin with an equal cost for each request.

    With equal costs a key spends its deficit in each of its turns, so the algorithm reduces to a
    ring of the keys with waiting requests. A key that has as many calls in flight as it may have
    leaves the ring until one of them ends, so the time of a turn does not depend on the number of
    keys.

    Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", SIGCOMM
    1995.

    Args:
        key: returns the key of a request.
        concurrency_per_key: highest number of calls of one key in flight. None: half of the limit,
            rounded up, so that a key whose calls hang leaves room for the others; the whole limit
            for the last key.
        look_ahead: highest number of requests that wait here, and of further ones that wait to be
            sent again.
        most_bytes: no request is drawn while those that wait here have this size.

    Attributes:
        is_full: True while they have it.
        allowed: returns the number of calls of a key that another control allows in flight. Call
            :meth:`make_room` when it grows although no call of the key has ended.
    """

    def __init__(
        self,
        key: Callable[[Any], Hashable],
        concurrency_per_key: int | None,
        look_ahead: int,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.look_ahead = self.uncounted = look_ahead
        self.is_full = False
        self._most_bytes = most_bytes
        self._bytes = 0  # of the requests that wait
        self.allowed: Callable[[Hashable], float] | None = None
        self._key_function = key
        self._running: dict[int, Hashable] = {}  # the key of each running call, by index
        self._concurrency_per_key = concurrency_per_key
        self._keys: dict[Hashable, _Key] = {}  # keys with waiting or running requests
        self._ring: deque[Hashable] = deque()  # keys with waiting requests, and room for them
        self._full: dict[Hashable, None] = {}  # keys with waiting requests, and no room
        self._more_may_come = True
        self._most = 0  # calls per key with which `_full` was determined
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, entry: QueuedRequest) -> None:
        """Queue a request until the turn of its key.

        Raises:
            TypeError: its key is not hashable.
            Exception: the key function raised it.
        """
        entry.key = name = self._key_function(entry.item)
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key()
        if not key.waiting:
            self._ring.append(name)
        size = request_size(entry.item)
        key.waiting.append((entry, size))
        self._waiting += 1
        self._count_bytes(size)

    def pop(self, limit: int) -> Any:
        """Return the next request that may begin, and count it as running.

        Return None if every key with waiting requests has as many calls in flight as it may have.
        ``limit``: calls of the batch that may be in flight.

        Raises:
            TypeError: the hash of a key has changed.
        """
        self._recheck(limit)
        while self._ring:
            name = self._ring.popleft()
            key = self._known(name)
            if not self._has_room(name, key):
                self._full[name] = None
                continue
            key.running += 1
            self._waiting -= 1
            entry, size = key.waiting.popleft()
            self._count_bytes(-size)
            if key.waiting:
                self._ring.append(name)
            self._running[entry.index] = name
            return entry
        return None

    def _count_bytes(self, size: int) -> None:
        self._bytes += size
        self.is_full = self._bytes >= self._most_bytes

    def _known(self, name: Hashable) -> _Key:
        try:
            return self._keys[name]
        except KeyError:
            raise TypeError(
                f"fair_by returned a key of type {type(name).__qualname__} whose hash has changed "
                "since: use an immutable key, such as a string or a tuple of strings"
            ) from None

    def _has_room(self, name: Hashable, key: _Key) -> bool:
        return key.running < self._most and (
            self.allowed is None or key.running < self.allowed(name)
        )

    def resume(self, entry: QueuedRequest, limit: int) -> bool:
        """Count a request to be sent again as running, if its key has room."""
        self._recheck(limit)
        key = self._keys.get(entry.key)
        if key is None:
            key = self._keys[entry.key] = _Key()
        if not self._has_room(entry.key, key):
            return False
        key.running += 1
        self._running[entry.index] = entry.key
        return True

    def ended(self, entry: QueuedRequest) -> None:
        """Note that a call of this request has ended: its key has room for another.

        Raises:
            TypeError: the hash of the key has changed.
        """
        name = self._running.pop(entry.index)
        key = self._known(name)
        key.running -= 1
        self.make_room(name)
        if not key.waiting and not key.running:
            del self._keys[name]

    def key_of(self, index: int) -> Hashable:
        """Return the key of a request that is in flight."""
        return self._running[index]

    def make_room(self, key: Hashable) -> bool:
        """Let a key without room take turns again. Return True if one of its requests waits."""
        if key not in self._full:
            return False
        del self._full[key]
        self._ring.append(key)
        return True

    def skip_waits(self) -> None:
        """Stop applying :attr:`allowed`."""
        self.allowed = None
        self._ring.extend(self._full)
        self._full.clear()

    def source_ended(self) -> None:
        """Note that no request will be added: a last key need not leave room for others."""
        self._more_may_come = False

    def _recheck(self, limit: int) -> None:
        """Return keys without room to the ring if keys may have more calls in flight now."""
        most = self._concurrency_per_key
        if most is None:
            alone = len(self._keys) < 2 and not self._more_may_come
            most = limit if alone else -(-limit // 2)
        if most > self._most:
            self._ring.extend(self._full)
            self._full.clear()
        self._most = most
