"""What a batch says while none of its calls gets through, and while a few take very long.

In virtual time, so with a callable; ``run/test_run_waiting.py`` has a Router and a run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import parallel_core
from helpers.fake_router import FakeRouter, StatusError, requests
from helpers.hosts import in_virtual_time
from parallel_core import Progress, Retry, RunProgress
from parallel_core.control import watching
from parallel_core.router.router_facts import endpoint_of
from parallel_core.run.loop import is_near_the_end

REFUSED = "no connection to the server"


def snapshots_of(router: FakeRouter, number: int, *models: str, **options: Any) -> list[Progress]:
    """Run a batch in virtual time, in which all is answered at last."""
    seen = list[Progress]()

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            router.acompletion,
            list(requests(number, *models)),
            **{"concurrency": 8, "retry": Retry(), "on_progress": seen.append, **options},
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)
    assert seen[-1].finished
    assert not seen[-1].waiting
    return seen


def is_away_until(second: float, error: Exception, model: str | None = None) -> FakeRouter:
    def answer(asked: str, attempt: int) -> Exception | None:
        is_away = trio.current_time() < router.sent[0][0] + second
        return error if is_away and model in (None, asked) else None

    router = FakeRouter(answer)
    return router


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionRefusedError(), REFUSED), (StatusError(429), "too many requests (429)")],
    ids=["unreachable", "overloaded"],
)
@pytest.mark.parametrize(
    ("number", "options"),
    [(1, {}), (100, {}), (100, {"concurrency": "auto"}), (100, {"fair_by": "model"})],
    ids=["one request", "fixed", "auto", "fair"],
)
def test_a_batch_says_what_it_waits_for(
    error: Exception, reason: str, number: int, options: dict[str, Any]
) -> None:
    seen = snapshots_of(is_away_until(40, error), number, **options)
    waiting = [(p.elapsed, p.waiting[0]) for p in seen if p.waiting]
    assert {(one.model, one.reason) for _, one in waiting} == {("m", reason)}
    for elapsed, one in waiting:
        assert one.since == pytest.approx(elapsed, abs=0.2)
    # Each told time of the next attempt is one at which an attempt is made.
    told = {
        round(elapsed + one.next_try, 1) for elapsed, one in waiting if one.next_try is not None
    }
    assert 3 <= len(told) <= 30
    # It says so from the first second on, and at least once a second.
    times = [elapsed for elapsed, _ in waiting]
    assert times[0] < 1 < 39 < times[-1]
    assert max(after - before for before, after in itertools.pairwise(times)) < 1.3


def test_only_a_model_that_is_away_is_waited_for() -> None:
    router = is_away_until(30, ConnectionRefusedError(), "away")
    seen = snapshots_of(router, 200, "here", "away")
    assert {one.model for p in seen for one in p.waiting} == {"away"}


def test_a_batch_that_goes_well_waits_for_nothing() -> None:
    """A few 429 among many answers: nothing stands still."""
    calls = itertools.count()
    router = FakeRouter(lambda *_: StatusError(429) if next(calls) % 20 == 7 else None)
    seen = snapshots_of(router, 300)
    busy = [p for p in seen if p.in_flight > 1]
    assert not any(p.waiting for p in busy)


def test_the_last_request_waits_as_it_was_told() -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        return StatusError(429, retry_after="30") if len(router.sent) == 1 else None

    router = FakeRouter(answer)
    seen = snapshots_of(router, 20, concurrency=4)
    (first, *_) = [p for p in seen if p.waiting]
    (waiting,) = first.waiting
    assert first.done == 19
    assert waiting.reason == "too many requests (429)"
    assert waiting.next_try is not None
    assert 30 <= waiting.since + waiting.next_try <= 40


@pytest.mark.parametrize("hedge", [None, parallel_core.Hedge(after=20.0, max_extra=1.0)])
def test_calls_that_take_very_long_are_named(hedge: parallel_core.Hedge | None) -> None:
    class Slow(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 37":
                await anyio.sleep(59)
            return await super().acompletion(model, messages, **kwargs)

    seen = snapshots_of(Slow(lambda *_: None), 100, concurrency=4, hedge=hedge)
    named = [(p.elapsed, p.stragglers) for p in seen if p.stragglers]
    assert named
    for _, (straggler, *others) in named:
        assert not others
        assert straggler.index == 37
        assert straggler.median == pytest.approx(1)
    assert named[0][1][0].seconds == pytest.approx(10, abs=0.2)
    assert named[-1][1][0].seconds == pytest.approx(59.9, abs=0.5)


def test_short_calls_are_no_stragglers() -> None:
    class Uneven(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 60":
                await anyio.sleep(4.5)
            return await super().acompletion(model, messages, **kwargs)

    seen = snapshots_of(Uneven(lambda *_: None, seconds=0.01), 100, concurrency=4)
    assert not any(p.stragglers for p in seen)


def test_a_run_names_its_stragglers_by_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_LEAST_SECONDS", 0.05)
    with (tmp_path / "in.jsonl").open("w") as lines:
        for n in range(30):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{n}"}]}
            lines.write(json.dumps({"custom_id": f"id-{n}", "body": body}) + "\n")
    seen = list[RunProgress]()

    async def main() -> None:
        named = asyncio.Event()

        async def acompletion(messages: list[Any], **_: Any) -> Any:
            content = messages[0]["content"]
            if content == "3":
                await named.wait()
            return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}

        def on_run_progress(progress: RunProgress) -> None:
            seen.append(progress)
            if progress.stragglers:
                named.set()

        summary = await parallel_core.run_file(
            acompletion,
            tmp_path / "in.jsonl",
            tmp_path / "out.jsonl",
            on_run_progress=on_run_progress,
        )
        assert summary.ok

    asyncio.run(main())
    (straggler,) = next(progress.stragglers for progress in seen if progress.stragglers)
    assert straggler.custom_id == "id-3"
    assert straggler.seconds >= 0.05
    assert not seen[-1].stragglers


@pytest.mark.parametrize(
    ("total", "left", "stragglers", "is_near"),
    [(1000, 19, 1, True), (1000, 20, 1, False), (30, 1, 1, True), (30, 2, 1, False)],
)
def test_stragglers_matter_near_the_end(
    total: int, left: int, stragglers: int, is_near: bool
) -> None:
    assert is_near_the_end(total, left, stragglers) is is_near


class Deployments:
    """What an older Router tells of its deployments."""

    def __init__(self, *parameters: dict[str, str]) -> None:
        self._found = [{"model_name": "m", "litellm_params": one} for one in parameters]

    def get_model_list(self, model_name: str) -> list[Any]:
        return self._found


@pytest.mark.parametrize(
    ("parameters", "endpoint"),
    [
        ([{"api_base": "https://me:secret@host:8080/v1?key=secret"}], "https://host:8080"),
        ([{"base_url": "http://[::1]:80/v1"}], "http://[::1]:80"),
        ([{"api_base": "https://host/a"}, {"api_base": "https://host/b"}], "https://host"),
        ([{"api_base": "https://host"}, {"api_base": "https://other"}], None),
        ([{"model": "openai/gpt"}], None),
        ([{"api_base": "http://[oops"}], None),
        ([], None),
    ],
)
def test_an_endpoint_is_named_without_secrets(
    parameters: list[dict[str, str]], endpoint: str | None
) -> None:
    assert endpoint_of(Deployments(*parameters), "m") == endpoint
