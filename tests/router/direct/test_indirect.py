"""What the lane leaves to litellm, what listeners hear, and that nothing of the lane is left."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import litellm
import openai
import pytest
from litellm.integrations.custom_logger import CustomLogger

from helpers.direct_parity import Way, normal, router_of, send, unlike
from helpers.hosts import ASYNCIO_HOSTS
from helpers.recording_provider import recording_provider
from helpers.routers import run_with_routers
from parallel_core import iter_parallel_acompletions, parallel_acompletions
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.router.direct import lane, seam

ASYNCIO = ASYNCIO_HOSTS[0]
SERVER_TIMEOUT = 20.0  # seconds
FAST = {"fast": [{"model": "openai/fast"}]}
SERVER_SETTINGS = DemoServerSettings(latency_median=0.0)


def ask(**arguments: Any) -> dict[str, Any]:
    return {"model": "fast", "messages": [{"role": "user", "content": "a"}], **arguments}


def faulty(fault: str) -> dict[str, Any]:
    return ask(extra_body={"demo": {"fault": fault}})


# --- litellm sends ---


class NotJson:
    """A value that has no JSON."""


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key="sk-0")


INDIRECT: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "made up": (lambda url: {"mock_response": "made up"}, "it has mock_response"),
    "cached": (lambda url: {"caching": True}, "answers are cached"),
    "own client": (lambda url: {"client": client_of(url)}, "it has a client of its own"),
    "not JSON": (lambda url: {"metadata": {}, "user_object": NotJson()}, "an argument is not JSON"),
}


@pytest.mark.parametrize("name", INDIRECT)
def test_a_request_that_litellm_sends(name: str) -> None:
    make, reason = INDIRECT[name]
    ways: list[Way] = []

    async def main() -> None:
        for direct in (False, True):
            with recording_provider() as provider:
                router = router_of(provider.url, FAST, num_retries=0)
                request = ask(**make(provider.url))
                ways.append(await send(router, [request] * 2, direct, retry=None))
                if "client" in request:
                    await request["client"].close()

    run_with_routers(ASYNCIO, main)
    plain, ours = ways
    assert ours.direct_calls == 0
    assert [each.startswith(reason) for each in ours.indirect_calls.elements()] == [True, True]
    for one, other in zip(plain.outcomes, ours.outcomes, strict=True):
        assert unlike(made_up(one), made_up(other)) == {}


def made_up(outcome: dict[str, Any]) -> dict[str, Any]:
    """An outcome without the objects and durations of litellm's own path."""
    if "message" in outcome:
        outcome["message"] = outcome["message"].splitlines()[0]
    return outcome


class Listener(CustomLogger):  # type: ignore[misc,unused-ignore]
    """Notes what litellm reports."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Any, ...]] = []

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self.heard.append(("failure", *described(kwargs)))


def described(kwargs: Any) -> tuple[Any, ...]:
    error: Any = kwargs["exception"]
    return kwargs["model"], type(error), error.status_code, normal(str(error))


@pytest.mark.parametrize("where", ["callbacks", "success_callback", "_async_success_callback"])
def test_with_a_listener_to_successes_litellm_sends(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with recording_provider() as provider, monkeypatch.context() as patched:
            router = router_of(provider.url, FAST)
            keep_callbacks(patched)
            getattr(litellm, where).append(Listener())
            way = await send(router, [ask()] * 2, True)
            assert way.direct_calls == 0
            assert sum(way.indirect_calls.values()) == 2
            assert all("callback" in reason for reason in way.indirect_calls)

    run_with_routers(ASYNCIO, main)


def keep_callbacks(patched: pytest.MonkeyPatch) -> None:
    """Let litellm's lists of callbacks be as they are now, at the end."""
    for name in ("callbacks", "input_callback", "success_callback", "failure_callback"):
        for each in (name, f"_async_{name}"):
            if hasattr(litellm, each):
                patched.setattr(litellm, each, [*getattr(litellm, each)])


