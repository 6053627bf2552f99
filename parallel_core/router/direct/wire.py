"""Send a direct call through litellm's own connections."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx

from .requests import RequestTemplate
from .seam import cookie_of


class Answer(NamedTuple):
    """An answer as it came.

    Attributes:
        content: the body, still compressed if the provider compressed it.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    content: bytes

    def response(self, request: httpx.Request) -> httpx.Response:
        """Return it as httpx's answer to a request."""
        headers = [
            (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
            for name, value in self.headers
        ]  # texts, as aiohttp gives them to litellm's transport: httpx refuses some
        return httpx.Response(self.status, headers=headers, content=self.content, request=request)


async def post(template: RequestTemplate, body: bytes) -> Answer:
    """Send a body as litellm would and return the answer.

    The session of the transport that litellm uses for the deployment sends it: its connections and
    their limits, DNS cache and TLS settings are those of the deployment.

    Raises:
        httpx.TransportError: as litellm's transport raises it.
    """
    from litellm.llms.custom_httpx.aiohttp_transport import map_aiohttp_exceptions

    transport: Any = template.transport
    options: dict[str, Any] = {}
    if transport._ssl_verify is not None:
        options["ssl"] = transport._ssl_verify
    headers, cookies = template.headers, template.sent.client.cookies
    if cookies.jar._cookies:  # type: ignore[attr-defined]
        cookie = cookie_of(template.sent.client, template.sent.request.url)
        if cookie and "cookie" not in {name.lower() for name in headers}:
            headers = {**headers, "Cookie": cookie}
    with map_aiohttp_exceptions():
        async with transport.get_valid_client_session().request(
            "POST",
            template.url,
            headers=headers,
            data=body,
            allow_redirects=False,
            auto_decompress=False,
            timeout=template.timeout,
            proxy=template.proxy,
            **options,
        ) as response:
            content = await response.read()
            answer = Answer(response.status, list(response.raw_headers), content)
            if "set-cookie" in response.headers:
                cookies.extract_cookies(
                    httpx.Response(200, headers=answer.headers, request=template.sent.request)
                )
            return answer
