"""Trouble of the demo server: what it looks like, whom it meets, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from helpers.demo_clients import (
    body_for,
    command_app,
    post,
    post_stream,
    run,
    status_of,
)
from parallel_core.demo_server import (
    TROUBLE_KINDS,
    DemoServer,
    DemoServerSettings,
    DemoServerStats,
    DemoServerThread,
    Trouble,
    command,
)
from parallel_core.demo_server.stats import Ledger
from parallel_core.demo_server.trouble import TroubleSchedule
from parallel_core.failures import FailureKind, classify
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop

# The failure that litellm's client makes of it, the status of the answer, the seconds to wait.
FAILURES: dict[str, tuple[FailureKind, int | None, float | None]] = {
    "rate_limited": ("overloaded", 429, 7.5),
    "gemini_quota": ("overloaded", 429, 7.5),
    "overloaded": ("overloaded", 529, 7.5),
    "bad_gateway": ("overloaded", 502, 7.5),
    "unavailable": ("overloaded", 503, 7.5),
    "bad_key": ("account", 401, None),
    "forbidden": ("account", 403, None),
    "unknown_model": ("account", 404, None),
    "quota": ("account", 429, None),
    "no_credit": ("account", 400, None),
    "request_too_large": ("request", 429, None),
    "context_length": ("request", 400, None),
    "content_refused": ("request", 400, None),
    "server_error": ("unknown", 500, None),
    "reset": ("unreachable", None, None),
    "truncated": ("unreachable", None, None),
    "invalid_json": ("answer", None, None),
    "hang": ("timeout", None, None),
    "away": ("unreachable", None, None),
}


ANSWERS = {"empty", "no_text", "cut", "filtered"}


def test_every_kind_is_in_these_tests() -> None:
    assert {*FAILURES, *ANSWERS} == set(TROUBLE_KINDS)


def test_each_failure_is_what_it_says() -> None:
    """As litellm shows it: with a header or a body that says when, where there is one."""
    import litellm

    async def main(url: str) -> dict[str, tuple[object, ...]]:
        found = dict[str, tuple[object, ...]]()
        for kind in FAILURES:
            demo = {"fault": kind}
            if kind == "away":
                server.go_away()
            with pytest.raises(Exception) as raised:
                await litellm.acompletion(
                    model="openai/fast",
                    messages=[{"role": "user", "content": "hi"}],
                    api_base=url,
                    api_key="sk-test-0000",
                    max_retries=0,
                    timeout=1.0 if kind == "hang" else 30,
                    extra_body={"demo": demo},
                )
            failure = classify(raised.value)
            found[kind] = (failure.kind, failure.status_code, failure.retry_after)
        await close_clients_of_this_loop()
        return found

    settings = DemoServerSettings(latency_median=0.0, retry_after=7.5)
    with DemoServerThread(settings) as server:
        assert asyncio.run(main(server.url)) == FAILURES


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason", "length"),
    [("no_text", "length", 0), ("cut", "length", 2), ("filtered", "content_filter", 0)],
)
def test_odd_answers(kind: str, reason: str, length: int, stream: bool, tools: bool) -> None:
    demo = {"fault": kind}
    demo["tool_arguments" if tools else "reply"] = "one two three four"

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        if stream:
            *events, done = await post_stream(server, client, demo=demo)
            assert done == "[DONE]"
            choices = [json.loads(event)["choices"][0] for event in events]
            deltas = [choice["delta"] for choice in choices]
            texts = [delta.get("content", "") for delta in deltas]
            calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
            texts += [call["function"].get("arguments", "") for call in calls]
            choice = choices[-1]
        else:
            status, answer = await post(server, client, demo=demo)
            assert status == 200
            (choice,) = answer["choices"]
            texts = [choice["message"]["content"] or ""]
            calls = choice["message"].get("tool_calls", [])
            texts += [call["function"]["arguments"] for call in calls]
        assert choice["finish_reason"] == reason
        assert len("".join(texts).split()) == length

    stats = run(test)
    assert (stats.finished, stats.faults) == (1, {kind: 1})
    # Reasoning is paid for, and not shown.
    assert stats.completion_tokens == {"no_text": 4, "cut": 2, "filtered": 0}[kind]


def test_an_empty_answer_has_no_choices() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        status, answer = await post(server, client, demo={"fault": "empty"})
        assert (status, answer["choices"]) == (200, [])
        assert answer["usage"]["completion_tokens"] == 0
        assert await post_stream(server, client, demo={"fault": "empty"}) == ["[DONE]"]

    assert run(test).faults == {"empty": 2}


def test_a_wait_is_said_only_where_it_is_asked_for() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        for kind, status in (("rate_limited", 429), ("unavailable", 503), ("gemini_quota", 429)):
            for retry_after in (None, 0.25):
                server.set_trouble([Trouble(kind, retry_after=retry_after)])  # type: ignore[arg-type]
                url = f"{server.url}/chat/completions"
                async with client.post(url, json=body_for()) as response:
                    assert response.status == status
                    header = response.headers.get("Retry-After")
                    text = await response.text()
                if kind == "gemini_quota":
                    assert header is None
                    assert ('"retryDelay": "0.25s"' in text) is (retry_after is not None)
                else:
                    assert header == (None if retry_after is None else "0.25")

    run(test)


def statuses(trouble: Sequence[Trouble], requests: Sequence[tuple[str, str]], **of: Any) -> str:
    """One letter for each request of (model, key): . is an answer, else the kind's first."""
    now = 0.0

    def clock() -> float:
        return now

    schedule = TroubleSchedule(tuple(trouble), of.get("seed", 0), clock)
    letters = ""
    for model, key in requests:
        met = schedule.next_for(model, key or None)
        letters += "." if met is None else met.kind[0]
        now += of.get("step", 0.0)
    return letters


