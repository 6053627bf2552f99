"""Hosts: event loops on which a Router's asyncio code runs for a trio application."""

from .call_loop import plain_loop_factory
from .litellm_loop import enter_loop, leave_this_loop
from .router_host import (
    RouterHost,
    RouterHostName,
    RouterStream,
    open_router_host,
    open_trio_asyncio,
    router_for_trio,
)
from .trio_asyncio_loop import prepare_trio_asyncio_loop

__all__ = [
    "RouterHost",
    "RouterHostName",
    "RouterStream",
    "enter_loop",
    "leave_this_loop",
    "open_router_host",
    "open_trio_asyncio",
    "plain_loop_factory",
    "prepare_trio_asyncio_loop",
    "router_for_trio",
]
