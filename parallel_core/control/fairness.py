"""The order in which the requests of a batch begin."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, cast

from parallel_core.types import RouterParallelRequest


class Waiting(Protocol):
    """A request that waits for a slot."""

    index: int
    item: Any
    key: Hashable


def fair_key(fair_by: object) -> Callable[[Any], Hashable]:
    """The function that gives the key of a request.

    Raises:
        TypeError, ValueError: ``fair_by`` is neither ``"model"`` nor a function.
    """
    if fair_by == "model":
        return _model_of
    if isinstance(fair_by, str):
        raise ValueError(  # noqa: TRY004 - another string would do
            f"fair_by must be 'model' or a function of the request, not {fair_by!r}"
        )
    if not callable(fair_by):
        raise TypeError(
            "fair_by must be 'model' or a function of the request, not "
            f"{type(fair_by).__qualname__}"
        )
    if inspect.iscoroutinefunction(fair_by):  # each coroutine would be a key of its own
        raise TypeError("fair_by must be 'model' or a plain function, not an async function")
    return cast("Callable[[Any], Hashable]", fair_by)


def _model_of(item: object) -> Hashable:
    """The model of a request; None for what is no request, and will be refused as such."""
    model: object = None
    if isinstance(item, RouterParallelRequest):
        model = item.model
    elif isinstance(item, Mapping):
        model = cast("Mapping[str, object]", item).get("model")
    return model if isinstance(model, str) else None


class FirstInFirstOut:
    """The order of the source; requests of a model that is held back are passed over.

    Nothing is drawn ahead but the next request, and as many as are passed over.

    Args:
        most_held: requests that may be passed over at a time; with more of them, others wait too.

    Attributes:
        allowed: calls of a model that something else allows to be in flight. Where this grows
            without a call of the model having ended, :meth:`make_room` is to be called.
    """

    def __init__(self, most_held: int = 0) -> None:
        self.allowed: Callable[[Hashable], float] | None = None
        self.uncounted = self._most_held = most_held
        self._waiting: deque[Any] = deque()
        self._held: dict[Hashable, deque[Any]] = {}  # by model, passed over
        self._released: deque[Hashable] = deque()  # models whose held requests may begin
        self._held_count = 0
        self._running: dict[Hashable, int] = {}

    @property
    def look_ahead(self) -> int:
        return min(self._held_count, self._most_held)

    def __len__(self) -> int:
        return len(self._waiting) + self._held_count

    def push(self, entry: Waiting) -> None:
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
            # Those that were passed over are older.
            if not self._held.get(entry.key) and self._may_begin(entry.key):
                return self._begins(entry)
            self._held.setdefault(entry.key, deque()).append(entry)
            self._held_count += 1
            if self._may_begin(entry.key):
                self._released.append(entry.key)
                return self.pop(limit)
        return None

    def resume(self, entry: Waiting, limit: int) -> bool:
        may_begin = self._may_begin(entry.key)
        if may_begin:
            self._begins(entry)
        return may_begin

    def _may_begin(self, model: Hashable) -> bool:
        return self.allowed is None or self._running.get(model, 0) < self.allowed(model)

    def _begins(self, entry: Any) -> Any:
        self._running[entry.key] = self._running.get(entry.key, 0) + 1
        return entry

    def ended(self, entry: Waiting) -> None:
        running = self._running.pop(entry.key) - 1
        if running:
            self._running[entry.key] = running
        self.make_room(entry.key)

    def make_room(self, key: Hashable) -> bool:
        """Let requests of this model begin that were passed over. Return True if there are some."""
        held = bool(self._held.get(key))
        if held and key not in self._released:
            self._released.append(key)
        return held

    def source_ended(self) -> None:
        pass

    def skip_waits(self) -> None:
        """Let all begin, whatever was :attr:`allowed`."""
        self.allowed = None
        self._released.extend(self._held)


class _Key:
    """One key: what waits for its turn, and how many of its calls run."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.running = 0


