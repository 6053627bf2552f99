"""A failure of the account stops what it dooms, and nothing else."""

from collections import Counter
from typing import Any

import anyio
import pytest
import trio

import parallel_core
from helpers.fake_router import CoolingDownError, FakeRouter, StatusError, requests
from helpers.hosts import in_virtual_time
from helpers.retries import fails_first, run
from parallel_core import NotSentError, Retry, classify_failure


def test_a_wrong_key_stops_what_it_dooms() -> None:
    router, results, took = run(lambda *_: StatusError(401), 1000, concurrency=8)
    real = [result.exception for result in results if isinstance(result.exception, StatusError)]
    not_sent = [r.exception for r in results if isinstance(r.exception, NotSentError)]
    assert len(real) + len(not_sent) == 1000
    assert len(router.sent) == len(real) <= 8 + 3
    assert isinstance(not_sent[0].__cause__, StatusError)
    assert "the provider refused the key (401)" in str(not_sent[0])
    assert took < 1


def test_a_cooldown_that_the_account_caused_is_the_accounts_failure() -> None:
    calls = Counter[str]()

    def answer(model: str, attempt: int) -> Exception | None:
        calls["all"] += 1
        return StatusError(401) if calls["all"] == 1 else CoolingDownError()

    _, results, took = run(answer, 100, concurrency=4)
    assert {type(result.exception) for result in results} == {StatusError, NotSentError}
    assert all(
        isinstance(result.exception.__cause__, StatusError)
        for result in results
        if isinstance(result.exception, NotSentError)
    )
    assert took < 60  # one cooldown at most, if the first to fail does not know why yet


def test_other_models_do_not_suffer() -> None:
    _, results, _ = run(
        lambda model, _: StatusError(401) if model == "wrong" else None, 100, "wrong", "right"
    )
    assert [result.ok for result in results] == [False, True] * 50


@pytest.mark.parametrize("concurrency", [1, 16, "auto"])
def test_a_key_that_works_for_others_dooms_nothing(concurrency: Any) -> None:
    """Every third call says 404, of whatever; the others succeed, a second later."""
    calls = Counter[str]()

    def answer(model: str, attempt: int) -> Exception | None:
        calls["all"] += 1
        return StatusError(404) if calls["all"] % 3 == 0 else None

    _, results, _ = run(answer, 60, concurrency=concurrency)
    assert sum(result.ok for result in results) == 40
    assert not any(isinstance(result.exception, NotSentError) for result in results)


@pytest.mark.parametrize(("ends", "wait"), [(TimeoutError(), 30.0), (RuntimeError(), 6000.0)])
def test_a_call_that_does_not_end_proves_nothing_for_the_key(ends: Exception, wait: float) -> None:
    """The first call hangs, all others are refused; a minute later nothing more is sent."""

    class Hangs(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 0":
                await anyio.sleep(wait)
                raise ends
            return await super().acompletion(model, messages, **kwargs)

    async def main() -> None:
        began, router = trio.current_time(), Hangs(lambda *_: StatusError(401))
        batch = parallel_core.iter_parallel_acompletions(
            router.acompletion, requests(100), concurrency=4, retry=Retry()
        )
        async with batch:
            async for result in batch:
                if result.index:
                    assert trio.current_time() - began < min(wait, 60) + 1
                    not_sent = isinstance(result.exception, NotSentError)
                    assert isinstance(result.exception, NotSentError | StatusError)
                    assert not_sent == (result.index > 3)
        assert len(router.sent) == 3

    in_virtual_time(main)


@pytest.mark.parametrize("concurrency", [20, "auto"])
def test_a_key_that_is_revoked_is_refused_a_few_times(concurrency: Any) -> None:
    """Answers that were under way still come, and prove nothing for the requests after them."""
    refused = list[float]()
    began = 0.0

    async def call(model: str, messages: list[Any], **_: Any) -> Any:
        if trio.current_time() - began > 10:
            refused.append(trio.current_time())
            raise StatusError(401)
        number = int(messages[0]["content"].split()[1])
        await anyio.sleep(1 + number % 20)
        return {"choices": [{"message": {"content": "m"}}]}

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        results = await parallel_core.parallel_acompletions(
            call, list(requests(500)), concurrency=concurrency, retry=Retry()
        )
        not_sent = sum(isinstance(result.exception, NotSentError) for result in results)
        assert not_sent == 500 - sum(result.ok for result in results) - len(refused)

    in_virtual_time(main)
    assert 3 <= len(refused) <= 20 + 3


def test_a_pause_of_the_router_does_not_lengthen_the_suspicion() -> None:
    """One call hangs, three are refused, and the Router pauses after a failure of another kind."""
    calls = Counter[str]()
    ended = list[float]()

    async def call(model: str, messages: list[Any], **_: Any) -> Any:
        calls["all"] += 1
        number = calls["all"]
        if number == 1:
            await anyio.sleep(6000)
        if number == 5:
            await anyio.sleep(1)
            raise StatusError(503)
        if number == 6:
            await anyio.sleep(2)
            pause = CoolingDownError()
            pause.cooldown_time = 500.0
            raise pause
        raise StatusError(401)

    async def main() -> None:
        began = trio.current_time()
        batch = parallel_core.iter_parallel_acompletions(
            call, list(requests(20)), concurrency=6, retry=Retry()
        )
        async with batch:
            async for _ in batch:
                ended.append(trio.current_time() - began)

    in_virtual_time(main)
    assert ended[-2] < 62 < 6000 <= ended[-1]


def test_the_last_failure_beside_a_wrong_key_does_not_wait() -> None:
    async def call(model: str, messages: list[Any], **_: Any) -> Any:
        if messages[0]["content"] == "m 0":
            await anyio.sleep(5)
            raise StatusError(503, retry_after="500")
        raise StatusError(401)

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_acompletions(
            call, list(requests(20)), concurrency=4, retry=Retry()
        )
        assert sum(isinstance(result.exception, StatusError) for result in results) == 3
        assert trio.current_time() - began < 6

    in_virtual_time(main)


@pytest.mark.parametrize("options", [{"concurrency": "auto"}, {"fair_by": "model"}])
def test_with_other_controls(options: dict[str, Any]) -> None:
    router, results, _ = run(lambda *_: StatusError(401), 200, **options)
    assert sum(isinstance(result.exception, NotSentError) for result in results) > 150
    router, results, _ = run(fails_first(StatusError(429)), 50, **options)
    assert all(result.ok for result in results)
    assert all(count == 2 for count in router.of_text.values())


def test_what_waits_long_ends_when_its_model_is_stopped() -> None:
    def answer(model: str, attempt: int) -> Exception:
        return StatusError(401) if len(router.sent) > 1 else StatusError(429, retry_after="300")

    router = FakeRouter(answer)

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_acompletions(
            router.acompletion, list(requests(10)), concurrency=1, retry=Retry()
        )
        assert [classify_failure(r.exception).kind for r in results if r.exception] == [
            "account"
        ] * 10
        assert trio.current_time() - began < 10

    in_virtual_time(main)
