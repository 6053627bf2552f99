"""The request of a direct call: litellm's request for the same shape, with other arguments."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import httpx
from yarl import URL

from .seam import Sent
from .shapes import equal

# These belong to one request or to one connection: aiohttp sets them.
_HEADERS_OF_A_REQUEST = frozenset({b"content-length", b"host", b"connection"})


class NotAlikeError(Exception):
    """A request cannot be made from arguments: the message says why."""


# `json.dumps` makes an encoder for each call.
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _as_openai(body: Mapping[str, Any]) -> bytes:
    """Encode a body as the openai package does, and httpx."""
    return _compact(body).encode()


def _as_json_dumps(body: Mapping[str, Any]) -> bytes:
    """Encode a body as litellm's own handler of HTTP does."""
    return json.dumps(body).encode()


def _encoder_of(body: Mapping[str, Any], content: bytes) -> Callable[[Mapping[str, Any]], bytes]:
    """Return the function that encodes a body as litellm did."""
    for encode in (_as_openai, _as_json_dumps):
        with contextlib.suppress(ValueError):  # not every function accepts NaN and half characters
            if encode(body) == content:
                return encode
    raise NotAlikeError("its body is encoded in another way")


def _as_given(messages: Any) -> Any:
    return messages


def _without_nulls(messages: Any) -> Any:
    """Leave out the members of messages that are null, as litellm does with most of them."""
    return [
        {name: member for name, member in message.items() if member is not None}
        for message in messages
    ]


def _rewriting(given: Any, sent: Any) -> Callable[[Any], Any]:
    """Return the function that makes the messages that litellm sends from those of the call."""
    for rewrite in (_as_given, _without_nulls):
        if equal(rewrite(given), sent):
            return rewrite
    raise NotAlikeError("litellm rewrites its messages")


@dataclass(frozen=True, eq=False)
class RequestTemplate:
    """A request of litellm's with open places for what differs from call to call.

    Attributes:
        sent: the request that litellm made.
        arguments: names of the arguments that stand in the body as they are.
        constants: the other members of the body, without the messages.
        rewrite: makes the messages of the body from those of the call.
        order: the members in the order of the body.
        encode: makes the bytes of a body as litellm does.
        headers, url, timeout, transport, proxy: as litellm sent it.
    """

    sent: Sent
    arguments: frozenset[str]
    constants: Mapping[str, Any]
    rewrite: Callable[[Any], Any]
    order: tuple[str, ...]
    encode: Callable[[Mapping[str, Any]], bytes]
    headers: Mapping[str, str]
    url: URL
    timeout: aiohttp.ClientTimeout
    transport: Any
    proxy: str | None

    @classmethod
    async def of(cls, sent: Sent, arguments: Mapping[str, Any]) -> RequestTemplate:
        """Find out which members of litellm's request are arguments of the call.

        Raises:
            NotAlikeError: the request is not JSON sent by POST, its messages were rewritten, or it
                goes over a transport that is not litellm's own.
        """
        request = sent.request
        client: Any = sent.client
        transport = client._transport_for_url(request.url)
        if not hasattr(transport, "get_valid_client_session"):
            raise NotAlikeError("it is not sent by aiohttp")
        try:
            given: object = json.loads(request.content)
        except (httpx.RequestNotRead, ValueError):
            raise NotAlikeError("its request is not JSON") from None
        if request.method != "POST" or not isinstance(given, dict):
            raise NotAlikeError("its request is not a JSON object sent by POST")
        body = cast("dict[str, Any]", given)
        names = frozenset(
            name
            for name, member in body.items()
            if name in arguments and name != "messages" and equal(member, arguments[name])
        )
        rewrite = _rewriting(arguments["messages"], body.get("messages"))
        encode = _encoder_of(body, request.content)
        seconds: Mapping[str, float | None] = request.extensions.get("timeout") or {}
        return cls(
            sent=sent,
            arguments=names,
            constants={
                name: body[name] for name in body if name not in names and name != "messages"
            },
            rewrite=rewrite,
            order=tuple(body),
            encode=encode,
            headers={
                name.decode("ascii"): value.decode("latin-1")
                for name, value in request.headers.raw
                if name.lower() not in _HEADERS_OF_A_REQUEST
            },
            url=URL(str(request.url), encoded=True),
            timeout=aiohttp.ClientTimeout(
                sock_connect=seconds.get("connect"),
                sock_read=seconds.get("read"),
                connect=seconds.get("pool"),
            ),
            transport=transport,
            proxy=await transport._get_proxy_settings(request),
        )

    def body(self, arguments: Mapping[str, Any]) -> bytes:
        """Make the body of a call with these arguments."""
        given, constants = self.arguments, self.constants
        body = {
            name: arguments[name] if name in given else constants.get(name) for name in self.order
        }
        body["messages"] = self.rewrite(arguments["messages"])
        return self.encode(body)

    def makes(self, sent: Sent, arguments: Mapping[str, Any]) -> bool:
        """Return True if this template makes a request that litellm made, byte for byte."""
        mine, theirs = self.sent.request, sent.request
        return (
            sent.client is self.sent.client
            and (mine.method, mine.url) == (theirs.method, theirs.url)
            and _headers(mine) == _headers(theirs)
            and mine.extensions == theirs.extensions
            and sent.options == self.sent.options
            and self.body(arguments) == theirs.content
        )


def _headers(request: httpx.Request) -> list[tuple[bytes, bytes]]:
    return [pair for pair in request.headers.raw if pair[0].lower() != b"content-length"]
