"""The calls of a worker: what the driver sends becomes a call of the worker's Router."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from parallel_core.config import unwrap_router
from parallel_core.control import Engine, RouterMeter, Timeouts
from parallel_core.router import (
    BATCH_METADATA,
    DIRECT,
    INDEX,
    NOT_CHAT,
    OPERATION,
    RETRIED,
    STALL_TIMEOUT,
    TIMEOUT,
    DirectCounts,
    RouterOverrides,
    Streams,
    direct_lane,
    router_overrides,
    send_metadata_to_store,
)
from parallel_core.types import CHAT, RouterParallelRequest

if TYPE_CHECKING:
    from parallel_core.router.direct.lane import DirectLane


class WorkerCalls:
    """Attachment of the worker's batch that sends what a local batch would send."""

    def __init__(self, router: Any) -> None:
        self._is_router = hasattr(router, "acompletion")
        self._router = router
        self._overrides: RouterOverrides | None = None
        self._meter = RouterMeter(unwrap_router(router))
        self._timeouts = Timeouts(None)
        self._timed = self._timeouts.wrap(self._send)
        self._lanes: dict[bool | Literal["verify"], DirectLane] = {}
        self._engine: Engine

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._timeouts.begin(engine)

    def end(self) -> None:
        pass

    async def answer(self, arguments: dict[str, Any], counts: DirectCounts) -> Any:
        """Call the Router with these arguments. Read a streamed answer and return it as a whole.

        The attempts of a direct call are added to ``counts``, however the call ends.
        """
        direct = arguments.pop(DIRECT, False)
        if direct and arguments.get(OPERATION, CHAT) != CHAT:
            counts.add(DirectCounts(indirect_calls={NOT_CHAT: 1}))
            direct = False
        if not direct:
            return await self._call(arguments, None)
        lane = self._lanes.get(direct)
        if lane is None:
            made = direct_lane(self._router, direct)
            assert made is not None
            lane = self._lanes[direct] = made
        of_this_call = lane.counted_apart()
        try:
            return await self._call(arguments, of_this_call)
        finally:
            lane.direct_calls += of_this_call.direct_calls
            counts.add(of_this_call)

    def _call(self, arguments: dict[str, Any], lane: DirectLane | None) -> Awaitable[Any]:
        stall_timeout = arguments.pop(STALL_TIMEOUT, None)
        timeout = arguments.pop(TIMEOUT, None)
        index = arguments.pop(INDEX, 0)
        retried = arguments.pop(RETRIED, False)
        if not self._is_router:
            # A bare callable gets only the request's own metadata.
            metadata: dict[str, Any] = arguments.get("metadata") or {}
            own = {name: metadata[name] for name in metadata if name not in BATCH_METADATA}
            arguments.pop("metadata", None)
            if own:
                arguments["metadata"] = own
        model, messages = arguments.pop("model"), arguments.pop("messages", ())
        operation: str = arguments.pop(OPERATION, CHAT)
        if self._is_router:
            if operation == CHAT:
                send_metadata_to_store(self._router, model, arguments)
            if retried:
                self._overrides = self._overrides or router_overrides(self._router)
                self._overrides.add_to(arguments, model, operation)
        if lane is not None:
            arguments[DIRECT] = lane
        request = RouterParallelRequest(model, messages, arguments, timeout, operation)
        if not arguments.get("stream"):
            return self._timed(index, request)
        # Each call has its own reader, because calls of two batches may have the same index.
        reader = Streams(self._meter, stall_timeout=stall_timeout)
        reader.begin(self._engine)
        return reader.wrap_controls(self._timeouts.wrap(reader.wrap(self._send)))(index, request)

    def _send(self, index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        arguments = dict(request.kwargs or {})
        lane: DirectLane | None = arguments.pop(DIRECT, None)
        operation = request.operation or CHAT
        method: Callable[..., Awaitable[Any]] = getattr(self._router, operation, self._router)

        def call(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
            if request.messages or operation == CHAT:
                arguments["messages"] = request.messages
            return method(model=request.model, **arguments)

        return call(index, request) if lane is None else lane.wrap(call)(index, request)