class FairQueue:
    """Keys take turns: deficit round robin, where each request costs as much as any other.

    With equal costs the deficit of a key is spent in each of its turns, and what is left of the
    algorithm is the ring of keys that have something waiting. Keys whose calls are as many as they
    may be are taken out of the ring until one has ended, so that a turn takes the same time however
    many keys there are.

    Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", SIGCOMM
    1995.

    Args:
        key: gives the key of a request.
        concurrency_per_key: calls of one key at most. None: half of the limit, rounded up, so that
            one whose calls hang leaves room for the others; all of it for the last key.
        look_ahead: requests that may wait here at most, and as many more that are to be sent again.

    Attributes:
        allowed: calls of a key that something else allows to be in flight. Where this grows without
            a call of the key having ended, :meth:`make_room` is to be called.
    """

    def __init__(
        self, key: Callable[[Any], Hashable], concurrency_per_key: int | None, look_ahead: int
    ) -> None:
        self.look_ahead = self.uncounted = look_ahead
        self.allowed: Callable[[Hashable], float] | None = None
        self._key_function = key
        self._running: dict[int, Hashable] = {}  # the key of each running call, by index
        self._concurrency_per_key = concurrency_per_key
        self._keys: dict[Hashable, _Key] = {}  # that have something waiting or running
        self._ring: deque[Hashable] = deque()  # that have something waiting, and room for it
        self._full: dict[Hashable, None] = {}  # that have something waiting, and no room
        self._more_may_come = True
        self._most = 0  # what `_full` was found out with
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, entry: Waiting) -> None:
        """Let a request wait for the turn of its key.

        Raises:
            TypeError: its key is not hashable.
            Exception: what the key function raises.
        """
        entry.key = name = self._key_function(entry.item)
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key()
        if not key.waiting:
            self._ring.append(name)
        key.waiting.append(entry)
        self._waiting += 1

    def pop(self, limit: int) -> Any:
        """The next request that may begin, where ``limit`` calls of the batch may be in flight; it
        counts as running then. None: every key that has one waiting runs as many as it may.

        Raises:
            TypeError: a key has another hash than it had.
        """
        self._look_again(limit)
        while self._ring:
            name = self._ring.popleft()
            key = self._known(name)
            if not self._has_room(name, key):
                self._full[name] = None
                continue
            key.running += 1
            self._waiting -= 1
            entry = key.waiting.popleft()
            if key.waiting:
                self._ring.append(name)
            self._running[entry.index] = name
            return entry
        return None

    def _known(self, name: Hashable) -> _Key:
        try:
            return self._keys[name]
        except KeyError:
            raise TypeError(
                f"fair_by gave a key (of type {type(name).__qualname__}) whose hash has changed "
                "since: a key must stay what it is, as a string or a tuple of strings does"
            ) from None

    def _has_room(self, name: Hashable, key: _Key) -> bool:
        return key.running < self._most and (
            self.allowed is None or key.running < self.allowed(name)
        )

    def resume(self, entry: Waiting, limit: int) -> bool:
        """Count a request that is to be sent again as running, if its key has room."""
        self._look_again(limit)
        key = self._keys.get(entry.key)
        if key is None:
            key = self._keys[entry.key] = _Key()
        if not self._has_room(entry.key, key):
            return False
        key.running += 1
        self._running[entry.index] = entry.key
        return True

    def ended(self, entry: Waiting) -> None:
        """A call of this request has ended: its key has room for another.

        Raises:
            TypeError: the key has another hash than it had.
        """
        name = self._running.pop(entry.index)
        key = self._known(name)
        key.running -= 1
        self.make_room(name)
        if not key.waiting and not key.running:
            del self._keys[name]

    def key_of(self, index: int) -> Hashable:
        """The key of a request that is in flight."""
        return self._running[index]

    def make_room(self, key: Hashable) -> bool:
        """More calls of this key may be in flight than when it had no room. Return True if one is
        waiting."""
        if key not in self._full:
            return False
        del self._full[key]
        self._ring.append(key)
        return True

    def skip_waits(self) -> None:
        """What was :attr:`allowed` does not count any more."""
        self.allowed = None
        self._ring.extend(self._full)
        self._full.clear()

    def source_ended(self) -> None:
        """What waits is all there will be: a key that is alone need not leave room for another."""
        self._more_may_come = False

    def _look_again(self, limit: int) -> None:
        """Where keys may run more calls than before, those that had no room take turns again."""
        most = self._concurrency_per_key
        if most is None:
            alone = len(self._keys) < 2 and not self._more_may_come
            most = limit if alone else -(-limit // 2)
        if most > self._most:
            self._ring.extend(self._full)
            self._full.clear()
        self._most = most
