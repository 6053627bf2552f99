"""Calls in trio leave the process as it was: its threads, its kind of loop, its modules."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import trio
from litellm import close_litellm_async_clients

from helpers.trio_application import ask, check_batch, router_of_the_demo, threads

router = router_of_the_demo()


async def check() -> None:
    await check_batch(router)


async def check_thread() -> None:
    await check_batch(router, router_host="thread")


async def plain(kind_of_loop: type[asyncio.AbstractEventLoop]) -> None:
    loop = asyncio.get_running_loop()
    assert type(loop) is kind_of_loop, loop
    response = await router.acompletion(**ask(reply="plain"))
    assert "plain" in response.choices[0].message.content
    await check()
    close: Any = close_litellm_async_clients  # on a loop of one's own that is one's own task
    await close()


def main() -> None:
    before = set(threads())
    loop_before = asyncio.new_event_loop()
    loop_before.close()
    trio.run(check)
    trio.run(check_thread)
    assert set(threads()) == before, threads()
    assert "trio_asyncio" not in sys.modules
    asyncio.run(plain(type(loop_before)))
    trio.run(check)
    print("fine")


if __name__ == "__main__":
    main()
