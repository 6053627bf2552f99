"""Clean up litellm's callbacks and clients on event loops that this package owns."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger("parallel_core")

CALLBACKS_TIMEOUT = 5.0  # seconds

# Workers for litellm's callbacks, each used by one of this package's loops at a time. litellm
# flushes each worker at the end of the program and never drops one, so the workers of ended loops
# are reused.
_workers: dict[asyncio.AbstractEventLoop, Any] = {}
_idle_workers: list[Any] = []


def enter_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Give a loop that this package owns a separate worker for litellm's callbacks.

    litellm has one worker for the process and moves it to each loop that makes a call. The worker
    task of the previous loop is then dropped while it waits ("Task was destroyed but it is
    pending!"), and callbacks that run there are started a second time. With separate workers, the
    worker of the process stays on the application's loop. Call :func:`finish_callbacks` later.
    """
    if "litellm" not in sys.modules:
        return
    try:
        module: Any = importlib.import_module("litellm.litellm_core_utils.logging_worker")
    except ImportError:  # this litellm runs its callbacks in another way
        return
    _share(module.GLOBAL_LOGGING_WORKER)
    for known in list(_workers):
        if known.is_closed():  # it crashed before its worker was ended
            _workers.pop(known, None)
    try:
        worker = _idle_workers.pop()
    except IndexError:
        worker = module.LoggingWorker()
    _workers[loop] = worker


def _share(shared: Any) -> None:
    """Make the worker of the process forward callbacks from loops that have a separate worker."""
    name = "ensure_initialized_and_enqueue"  # litellm calls this for every callback
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
    """Finish litellm's callbacks and close its clients on the running loop.

    The loop belongs to this package, so the application cannot wait for litellm's work on it.
    """
    await finish_callbacks()
    await close_clients_of_this_loop()


async def finish_callbacks() -> None:
    """Wait for the callbacks that litellm queued on the running loop, and stop their worker."""
    loop = asyncio.get_running_loop()
    own = _workers.pop(loop, None)
    worker = own
    if worker is None:
        module: Any = sys.modules.get("litellm.litellm_core_utils.logging_worker")
        # A flush from another loop would take the queue from the loop that processes it.
        if module is None or module.GLOBAL_LOGGING_WORKER._bound_loop is not loop:
            return
        worker = module.GLOBAL_LOGGING_WORKER
    try:
        async with asyncio.timeout(CALLBACKS_TIMEOUT):
            await worker.flush()
    except TimeoutError:
        logger.warning(
            "litellm callbacks still run after %s s; their loop ends now", CALLBACKS_TIMEOUT
        )
    finally:
        await worker.stop()
        if own is not None:
            _idle_workers.append(own)


async def close_clients_of_this_loop() -> None:
    """Close the clients that litellm cached for the running loop, and remove them from the cache.

    litellm keys its clients by loop and leaves them open until they expire, which is after this
    loop is closed. litellm's ``close_litellm_async_clients`` closes the clients of every loop, even
    of loops in use. The removal matters as well: in litellm before 1.110 the key is the ``id`` of
    the loop, which a later loop may get again.
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
        except Exception as error:  # noqa: BLE001 - the other clients must be closed as well
            logger.warning("a litellm client failed to close: %s", type(error).__qualname__)
