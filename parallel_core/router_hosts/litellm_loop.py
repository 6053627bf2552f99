"""What litellm keeps on an event loop, and how to leave nothing of it on a loop that we own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger("parallel_core")

CALLBACKS_TIMEOUT = 5.0  # seconds

# The workers of our loops, each used by one loop at a time. litellm flushes each of its workers at
# the end of the program and never forgets one, so those of loops that have ended are used again.
_workers: dict[asyncio.AbstractEventLoop, Any] = {}
_idle_workers: list[Any] = []


def enter_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Give a loop, which is ours, a worker of its own for litellm's callbacks.

    litellm has one worker for the process, and moves it to whichever loop makes a call. The worker
    task of the loop before is dropped while it waits ("Task was destroyed but it is pending!"), and
    callbacks that run there are begun a second time. Our loops leave that worker to the
    application's. :func:`finish_callbacks` must follow.
    """
    if "litellm" not in sys.modules:
        return
    try:
        module: Any = importlib.import_module("litellm.litellm_core_utils.logging_worker")
    except ImportError:  # a litellm that runs its callbacks in another way
        return
    _share(module.GLOBAL_LOGGING_WORKER)
    for known in list(_workers):
        if known.is_closed():  # it broke before anybody could leave it
            _workers.pop(known, None)
    try:
        worker = _idle_workers.pop()
    except IndexError:
        worker = module.LoggingWorker()
    _workers[loop] = worker


def _share(shared: Any) -> None:
    """Make the process-wide worker forward items from loops that have a worker of their own."""
    name = "ensure_initialized_and_enqueue"  # what litellm calls, wherever it has a callback
    if name in vars(shared):
        return
    enqueue = getattr(shared, name)

    def enqueue_by_loop(async_coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            worker = _workers.get(asyncio.get_running_loop())
        except RuntimeError:  # none is running
            worker = None
        if worker is None:
            enqueue(async_coroutine)
        else:
            getattr(worker, name)(async_coroutine)

    setattr(shared, name, enqueue_by_loop)


async def leave_this_loop() -> None:
    """Let litellm's callbacks finish and close its clients, on the running loop, which is ours.

    An application can wait for what litellm does on its own loop, and not on ours.
    """
    await finish_callbacks()
    await close_clients_of_this_loop()


async def finish_callbacks() -> None:
    """Wait for the callbacks that litellm has queued on the running loop, and end their worker."""
    loop = asyncio.get_running_loop()
    own = _workers.pop(loop, None)
    worker = own
    if worker is None:
        module: Any = sys.modules.get("litellm.litellm_core_utils.logging_worker")
        # On any other loop, flushing would take the queue away from the loop that works on it.
        if module is None or module.GLOBAL_LOGGING_WORKER._bound_loop is not loop:
            return
        worker = module.GLOBAL_LOGGING_WORKER
    try:
        async with asyncio.timeout(CALLBACKS_TIMEOUT):
            await worker.flush()
    except TimeoutError:
        logger.warning(
            "callbacks of litellm still run after %s s; their loop ends now", CALLBACKS_TIMEOUT
        )
    finally:
        await worker.stop()
        if own is not None:
            _idle_workers.append(own)


async def close_clients_of_this_loop() -> None:
    """Close the clients that litellm has cached for the running loop, and forget them.

    litellm keys its clients by loop and leaves them open until they expire, which a loop about to
    be closed does not live to see. Its own ``close_litellm_async_clients`` closes those of every
    loop, also of loops that are in use elsewhere. Forgetting matters as well: in litellm before
    1.110 the key is the ``id`` of the loop, which a later loop may get again.
    """
    litellm = sys.modules.get("litellm")
    if litellm is None:
        return
    cache = litellm.in_memory_llm_clients_cache
    key_ending = cache.update_cache_key_with_event_loop("")
    for key in [key for key in cache.cache_dict if str(key).endswith(key_ending)]:
        client: Any = cache.cache_dict.pop(key)
        cache.ttl_dict.pop(key, None)
        close = getattr(client, "aclose", None) or getattr(client, "close", None)
        if close is None:
            continue
        try:
            closing = close()
            if hasattr(closing, "__await__"):
                await closing
        except Exception as error:  # noqa: BLE001 - the others are to be closed all the same
            logger.warning("a client of litellm failed to close: %s", type(error).__qualname__)
