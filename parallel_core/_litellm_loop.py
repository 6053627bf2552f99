"""What litellm keeps on an event loop, and how to leave nothing of it on a loop that we own."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

logger = logging.getLogger("parallel_core")

CALLBACKS_TIMEOUT = 5.0  # seconds


async def leave_this_loop() -> None:
    """Let litellm's callbacks finish and close its clients, on the running loop, which is ours.

    An application can wait for what litellm does on its own loop, and not on ours.
    """
    await finish_callbacks()
    await close_clients_of_this_loop()


async def finish_callbacks() -> None:
    """Wait for the success and failure callbacks that litellm has queued on the running loop."""
    module: Any = sys.modules.get("litellm.litellm_core_utils.logging_worker")
    if module is None:
        return
    worker = module.GLOBAL_LOGGING_WORKER
    # On any other loop, flushing would take the queue away from the loop that works on it.
    if worker._bound_loop is not asyncio.get_running_loop():
        return
    try:
        async with asyncio.timeout(CALLBACKS_TIMEOUT):
            await worker.flush()
    except TimeoutError:
        logger.warning(
            "callbacks of litellm still run after %s s; their loop ends now", CALLBACKS_TIMEOUT
        )


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
