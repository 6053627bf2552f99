"""Direct batches beside and inside of others, on every loop, and with what changes meanwhile."""

from __future__ import annotations

import asyncio
import base64
import gzip
import importlib
import json
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import litellm
import pytest
import uvloop

from helpers.direct_parity import Way, router_of, send, unlike
from helpers.recording_provider import Canned, completion, recording_provider
from parallel_core import RouterParallelResult, iter_parallel_acompletions
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop

FAST = {"model": "openai/fast"}
THREADS = 4
THREAD_TIMEOUT = 60.0  # seconds


def ask(text: str = "a", **arguments: Any) -> dict[str, Any]:
    return {"model": "group", "messages": [{"role": "user", "content": text}], **arguments}


def echo(path: str, body: Any) -> Canned:
    """Answer with the question."""
    answer = completion()
    answer["choices"][0]["message"]["content"] = body["messages"][-1]["content"]
    return Canned(answer)


def text_of(result: RouterParallelResult) -> str | None:
    response: Any = result.unwrap()
    text: str | None = response.choices[0].message.content
    return text


def run(main: Any, loop_factory: Any = None) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
        runner.run(close_clients_of_this_loop())


# litellm's logging worker serves one loop at a time: what another one has left is never awaited.
@pytest.mark.filterwarnings("ignore:coroutine 'Logging.async_success_handler':RuntimeWarning")
@pytest.mark.filterwarnings(
    "ignore:.*async_success_handler:pytest.PytestUnraisableExceptionWarning"
)
def test_several_threads_with_loops_of_their_own() -> None:
    """Each batch starts and ends by itself: the functions are put back when the last one has."""
    before = litellm.acompletion, httpx.AsyncClient.send
    ready = threading.Barrier(THREADS)
    told: list[Any] = []

    def in_thread(number: int, url: str) -> None:
        async def main() -> None:
            router = router_of(url, {"group": [FAST]})
            requests = [ask(f"{number}.{position}") for position in range(20 + 10 * number)]
            await asyncio.to_thread(ready.wait, THREAD_TIMEOUT)
            async with iter_parallel_acompletions(router, requests, direct=True) as batch:
                async for result in batch:
                    told.append(text_of(result) == requests[result.index]["messages"][0]["content"])
            told.append((batch.direct_calls == len(requests), dict(batch.indirect_calls)))

        run(main)

    with recording_provider(echo) as provider:
        threads = [
            threading.Thread(target=in_thread, args=(number, provider.url))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(THREAD_TIMEOUT)
    assert told.count((True, {})) == THREADS
    assert told.count(True) == sum(20 + 10 * number for number in range(THREADS))
    assert (litellm.acompletion, httpx.AsyncClient.send) == before


@pytest.mark.parametrize("inner", [True, False], ids=["direct", "plain"])
def test_a_batch_inside_of_a_call(inner: bool) -> None:
    """The calls of the inner one are its own, and those of the outer one the outer one's."""

    async def main() -> None:
        with recording_provider(echo) as provider:
            router, inside = (router_of(provider.url, {"group": [FAST]}) for _ in range(2))
            counts: Counter[str] = Counter()

            async def nest(*, model: str, messages: Any, **arguments: Any) -> Any:
                requests = [ask(f"inner {messages[0]['content']}")] * 2
                batch = iter_parallel_acompletions(inside, requests, direct=inner)
                async with batch:
                    async for result in batch:
                        counts[str(text_of(result))] += 1
                counts["inner direct"] += batch.direct_calls
                return await original(model=model, messages=messages, **arguments)

            original, router.acompletion = router.acompletion, nest
            async with iter_parallel_acompletions(
                router, [ask("one"), ask("two")], direct=True
            ) as batch:
                texts = sorted([str(text_of(result)) async for result in batch])
            assert texts == ["one", "two"]
            assert batch.direct_calls == 2
            assert counts["inner one"] == counts["inner two"] == 2
            assert counts["inner direct"] == (4 if inner else 0)

    run(main)


def test_uvloop() -> None:
    async def main() -> None:
        with recording_provider(echo) as provider:
            ways = [
                await send(router_of(provider.url, {"group": [FAST]}), [ask()] * 3, direct)
                for direct in (False, True)
            ]
            bodies = {one.body for one in provider.kept}
        plain, ours = ways
        assert ours.direct_calls == 3
        assert len(bodies) == 1
        for one, other in zip(plain.outcomes, ours.outcomes, strict=True):
            assert unlike(one, other) == {}

    run(main, uvloop.new_event_loop)


# --- what changes during a batch ---


def deployment(url: str, id: str, key: str, model: str = "openai/fast") -> Any:
    return litellm.types.router.Deployment(
        model_name="group",
        litellm_params=litellm.types.router.LiteLLM_Params(model=model, api_key=key, api_base=url),
        model_info={"id": id},
    )


@pytest.mark.filterwarnings("ignore:Router.* is deprecated:DeprecationWarning")
def test_deployments_that_come_and_go_during_a_batch() -> None:
    """What the Router is told before a request counts for it. Keys are rotated in place."""
    keys: list[list[str | None]] = []

    async def main(direct: bool) -> None:
        with recording_provider() as provider:
            router: Any = litellm.Router(
                model_list=[deployment(provider.url, f"one-{direct}", "sk-1").to_json()]
            )

            async def source() -> AsyncIterator[dict[str, Any]]:
                yield ask()
                yield ask()
                router.upsert_deployment(deployment(provider.url, f"one-{direct}", "sk-2"))
                yield ask()
                yield ask()
                router.upsert_deployment(deployment(provider.url, f"two-{direct}", "sk-3"))
                router.delete_deployment(f"one-{direct}")
                yield ask()
                yield ask(temperature=0.5)
                for each in router.model_list:
                    each["litellm_params"]["api_key"] = "sk-4"
                yield ask()

            async with iter_parallel_acompletions(
                router, source(), direct=direct, concurrency=1, retry=None
            ) as batch:
                results = [result async for result in batch]
            assert all(result.exception is None for result in results)
            assert batch.direct_calls == (7 if direct else 0)
            headers = [httpx.Headers(one.headers) for one in provider.kept]
            keys.append([each.get("authorization") for each in headers])

    for direct in (False, True):
        run(lambda direct=direct: main(direct))
    assert keys[1] == keys[0]
    assert keys[0][:6] == [f"Bearer sk-{number}" for number in (1, 1, 2, 2, 3, 3)]


# --- on the way ---

WITHOUT_PROXY = ("NO_PROXY", "no_proxy")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_of_the_environment(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the same from both ways; of https it sees, and refuses, the tunnel."""
    for name in WITHOUT_PROXY:
        monkeypatch.delenv(name, raising=False)
    ways: list[Any] = []

    async def main() -> None:
        with recording_provider() as proxy:
            address = proxy.url.removesuffix("/v1")
            monkeypatch.setenv(f"{scheme.upper()}_PROXY", address)
            monkeypatch.setenv(f"{scheme}_proxy", address)
            url = f"{scheme}://provider.invalid/v1"
            for direct in (False, True):
                router = router_of(url, {"group": [FAST]}, num_retries=0, disable_cooldowns=True)
                way = await send(router, [ask()] * 2, direct, retry=None)
                ways.append((way, [(one.path, one.body) for one in proxy.kept]))
                proxy.kept.clear()

    run(main)
    (plain, through), (ours, ours_through) = ways
    assert ours_through == through
    assert ours.direct_calls == 2
    for one, other in zip(plain.outcomes, ours.outcomes, strict=True):
        assert unlike(one, other) == {}
    if scheme == "http":
        assert [path for path, _ in through] == ["http://provider.invalid/v1/chat/completions"] * 2


# The answer of completion(), as other packages compress it. Where httpx has them, it reads it.
BROTLI = (
    "G/kAgBwHdnPOiyR5Vi2rxAiaW+qXP2yDYQsiKxbDcKimTx2WvgAx2/EMB4D73aKAKglWd5UF6RzSbYIIft5G"
    "ueZ6+6frRBXUMHzpGEThsrFTXTsxTPZmJeqe8El6CX0WibSJgQyRfIO84yDZPPjFGibw+gj/efd67rm+IYT9"
    "0j1BDnXalDQr4QalPQ=="
)
ZSTD = (
    "KLUv/SD6TQUAooogHnBJ2gZsoSh6SKRVXVO01rIBgSp+38C+//dl//+dAa0dioS9/SsJhKbBttFLLVsHvxLQ"
    "vrb5Z67LmMxAGCka+JV2lgis2Jqt24rNiBmflj058yRA5lS/YjjzhDwUPQE4c86DFlEpj1W/UmRjsqOLOtNS"
    "ewqNyOmTBQL7Ky9+5gd6Eg4ANvftbLA9gRR3/bDpU9RrQpSuDp3F/mffpvZAtQVQW8s67Q=="
)
PLAIN = json.dumps(completion()).encode()
ENCODED: Mapping[str, bytes] = {
    "gzip": gzip.compress(PLAIN),
    "deflate": zlib.compress(PLAIN),
    "gzip, gzip": gzip.compress(gzip.compress(PLAIN)),
    "br": base64.b64decode(BROTLI),
    "zstd": base64.b64decode(ZSTD),
    "unknown": PLAIN,
}


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("body", ["whole", "broken"])
def test_compressed_answers(encoding: str, body: str) -> None:
    content = ENCODED[encoding] if body == "whole" else ENCODED[encoding][:-9]
    answer = Canned(content, headers=[("Content-Encoding", encoding)])
    ways: list[Way] = []

    async def main() -> None:
        for direct in (False, True):
            with recording_provider(lambda path, body: answer) as provider:
                settings = {"num_retries": 0, "disable_cooldowns": True}
                router = router_of(provider.url, {"group": [FAST]}, **settings)
                ways.append(await send(router, [ask()] * 3, direct, retry=None))

    run(main)
    plain, ours = ways
    for one, other in zip(plain.outcomes, ours.outcomes, strict=True):
        assert unlike(one, other) == {}
    assert (ours.direct_calls, ours.indirect_calls) == (3, {})
    if encoding in ("gzip", "deflate") and body == "whole":
        assert [outcome["class"].__name__ for outcome in plain.outcomes] == ["ModelResponse"] * 3


def test_litellm_replaces_its_client_while_the_lane_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when the client is too old: the next call is direct all the same."""
    recorded: list[Any] = []

    async def record_and_replace(original: Any, arguments: Any) -> Any:
        recorded.append(await lane.record_as_it_is(original, arguments))
        if len(recorded) == 1:
            await close_clients_of_this_loop()
        return recorded[-1]

    lane: Any = importlib.import_module("parallel_core.router.direct.lane")
    monkeypatch.setattr(lane, "record_as_it_is", lane.record, raising=False)
    monkeypatch.setattr(lane, "record", record_and_replace)

    async def main() -> None:
        with recording_provider(echo) as provider:
            way = await send(router_of(provider.url, {"group": [FAST]}), [ask("a"), ask("b")], True)
        assert recorded[0].client is not recorded[1].client
        assert (way.direct_calls, way.indirect_calls) == (2, {})

    run(main)
