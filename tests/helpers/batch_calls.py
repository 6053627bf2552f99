"""Calls of a batch that a test lets go one by one."""

from __future__ import annotations

from typing import Any

import anyio

from helpers.hosts import settle


class Gate:
    """Calls that wait until the test lets them go, one by one, in the order that it chooses."""

    def __init__(self) -> None:
        self.waiting: dict[Any, anyio.Event] = {}
        self.errors: dict[Any, BaseException] = {}
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []

    async def call(self, item: Any) -> Any:
        event = self.waiting[item] = anyio.Event()
        try:
            await event.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(item)
            raise
        finally:
            self.waiting.pop(item, None)
            self.ended.append(item)
        if item in self.errors:
            raise self.errors[item]
        return item

    async def let_go(self, *items: Any) -> None:
        for item in items:
            self.waiting[item].set()
            await settle()


async def double(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * item
