"""An outage: what a batch holds back until the server is there again."""

import math
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio

import parallel_core
from helpers.fake_router import FakeRouter, StatusError, requests
from helpers.hosts import in_virtual_time
from helpers.retries import fails_first, run
from parallel_core import NotSentError, Retry
from parallel_core.control.outages import Gate
from parallel_core.failures import classify


def test_an_outage_costs_nothing() -> None:
    """The server is away for five minutes: few calls find out, and every request is answered."""

    def answer(model: str, attempt: int) -> Exception | None:
        return ConnectionRefusedError() if trio.current_time() < began + 300 else None

    began = 0.0

    router = FakeRouter(answer)

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        results = await parallel_core.parallel_acompletions(
            router.acompletion, list(requests(500)), concurrency=16, retry=Retry()
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)
    probes = len(router.sent) - 500
    assert probes < 16 + 16 + 12  # those in flight, those after the first second, one at a time
    assert router.most_in_flight <= 16


def test_other_models_go_on_during_an_outage() -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        return ConnectionRefusedError() if model == "dead" and trio.current_time() < end else None

    end = 0.0
    router = FakeRouter(answer)
    done = dict[int, float]()

    async def main() -> None:
        nonlocal end
        end = trio.current_time() + 200
        batch = parallel_core.iter_parallel_acompletions(
            router.acompletion, requests(200, "dead", "fine"), concurrency=8, retry=Retry()
        )
        async with batch:
            async for result in batch:
                assert result.ok
                done[result.index] = trio.current_time()

    in_virtual_time(main)
    assert len(done) == 200
    assert max(at for index, at in done.items() if index % 2) < end - 100


def test_nothing_gets_through_for_too_long() -> None:
    router, results, took = run(
        lambda *_: ConnectionRefusedError(), 300, retry=Retry(max_wait=60), concurrency=4
    )
    kinds = Counter(type(result.exception) for result in results)
    assert kinds[NotSentError] > 280
    assert isinstance(
        next(r.exception for r in results if isinstance(r.exception, NotSentError)).__cause__,
        ConnectionRefusedError,
    )
    assert len(router.sent) < 60
    assert took < 200


def test_a_few_rejections_do_not_close_the_gate() -> None:
    """One in five calls is rejected: the others go on at full speed."""
    calls = Counter[str]()

    def answer(model: str, attempt: int) -> Exception | None:
        calls["all"] += 1
        return StatusError(429) if calls["all"] % 5 == 0 else None

    _, results, took = run(answer, 400, concurrency=8)
    assert all(result.ok for result in results)
    assert took < 400 / 8 * 1.1 + 10


def test_more_slots_than_the_provider_takes() -> None:
    """It takes 10 calls at a time, and the batch has 32 slots: all is answered."""
    router = FakeRouter(lambda *_: None)

    def answer(model: str, attempt: int) -> Exception | None:
        return StatusError(429) if router.in_flight > 10 else None

    router.answer = answer

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_acompletions(
            router.acompletion, list(requests(300)), concurrency=32, retry=Retry()
        )
        assert all(result.ok for result in results)
        assert trio.current_time() - began < 2 * 300 / 10

    in_virtual_time(main)