@pytest.mark.parametrize("kind", ["function", "logger"])
def test_a_listener_to_failures_hears_of_each(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane sends, and litellm reports: equally often, and the same."""
    heard: list[list[Any]] = []
    faults = ["bad_key", "server_error", "context_length", "invalid_json"]

    async def main() -> None:
        for direct in (False, True):
            listener = Listener()

            def function(kwargs: Any, *_: Any, listener: Listener = listener) -> None:
                listener.heard.append(("failure", *described(kwargs)))

            with DemoServerThread(SERVER_SETTINGS) as server, monkeypatch.context() as patched:
                router = router_of(server.url, FAST, num_retries=0, disable_cooldowns=True)
                callback: Any = function if kind == "function" else listener
                keep_callbacks(patched)
                where = "failure_callback" if kind == "function" else "_async_failure_callback"
                getattr(litellm, where).append(callback)
                requests = [ask(), *map(faulty, faults), ask()]
                way = await send(router, requests, direct, retry=None)
                with anyio.fail_after(SERVER_TIMEOUT):
                    while len(listener.heard) < len(faults):
                        await anyio.lowlevel.checkpoint()
            heard.append(sorted(listener.heard, key=repr))
            assert way.direct_calls == (len(requests) if direct else 0)

    run_with_routers(ASYNCIO, main)
    assert len(heard[0]) == len(faults)
    assert heard[0] == heard[1]


# --- nothing is left ---


def assert_removed(originals: tuple[Any, Any]) -> None:
    assert (litellm.acompletion, httpx.AsyncClient.send) == originals
    assert not seam._originals


@pytest.mark.parametrize("end", ["finished", "left", "failed", "timed out"])
def test_nothing_is_left_when_a_batch_has(end: str) -> None:
    originals = (litellm.acompletion, httpx.AsyncClient.send)

    async def main() -> None:
        with DemoServerThread(SERVER_SETTINGS) as server:
            router = router_of(server.url, FAST)

            async def source() -> AsyncIterator[dict[str, Any]]:
                yield ask()
                if end == "finished":
                    return
                for _ in range(3):
                    yield faulty("hang")
                await asyncio.to_thread(server.wait_in_flight, 3, SERVER_TIMEOUT)
                assert litellm.acompletion is not originals[0]
                yield ask() if end == "left" else faulty("bad_key")

            options: dict[str, Any] = {"concurrency": 8, "direct": True}
            if end == "left":
                async with iter_parallel_acompletions(router, source(), **options) as batch:
                    seen = 0
                    async for _ in batch:
                        seen += 1
                        if seen == 2:
                            break
            elif end == "failed":
                with pytest.raises(litellm.AuthenticationError):
                    await parallel_acompletions(
                        router, source(), return_exceptions=False, **options
                    )
            else:
                timeout = 0.5 if end == "timed out" else None
                results = await parallel_acompletions(router, source(), timeout=timeout, **options)
                assert [result.ok for result in results] == [True] + [False] * (len(results) - 1)
            assert_removed(originals)
            # The connections of cancelled calls are closed at once, as the server sees.
            await asyncio.to_thread(server.wait_idle, SERVER_TIMEOUT)
            stats = server.stats()
            assert stats.disconnected == (0 if end == "finished" else 3)
            assert stats.open_connections <= 2

    run_with_routers(ASYNCIO, main)


def test_calls_beside_a_direct_batch_do_not_use_the_lane() -> None:
    """Another task, another thread, and a Router of theirs: litellm's function gets them."""
    originals = (litellm.acompletion, httpx.AsyncClient.send)

    async def main() -> None:
        with DemoServerThread(SERVER_SETTINGS) as server:
            plain: dict[str, Any] = {
                "model": "openai/fast",
                "messages": [{"role": "user", "content": "a"}],
                "api_base": server.url,
                "api_key": "sk-other",
            }
            router = router_of(server.url, FAST)
            other = router_of(server.url, FAST)
            others: list[Any] = []

            def in_a_thread() -> None:
                # Refused before litellm logs it: its worker for logs serves one loop at a time.
                try:
                    asyncio.run(litellm.acompletion("of nobody", plain["messages"]))
                except litellm.BadRequestError as error:
                    others.append(error)

            async with iter_parallel_acompletions(
                router, [ask(), faulty("hang")], direct=True, concurrency=2
            ) as batch:
                await anext(batch)
                assert litellm.acompletion is not originals[0]
                thread = threading.Thread(target=in_a_thread)
                thread.start()
                others.append(await asyncio.create_task(litellm.acompletion(**plain)))
                others.append(await other.acompletion(**ask()))
                others += [each.unwrap() for each in await parallel_acompletions(other, [ask()])]
                await asyncio.to_thread(thread.join)
                assert (batch.direct_calls, batch.indirect_calls) == (2, {})
            assert len(others) == 4
            assert_removed(originals)

    run_with_routers(ASYNCIO, main)


def test_shapes_that_no_two_calls_share_are_not_learnt_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "_SHAPES_TO_TRY", 3)
    ways: list[Way] = []

    async def main() -> None:
        with recording_provider() as provider:
            router = router_of(provider.url, FAST, num_retries=0)
            requests = [ask(extra_body={"number": {"n": str(number)}}) for number in range(6)]
            ways.append(await send(router, requests, True, retry=None, concurrency=1))

    run_with_routers(ASYNCIO, main)
    (way,) = ways
    assert way.direct_calls == 3
    assert way.indirect_calls == {"too many shapes": 3}


def test_the_message_of_a_timeout_has_the_time_it_took() -> None:
    messages: list[str] = []

    async def main() -> None:
        with DemoServerThread(SERVER_SETTINGS) as server:
            router = router_of(server.url, FAST, num_retries=0)
            (result,) = await parallel_acompletions(
                router, [faulty("hang")], retry=None, direct=True, attempt_timeout=1
            )
            messages.append(str(result.exception))

    run_with_routers(ASYNCIO, main)
    taken = re.search(r"time taken=([\d.]+) seconds", messages[0])
    assert taken is not None, messages
    assert float(taken[1]) >= 1
