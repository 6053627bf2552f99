"""Send an answer of the demo server, or fail on purpose."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from typing import Final

from aiohttp import web

from .answer import Answer
from .endpoints import EndpointAnswer
from .refusals import error_response
from .settings import RequestPlan
from .stats import Ledger, RequestEnd
from .trouble import ODD_ANSWERS

_NO_JSON: Final = '{"id": "chatcmpl-demo", "choices": [{"index": 0, '
_LAST_EVENT: Final = b"data: [DONE]\n\n"


class Flight:
    """A request in flight. It begins when the object is made, and ends once."""

    def __init__(self, ledger: Ledger, model: str, key: str | None) -> None:
        self._ledger = ledger
        self._model = model
        self._key = key
        self._ended = False
        ledger.begin(model, key)

    def count_fault(self, kind: str) -> None:
        self._ledger.count_fault(self._model, self._key, kind)

    def finish(self, answer: Answer | EndpointAnswer) -> None:
        """Count the end of a request whose answer is complete."""
        if not self._ended:
            self._ledger.count_tokens(
                self._model, self._key, answer.request.prompt_tokens, answer.completion_tokens
            )
        self.end("finished")

    def end(self, how: RequestEnd, fault: str | None = None) -> None:
        """Count the end. Do nothing if the request has already ended."""
        if self._ended:
            return
        self._ended = True
        if fault is not None:
            self.count_fault(fault)
        self._ledger.end(self._model, self._key, how)


async def send_answer(
    request: web.Request,
    answer: Answer | EndpointAnswer,
    plan: RequestPlan,
    flight: Flight,
    gate: asyncio.Event,
) -> web.StreamResponse:
    """Send the answer or the fault of the plan.

    The flight ends before the client can have the whole answer. A held request waits until the
    gate is set.
    """
    if plan.fault == "hang":
        flight.count_fault("hang")
        # This waits until the client or the server closes the connection, which cancels this task.
        await asyncio.get_running_loop().create_future()
    if plan.held:
        await gate.wait()
    await _sleep(plan.time_to_first_token if answer.request.stream else plan.latency)
    if plan.fault == "server_error":
        flight.end("finished", plan.fault)
        return error_response("The demo server fails on purpose.", status=500)
    fault = plan.fault
    if fault in ODD_ANSWERS:  # the answer already has the fault, and is sent like a good one
        flight.count_fault(fault)
        fault = None
    if isinstance(answer, Answer) and answer.request.stream:
        return await _send_stream(request, answer, plan, fault, flight)
    if fault is None:
        flight.finish(answer)
        return web.json_response(answer.whole())
    if fault == "invalid_json":
        flight.end("finished", fault)
        return web.Response(text=_NO_JSON, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    if fault == "truncated":
        body = json.dumps(answer.whole()).encode()
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
    _break_off(request, fault, flight)
    return response


async def _send_stream(
    request: web.Request, answer: Answer, plan: RequestPlan, fault: str | None, flight: Flight
) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    chunks = list(answer.chunks())[: plan.cut_after]
    # A fault comes in the middle of the stream, but never before its first token.
    fails_at = None if fault is None else max(1, len(chunks) // 2)
    for index, chunk in enumerate(chunks):
        if 0 < index < answer.completion_tokens:
            await _sleep(plan.chunk_gap)
        if index == fails_at and fault != "invalid_json":
            break
        text = _NO_JSON if index == fails_at else json.dumps(chunk)
        await response.write(f"data: {text}\n\n".encode())
    if fault in ("reset", "truncated"):
        _break_off(request, fault, flight)
        return response
    if fault is None:
        flight.finish(answer)
    else:
        flight.end("finished", fault)
    await response.write_eof(_LAST_EVENT)
    return response


def _break_off(request: web.Request, fault: str, flight: Flight) -> None:
    """Close the connection before the answer is complete."""
    flight.end("finished", fault)
    transport = request.transport
    if transport is None:  # the client has closed the connection already
        return
    if fault == "truncated":
        transport.close()  # data that was written is still sent
        return
    connection = transport.get_extra_info("socket")
    # With a linger time of 0, closing the socket resets the connection.
    linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
