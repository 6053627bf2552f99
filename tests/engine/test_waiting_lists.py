"""Semaphore and waiters: whoever comes first is served first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from helpers.hosts import Host, settle
from parallel_core.engine.waiting import Semaphore, Waiters


def new_event() -> anyio.Event:
    return anyio.Event()


class Crowd:
    """Tasks that wait, each in a scope of its own."""

    def __init__(self, wait: Callable[[], Awaitable[object]]) -> None:
        self.wait = wait
        self.gone_on: list[int] = []
        self.scopes: list[anyio.CancelScope] = []

    async def come(self, tasks: anyio.abc.TaskGroup, number: int) -> None:
        for _ in range(number):
            self.scopes.append(anyio.CancelScope())
            tasks.start_soon(self._one, len(self.scopes) - 1)
            await settle()

    async def _one(self, index: int) -> None:
        with self.scopes[index]:
            await self.wait()
            self.gone_on.append(index)


def test_places_go_to_those_who_came_first(either_library: Host) -> None:
    async def main() -> None:
        places = Semaphore(2, new_event)
        crowd = Crowd(places.acquire)
        async with anyio.create_task_group() as tasks:
            await crowd.come(tasks, 5)
            assert crowd.gone_on == [0, 1]
            for index in (2, 3):
                places.release()
                await settle()
                assert crowd.gone_on[-1] == index
            assert len(crowd.gone_on) == 4
            places.release()
        assert crowd.gone_on == [0, 1, 2, 3, 4]
        places.release()
        places.release()
        async with anyio.create_task_group() as tasks:
            await crowd.come(tasks, 3)
            assert len(crowd.gone_on) == 7  # two were free, and no more
            places.release()

    either_library.run(main)


def test_a_place_of_somebody_who_leaves_goes_to_the_next(either_library: Host) -> None:
    async def main() -> None:
        places = Semaphore(0, new_event)
        crowd = Crowd(places.acquire)
        async with anyio.create_task_group() as tasks:
            await crowd.come(tasks, 3)
            crowd.scopes[0].cancel()
            await settle()
            places.release()
            await settle()
            assert crowd.gone_on == [1]
            places.release()
        assert crowd.gone_on == [1, 2]

    either_library.run(main)


class Cancelled(BaseException):
    """What an event raises that was set and cancelled at once."""


class Event:
    """An event that is given what its ``wait`` does."""

    def __init__(self, during: Callable[[], None]) -> None:
        self.during = during
        self.is_set = False

    def set(self) -> None:
        self.is_set = True

    async def wait(self) -> None:
        self.during()
        raise Cancelled


def test_a_place_that_was_given_to_somebody_who_leaves_is_given_back(either_library: Host) -> None:
    async def main() -> None:
        places = Semaphore(0, lambda: Event(lambda: places.release()))
        with pytest.raises(Cancelled):
            await places.acquire()
        await places.acquire()  # it is free again

        waiters = Waiters(lambda: Event(lambda: waiters.wake_one()))
        following = Event(lambda: None)

        def both() -> None:
            waiters.events.append(following)
            waiters.wake_one()
            assert not following.is_set

        waiters = Waiters(lambda: Event(both))
        with pytest.raises(Cancelled):
            await waiters.wait()
        assert following.is_set
        assert not waiters.events

    either_library.run(main)


def test_waiters_are_woken_in_order_or_all_at_once(either_library: Host) -> None:
    async def main() -> None:
        waiters = Waiters(new_event)
        waiters.wake_one()  # nobody: it is not kept
        waiters.wake_all()
        crowd = Crowd(waiters.wait)
        async with anyio.create_task_group() as tasks:
            await crowd.come(tasks, 5)
            assert crowd.gone_on == []
            waiters.wake_one()
            await settle()
            assert crowd.gone_on == [0]
            crowd.scopes[1].cancel()
            await settle()
            waiters.wake_one()
            await settle()
            assert crowd.gone_on == [0, 2]
            waiters.wake_all()
            await settle()
            assert sorted(crowd.gone_on) == [0, 2, 3, 4]
        assert not waiters.events

    either_library.run(main)
