"""Requests to the Routers of ``ray_routers``, and waiting for what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

PATIENCE = 60.0  # seconds for what must come


def request(text: object, model: str = "answer", **arguments: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": str(text)}], **arguments}


def fast(text: object, demo: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    return request(text, "fast", extra_body={"demo": {"latency": 0.0, **(demo or {})}}, **arguments)


def is_there(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.01)
