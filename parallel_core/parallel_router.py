"""A Router with the parallel methods, for those who dislike patching. Imports litellm."""

from __future__ import annotations

from typing import Unpack

from litellm.router import Router

from . import dispatch
from ._handle import ParallelBatch
from ._plan import Requests
from .control.options import Concurrency, Controls
from .trio_router import RouterHost, RouterHostName
from .types import RouterParallelResult, StreamChunk, StreamEnd


class ParallelRouter(Router):
    """``litellm.Router`` with :meth:`parallel_acompletions`, :meth:`iter_parallel_acompletions` and
    :meth:`iter_parallel_streams`.

    Made like a Router, and usable wherever one is. No flag is needed.
    """

    async def parallel_acompletions(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 8,
        return_exceptions: bool = True,
        preserve_order: bool = False,
        router_host: RouterHost | RouterHostName | None = None,
        **controls: Unpack[Controls],
    ) -> list[RouterParallelResult]:
        """:func:`parallel_core.parallel_acompletions` with this Router."""
        return await dispatch.parallel_acompletions(
            self,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            router_host=router_host,
            **controls,
        )

    def iter_parallel_acompletions(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 8,
        return_exceptions: bool = True,
        preserve_order: bool = False,
        router_host: RouterHost | RouterHostName | None = None,
        **controls: Unpack[Controls],
    ) -> ParallelBatch[RouterParallelResult]:
        """:func:`parallel_core.iter_parallel_acompletions` with this Router."""
        return dispatch.iter_parallel_acompletions(
            self,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            router_host=router_host,
            **controls,
        )

    def iter_parallel_streams(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 8,
        return_exceptions: bool = True,
        router_host: RouterHost | RouterHostName | None = None,
        **controls: Unpack[Controls],
    ) -> ParallelBatch[StreamChunk | StreamEnd]:
        """:func:`parallel_core.iter_parallel_streams` with this Router."""
        return dispatch.iter_parallel_streams(
            self,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            router_host=router_host,
            **controls,
        )
