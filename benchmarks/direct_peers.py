"""Clients without a Router that a user would take for speed: the sides beside the direct lane.

Each that is installed sends conversations to a server that speaks OpenAI's protocol, as its own
documentation says, without retries and without a display.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import os
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from .adapter import MODEL

Side: TypeAlias = Callable[[list[Any]], Awaitable[Any]]


def flexllm_side(url: str, in_flight: int) -> Side:
    """``chat_batch`` of flexllm."""
    flexllm: Any = importlib.import_module("flexllm")

    async def send(conversations: list[Any]) -> None:
        async with flexllm.LLMClient(
            model=MODEL,
            base_url=url,
            api_key="none",
            concurrency_limit=in_flight,
            max_qps=1_000_000,
            retry_times=0,
        ) as client:
            results = await client.chat_batch(conversations, show_progress=False)
        _require([result.content for result in results])

    return send


def infermesh_side(url: str, in_flight: int) -> Side:
    """``agenerate_batch`` of infermesh, which calls litellm."""
    infermesh: Any = importlib.import_module("infermesh")

    async def send(conversations: list[Any]) -> None:
        client = infermesh.LMClient(
            model=f"openai/{MODEL}",
            api_base=url,
            api_key="none",
            max_parallel_requests=in_flight,
            max_retries=0,
            default_request_kwargs={"num_retries": 0},
        )
        async with client:
            await client.agenerate_batch(conversations, return_exceptions=False)

    return send


def lm_deluge_side(url: str, in_flight: int) -> Side:
    """``process_prompts_async`` of lm-deluge."""
    lm_deluge: Any = importlib.import_module("lm_deluge")
    models: Any = importlib.import_module("lm_deluge.models")
    os.environ.setdefault("DIRECT_PEERS_KEY", "none")
    models.register_model(
        id="direct-peers",
        name=MODEL,
        api_base=url,
        api_key_env_var="DIRECT_PEERS_KEY",
        regions=[],
    )
    client = lm_deluge.LLMClient(
        "direct-peers",
        max_requests_per_minute=10_000_000,
        max_tokens_per_minute=10_000_000_000,
        max_concurrent_requests=in_flight,
    )

    async def send(conversations: list[Any]) -> None:
        prompts = [
            lm_deluge.Conversation().user(messages[0]["content"]) for messages in conversations
        ]
        results = await client.process_prompts_async(prompts, show_progress=False)
        _require([result.completion for result in results])

    return send


def saturate_side(url: str, in_flight: int) -> Side:
    """``pump`` of saturate, with a window that does not adapt, into a file."""
    saturate: Any = importlib.import_module("saturate")

    def pump(conversations: list[Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            stats = saturate.pump(
                ({"id": str(number), "messages": one} for number, one in enumerate(conversations)),
                to_request=lambda row: {"model": MODEL, "messages": row["messages"]},
                parse=lambda row, answer: {"text": answer["choices"][0]["message"]["content"]},
                endpoint=url,
                output=folder,
                window=saturate.Fixed(in_flight),
                id_key="id",
                signal_source="none",
            )
        _require([True] * stats.rows_processed + [None] * (stats.rows_processed == 0))

    async def send(conversations: list[Any]) -> None:
        await asyncio.to_thread(pump, conversations)

    return send


PEERS: dict[str, Callable[[str, int], Side]] = {
    "flexllm": flexllm_side,
    "infermesh": infermesh_side,
    "lm-deluge": lm_deluge_side,
    "saturate": saturate_side,
}


def installed_peers(url: str, in_flight: int) -> dict[str, Side]:
    """Return the sides of the peers that are installed, and name the others."""
    sides: dict[str, Side] = {}
    for name, side in PEERS.items():
        try:
            sides[name] = _quiet(side(url, in_flight))
        except ImportError:
            print(f"  {name} is not installed")
    return sides


def _quiet(send: Side) -> Side:
    """Drop what a side prints about its progress."""

    async def quiet(conversations: list[Any]) -> None:
        nowhere = io.StringIO()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            await send(conversations)

    return quiet


def _require(answers: list[Any]) -> None:
    missing = sum(answer is None for answer in answers)
    if missing or not answers:
        raise RuntimeError(f"{missing} of {len(answers)} answers are missing")