A, B = ("fast", "sk-a"), ("slow", "sk-b")


@pytest.mark.parametrize(
    ("trouble", "requests", "seen"),
    [
        ([Trouble("quota")], [A, B], "qq"),
        ([Trouble("quota", model="fast")], [A, B, A], "q.q"),
        ([Trouble("quota", key="sk-b")], [A, B, A, ("fast", "")], ".q.."),
        ([Trouble("quota", model="fast", key="sk-b")], [A, B, ("fast", "sk-b")], "..q"),
        ([Trouble("quota", count=2)], [A] * 4, "qq.."),
        ([Trouble("quota", after=1, count=2)], [A] * 4, ".qq."),
        ([Trouble("quota", key="sk-b", after=1)], [A, A, B, B], "...q"),
        ([Trouble("quota", count=1), Trouble("bad_key", count=1)], [A] * 3, "qb."),
        # Each counts all requests that are its own, so that one does not shift the other.
        ([Trouble("quota", count=1), Trouble("bad_key", after=1, count=1)], [A] * 3, "qb."),
        ([Trouble("away", after=1, seconds=1000.0)], [A] * 4, ".a.."),
    ],
)
def test_schedule(trouble: list[Trouble], requests: list[tuple[str, str]], seen: str) -> None:
    assert statuses(trouble, requests) == seen


def test_trouble_ends_some_seconds_after_it_began() -> None:
    for_two = Trouble("overloaded", after=2, seconds=2.0)
    assert statuses([for_two], [A] * 6, step=1.0) == "..oo.."


def test_a_share_is_drawn_with_the_seed() -> None:
    drawn = statuses([Trouble("quota", share=0.2)], [A] * 1000)
    assert drawn.count("q") == pytest.approx(200, abs=40)
    assert statuses([Trouble("quota", share=0.2)], [A] * 1000) == drawn
    assert statuses([Trouble("quota", share=0.2)], [A] * 1000, seed=1) != drawn
    few = statuses([Trouble("quota", share=0.2, count=5)], [A] * 1000)
    assert few.count("q") == 5
    assert drawn.startswith(few.rstrip("."))


def test_trouble_by_key_and_by_model_and_its_counts() -> None:
    settings = DemoServerSettings(
        latency_median=0.0,
        trouble=[Trouble("bad_key", key="sk-a"), Trouble("overloaded", model="slow", count=1)],
    )

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        assert await status_of(server, client, "sk-a") == 401
        assert [await status_of(server, client, "sk-b", "slow") for _ in range(2)] == [529, 200]
        assert await status_of(server, client) == 200
        # What a request asks for takes precedence.
        assert (await post(server, client, "slow", demo={"fault": "forbidden"}))[0] == 403
        url = server.url.replace("/v1", "/stats")
        async with client.get(url) as response:
            text = await response.text()
        assert "sk-" not in text
        for stats in (server.stats, DemoServerStats.from_json(json.loads(text))):
            assert stats.of_key("sk-a").faults == {"bad_key": 1}
            assert (stats.of_key("sk-b").accepted, stats.of_key("sk-b").faults) == (
                2,
                {"overloaded": 1},
            )
            assert stats.of_key("sk-c").accepted == 0
            assert len(stats.keys) == 2
        server.reset_stats()
        assert server.stats.keys == {}
        assert await status_of(server, client, "sk-b", "slow") == 529  # counted from nothing again

    stats = run(test, settings)
    assert stats.of_key("sk-b").accepted == 1


