"""Closing litellm's HTTP clients on an event loop that we own."""

from __future__ import annotations

import asyncio
import sys
from typing import Any


async def close_clients_of_this_loop() -> None:
    """Close the clients that litellm has cached for the running loop, and forget them.

    litellm keys its clients by loop and leaves them open until they expire, which a loop about to
    be closed does not live to see. Its own ``close_litellm_async_clients`` closes those of every
    loop, also of loops that are in use elsewhere. Forgetting matters as well: the key is the
    ``id`` of the loop, which a later loop may get again.
    """
    litellm = sys.modules.get("litellm")
    if litellm is None:
        return
    cache = litellm.in_memory_llm_clients_cache
    key_ending = f"-{id(asyncio.get_running_loop())}"
    for key in [key for key in cache.cache_dict if str(key).endswith(key_ending)]:
        client: Any = cache.cache_dict.pop(key)
        cache.ttl_dict.pop(key, None)
        close = getattr(client, "aclose", None) or getattr(client, "close", None)
        if close is not None:
            closing = close()
            if hasattr(closing, "__await__"):
                await closing
