"""A headless Chromium that is driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

_PATIENCE = 60.0  # seconds


class BrowserPage:
    """A page of a browser, and what it has reported.

    Attributes:
        requests: addresses that the page has asked for.
        complaints: messages of its console, and exceptions.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._loaded = asyncio.Event()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def read(self) -> None:
        """Read what the browser sends, until it ends."""
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            else:
                self._note(found["method"], found["params"])

    def _note(self, method: str, details: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(details))
        elif method == "Page.loadEventFired":
            self._loaded.set()

    async def send(self, method: str, **details: object) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send_json({"id": number, "method": method, "params": details})
        found: dict[str, Any] = await asyncio.wait_for(answer, _PATIENCE)
        assert "result" in found, found
        result: dict[str, Any] = found["result"]
        return result

    async def go(self, address: str) -> None:
        """Open an address, and wait until it is loaded."""
        self._loaded.clear()
        await self.send("Page.navigate", url=address)
        await asyncio.wait_for(self._loaded.wait(), _PATIENCE)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, or that of its promise."""
        found = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def resize(self, width: int, *, dark: bool) -> None:
        """Set the width of the page, and the colors that its reader prefers."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        found = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def browser_page() -> AsyncGenerator[BrowserPage]:
    """Start a browser, and yield its page."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with aiohttp.ClientSession() as session:
                port = await asyncio.wait_for(_port(process), _PATIENCE)
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    pages = [one for one in await response.json() if one["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = BrowserPage(socket)
                    reading = asyncio.create_task(page.read())
                    for domain in ("Page", "Network", "Log", "Runtime"):
                        await page.send(f"{domain}.enable")
                    yield page
                await reading
        finally:
            process.kill()
            await process.communicate()


async def _port(process: asyncio.subprocess.Process) -> int:
    """Return the port of the DevTools, which the browser prints."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b"DevTools listening on" in line:
            return int(line.decode().split("127.0.0.1:")[1].split("/")[0])
    raise AssertionError("the browser has ended")
