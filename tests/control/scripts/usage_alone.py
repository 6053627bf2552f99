"""Count the tokens of a batch whose calls need no litellm, and import neither litellm nor rich."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import parallel_core


async def answer(*, model: str, messages: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}


async def main() -> None:
    requests: list[Any] = [{"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}] * 3
    async with parallel_core.iter_parallel_acompletions(answer, requests) as batch:
        async for result in batch:
            assert result.ok
    assert batch.usage == parallel_core.Usage(9, 12, unpriced_calls=3), batch.usage


if __name__ == "__main__":
    asyncio.run(main())
    assert "litellm" not in sys.modules
    assert "rich" not in sys.modules
