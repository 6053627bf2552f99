"""Files of requests, and providers that answer them without a server."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel


def line(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{number}"}]
    return {"custom_id": f"id-{number}", "body": {"model": "gpt", "messages": messages, **body}}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def answer_of(number: str) -> dict[str, Any]:
    return {
        "id": "1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": number}}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def ids_of(path: Path) -> list[str]:
    return [entry["custom_id"] for entry in lines_of(path)]


def is_file(fd: int, path: Path) -> bool:
    return path.exists() and os.fstat(fd).st_ino == path.stat().st_ino


class Provider:
    """Answers with the number of its request, and counts its calls."""

    def __init__(self, behave: Callable[[int], Any] | None = None) -> None:
        self.calls = Counter[str]()
        self.in_flight = 0
        self._behave = behave

    async def __call__(self, *, model: str, messages: Any, **_: Any) -> dict[str, Any]:
        number = str(messages[0]["content"])
        self.calls[f"id-{number}"] += 1
        self.in_flight += 1
        try:
            await anyio.lowlevel.checkpoint()
            if self._behave is not None:
                await self._behave(int(number))
        finally:
            self.in_flight -= 1
        return answer_of(number)


class Gate:
    """Calls that wait until they are let through."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._full = anyio.Event()
        self._open = anyio.Event()
        self._waiting = 0
        self.free = 0

    async def pass_through(self, number: int) -> None:
        if self.free > 0:
            self.free -= 1
            return
        self._waiting += 1
        if self._waiting >= self._at_once:
            self._full.set()
        await self._open.wait()

    async def until_full(self) -> None:
        await self._full.wait()

    def open(self) -> None:
        self._open.set()