def test_a_key_is_found_in_each_header() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = f"{server.url}/chat/completions"
        for headers in (
            {"api-key": "sk-a"},
            {"x-api-key": "sk-a"},
            {"Authorization": "bearer sk-a"},
        ):
            async with client.post(url, json=body_for(), headers=headers) as response:
                assert response.status == 401
        async with client.post(url, json=body_for(), headers={"Authorization": "sk-a"}) as response:
            assert response.status == 200

    run(test, DemoServerSettings(latency_median=0.0, trouble=[Trouble("bad_key", key="sk-a")]))


def test_keys_that_are_counted_are_limited() -> None:
    ledger = Ledger(["fast"])
    for number in range(1005):
        ledger.begin("fast", f"key {number}")
        ledger.end("fast", f"key {number}", "finished")
    stats = ledger.snapshot(0)
    assert (stats.finished, len(stats.keys)) == (1005, 1000)


def test_trouble_can_be_changed_over_http() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = server.url.replace("/v1", "/trouble")

        async def change(body: Any) -> tuple[int, str]:
            async with client.post(url, json=body) as response:
                return response.status, await response.text()

        assert (await change({"trouble": [{"kind": "quota", "count": 1}]}))[0] == 200
        assert [await status_of(server, client) for _ in range(2)] == [429, 200]
        assert (await change({"trouble": [{"kind": "bad_key"}]}))[0] == 200
        wrong: list[tuple[Any, str]] = [
            ([], "the body must be"),
            ({"trouble": {}}, "the body must be"),
            ({"trouble": ["quota"]}, "must be an object"),
            ({"trouble": [{}]}, "trouble has a kind"),
            ({"trouble": [{"kind": "quota", "often": 1}]}, "after, count, share"),
            ({"trouble": [{"kind": "quotta"}]}, "rate_limited, gemini_quota"),
            ({"trouble": [{"kind": "quota", "model": "fsat"}]}, "models are: fast, slow, smart"),
        ]
        for body, words in wrong:
            status, text = await change(body)
            assert (status, words in text) == (400, True), text
        assert await status_of(server, client) == 401
        assert (await change({"trouble": []}))[0] == 200
        assert await status_of(server, client) == 200

    run(test)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quotta", "must be one of rate_limited, gemini_quota"),
        ("quota,often=1", "the names are model, key, after, count, share, seconds, retry_after"),
        ("quota,first", "NAME=VALUE"),
        ("quota,after=x", "after must be an integer, not 'x'"),
        ("quota,after=-1", "after must be an integer of at least 0"),
        ("quota,count=0", "count must be an integer of at least 1"),
        ("quota,share=0", "share must be a number above 0 and at most 1"),
        ("quota,share=1.5", "share must be a number above 0 and at most 1"),
        ("quota,share=nan", "share must be a number above 0 and at most 1"),
        ("quota,seconds=0", "seconds must be a finite number above 0"),
        ("quota,model=", "model must be a text that is not empty"),
        ("quota,retry_after=1", "only rate_limited, gemini_quota"),
        ("rate_limited,retry_after=-1", "retry_after must be a finite number of at least 0"),
        ("away", "give seconds"),
        ("quota,model=fsat", "models are: fast, slow, smart"),
    ],
)
def test_bad_trouble_is_refused_with_what_is_accepted(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DemoServerSettings(trouble=[Trouble.parse(text)])
    result = CliRunner().invoke(command_app(), ["demo-server", "--trouble", text])
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


def test_settings_take_trouble_only() -> None:
    with pytest.raises(ValueError, match=r"trouble\[1\] must be a Trouble"):
        DemoServerSettings(trouble=[Trouble("quota"), "quota"])  # type: ignore[list-item]


def test_options_mean_the_same_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[DemoServerSettings] = []

    async def serve(settings: DemoServerSettings, *_: Any) -> None:
        served.append(settings)

    monkeypatch.setattr(command, "_serve_until_stopped", serve)
    trouble = (
        Trouble("rate_limited", "fast", "sk=1", 3, 4, 1e-07, 0.1, 1 / 3),
        Trouble("away", seconds=2),
    )
    settings = DemoServerSettings(trouble=trouble)
    result = CliRunner().invoke(command_app(), ["demo-server", *settings.to_arguments()])
    assert result.exit_code == 0, result.output
    assert served == [settings]
    with pytest.raises(ValueError, match="must not contain a comma"):
        Trouble("quota", key="a,b").to_text()