def test_a_gate_opens_although_the_last_call_in_flight_says_nothing() -> None:
    """The server is away; the only call that was under way ends in an error of its own."""

    class Odd(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 0":
                await anyio.sleep(30)
                raise RuntimeError("a bug")
            return await super().acompletion(model, messages, **kwargs)

    async def main() -> None:
        end = trio.current_time() + 40
        router = Odd(lambda *_: ConnectionRefusedError() if trio.current_time() < end else None)
        with trio.fail_after(1000):
            results = await parallel_core.parallel_acompletions(
                router.acompletion, list(requests(30)), concurrency=9, retry=Retry()
            )
        assert sum(result.ok for result in results) == 29

    in_virtual_time(main)


@pytest.mark.parametrize("concurrency", [12, "auto"])
@pytest.mark.parametrize("hanging", ["in flight", "the next"])
def test_a_call_that_hangs_holds_nobody_for_long(hanging: str, concurrency: Any) -> None:
    """The server is away for three seconds; a call from before, or the first one after, hangs."""

    hung, began = list[str](), 0.0
    ended = dict[int, float]()

    async def call(model: str, messages: list[Any], **_: Any) -> Any:
        text = messages[0]["content"]
        is_away = trio.current_time() - began < 3
        if not hung and is_away == (hanging == "in flight"):
            hung.append(text)
            await anyio.sleep(6000)  # a Router's timeout
            raise TimeoutError
        if is_away:
            await anyio.sleep(0.01)
            raise ConnectionRefusedError
        await anyio.sleep(1)
        return {"choices": [{"message": {"content": text}}]}

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        batch = parallel_core.iter_parallel_acompletions(
            call, requests(50), concurrency=concurrency, retry=Retry()
        )
        async with batch:
            async for result in batch:
                assert result.ok
                ended[result.index] = trio.current_time() - began

    in_virtual_time(main)
    (last,) = (ended.pop(int(text.split()[1])) for text in hung)
    assert len(ended) == 49
    assert max(ended.values()) < 60 + 30
    assert last > 6000


@pytest.mark.parametrize("concurrency", [16, "auto"])
def test_a_wait_that_is_too_long_for_a_request_holds_no_other_model(concurrency: Any) -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        return StatusError(429, retry_after="3600") if model == "a" else None

    models = [*"b" * 15, *"aa", *"b" * 43]
    _, results, took = run(answer, 60, *models, seconds=10.0, concurrency=concurrency)
    assert [result.request.model for result in results if not result.ok] == ["a", "a"]
    assert took < 100


def test_only_one_call_at_a_time_looks_for_the_end_of_an_outage() -> None:
    """Beside one that hangs for two minutes, and also when that has ended."""
    running, most = Counter[str](), list[tuple[float, int]]()
    began = 0.0

    async def call(model: str, messages: list[Any], **_: Any) -> Any:
        is_first = not most
        running["all"] += 1
        now = trio.current_time() - began
        most.append((now, running["all"]))
        try:
            await anyio.sleep(120 if is_first else 0.01 if now < 60 else 50)
            if now < 500:
                raise ConnectionRefusedError
            return {"choices": [{"message": {"content": "m"}}]}
        finally:
            running["all"] -= 1

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        results = await parallel_core.parallel_acompletions(
            call, list(requests(50)), concurrency=12, retry=Retry()
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)
    assert max(number for at, number in most if 60 < at < 120) == 2
    assert max(number for at, number in most if 120 < at < 500) == 1


def test_an_adaptive_limit_ends_an_outage_whose_requests_give_up_at_once() -> None:
    error = StatusError(503, retry_after="30")
    _, results, took = run(lambda *_: error, 200, concurrency="auto", timeout=20)
    assert 600 <= took < 700
    assert sum(isinstance(result.exception, NotSentError) for result in results) > 100


def test_calls_that_hang_after_the_first_answer_hold_nobody_for_long() -> None:
    """After an outage one call gets through, and the next two hang."""
    answered, hung = list[float](), list[str]()
    began = 0.0

    async def call(model: str, messages: list[Any], **_: Any) -> Any:
        if trio.current_time() - began < 3:
            await anyio.sleep(0.01)
            raise ConnectionRefusedError
        if answered and len(hung) < 2:
            hung.append(messages[0]["content"])
            await anyio.sleep(6000)
            raise RuntimeError
        await anyio.sleep(1)
        answered.append(trio.current_time() - began)
        return {"choices": [{"message": {"content": "m"}}]}

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        await parallel_core.parallel_acompletions(
            call, list(requests(50)), concurrency=12, retry=Retry()
        )

    in_virtual_time(main)
    assert len(answered) == 48
    assert max(answered) < 60 + 30


def test_two_failures_beside_slow_calls_are_no_outage() -> None:
    """Answers take a quarter of an hour, and two requests are refused in that time."""

    class Slow(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 1" and not self.of_text["m 1"]:
                await anyio.sleep(700)
            return await super().acompletion(model, messages, **kwargs)

    async def main() -> None:
        router = Slow(fails_first(StatusError(429, retry_after="1")), 900)
        results = await parallel_core.parallel_acompletions(
            router.acompletion, list(requests(2)), concurrency=2, retry=Retry()
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)


def test_a_time_without_requests_is_no_outage() -> None:
    """A request fails, nothing comes for ten minutes, and the next one gets a 429."""

    class Slow(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 0":
                await anyio.sleep(100)
            return await super().acompletion(model, messages, **kwargs)

    async def source() -> AsyncIterator[Any]:
        slow, *others = requests(20)
        yield slow
        await anyio.sleep(700)
        for other in others:
            yield other

    async def main() -> None:
        router = Slow(fails_first(StatusError(429, retry_after="1")))
        batch = parallel_core.iter_parallel_acompletions(
            router.acompletion, source(), concurrency=4, retry=Retry(), timeout=5
        )
        async with batch:
            failed = [result.index async for result in batch if not result.ok]
        assert failed == [0]

    in_virtual_time(main)


def test_the_patience_of_a_gate_begins_anew_with_what_it_waits_for() -> None:
    def fails(error: Exception, at: float) -> float:
        gate.begins(at - 1, none_waits=False)
        gate.failed(classify(error), error, at - 1, at)
        gate.ended(at - 1, at)
        return gate.waits_since

    gate = Gate(concurrency=16, max_wait=600, closes=True)
    gate.begins(0, none_waits=False)  # it hangs
    assert [fails(StatusError(401), at) for at in (1, 2, 3, 4)] == [-math.inf, -math.inf, 3, 3]
    assert gate.is_suspected
    gate.begins(5, none_waits=False)
    gate.got_through(5, 6)
    gate.ended(5, 6)
    assert (gate.is_suspected, gate.waits_since) == (False, 6)
    assert [fails(StatusError(503), at) for at in range(11, 20)] == [*[6] * 7, 18, 18]
    assert gate.draining


def test_an_outage_where_the_order_cannot_hold_a_model_back() -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        return ConnectionRefusedError() if trio.current_time() < end else None

    router = FakeRouter(answer)
    end = 0.0

    async def main() -> None:
        nonlocal end
        end = trio.current_time() + 200
        results = await parallel_core.parallel_acompletions(
            router.acompletion,
            list(requests(100)),
            concurrency=8,
            retry=Retry(),
            fair_by=lambda request: request["messages"][0]["content"][-1],
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)
    assert len(router.sent) < 100 + 60
