"""What a batch sends again, holds back, and does not send at all.

In virtual time, so with a callable: a Router's calls run on an asyncio loop of their own.
"""

import itertools
import math
from collections import Counter
from typing import Any

import anyio
import pytest
import trio

import parallel_core
from helpers.fake_router import Answer, CoolingDownError, FakeRouter, StatusError, requests
from helpers.hosts import in_virtual_time
from parallel_core import NotSentError, Progress, Retry, RouterParallelResult, classify_failure
from parallel_core.control.failover import Failover


def run(
    answer: Answer, number: int = 1, *models: str, seconds: float = 1.0, **options: Any
) -> tuple[FakeRouter, list[RouterParallelResult], float]:
    """Run a batch in virtual time; return its Router, its results by index, and its seconds."""
    router = FakeRouter(answer, seconds)
    options = {"concurrency": 8, "retry": Retry(), **options}
    results = list[RouterParallelResult]()
    took = 0.0

    async def main() -> None:
        nonlocal took
        began = trio.current_time()
        results.extend(
            await parallel_core.parallel_acompletions(
                router.acompletion, list(requests(number, *models)), **options
            )
        )
        took = trio.current_time() - began

    in_virtual_time(main)
    results.sort(key=lambda result: result.index)
    return router, results, took


def fails_first(error: Exception, times: int = 1) -> Answer:
    return lambda model, attempt: error if attempt <= times else None


@pytest.mark.parametrize(
    "error",
    [StatusError(429), StatusError(503), CoolingDownError(), ConnectionRefusedError()],
    ids=repr,
)
def test_what_may_pass_is_sent_again(error: Exception) -> None:
    router, results, _ = run(fails_first(error))
    assert results[0].ok
    assert len(router.sent) == 2


@pytest.mark.parametrize(
    "error",
    [StatusError(400), StatusError(413), StatusError(401), RuntimeError("a bug"), ImportError()],
    ids=repr,
)
def test_what_will_not_pass_is_sent_once(error: Exception) -> None:
    router, results, _ = run(fails_first(error))
    assert results[0].exception is error
    assert len(router.sent) == 1


def test_a_server_error_is_sent_as_often_as_the_router_would() -> None:
    for num_retries, attempts in ((None, 1), (0, 1), (2, 3)):
        router = FakeRouter(lambda *_: StatusError(500), 0.0)

        async def acompletion(router: FakeRouter = router, **arguments: Any) -> Any:
            return await router.acompletion(**arguments)

        acompletion.num_retries = num_retries  # type: ignore[attr-defined]

        async def main(call: Any = acompletion) -> None:
            await parallel_core.parallel_acompletions(call, list(requests(1)), retry=Retry())

        in_virtual_time(main)
        assert len(router.sent) == attempts


def test_a_told_wait_is_kept() -> None:
    router, results, _ = run(fails_first(StatusError(429, retry_after="37")))
    assert results[0].ok
    waited = router.sent[1][0] - router.sent[0][0]
    assert 37 <= waited <= 37 * 1.25 + 1


def test_a_request_waits_without_a_slot() -> None:
    """The first request is told to wait for 30 s; the others go through its slot meanwhile."""
    slow = StatusError(429, retry_after="30")
    router, results, _ = run(_first_call_fails(slow), 5, concurrency=1)
    assert all(result.ok for result in results)
    assert [at for at, _ in router.sent][-1] > 30
    assert [at for at, _ in router.sent][-2] < 6


def _first_call_fails(error: Exception) -> Answer:
    calls = Counter[str]()

    def answer(model: str, attempt: int) -> Exception | None:
        calls["all"] += 1
        return error if calls["all"] == 1 else None

    return answer


def test_attempts_and_waits_are_bounded() -> None:
    router, results, _ = run(lambda *_: StatusError(429), 1, retry=Retry(max_attempts=3))
    assert isinstance(results[0].exception, StatusError)
    assert len(router.sent) == 3
    asks_too_much = StatusError(429, retry_after="700")
    router, results, took = run(lambda *_: asks_too_much)
    assert results[0].exception is asks_too_much
    assert len(router.sent) == 1
    assert took < 1
    assert "".join(asks_too_much.__notes__) == (
        "parallel_core: not sent again: the provider asks to wait 700 s, more than Retry.max_wait "
        "(600 s; --max-outage of a run) allows: raise it"
    )
    router, results, _ = run(fails_first(StatusError(429, retry_after="600")))
    assert results[0].ok  # the jitter does not make it exceed max_wait


@pytest.mark.parametrize("concurrency", [8, "auto"])
@pytest.mark.parametrize("number", [1, 60])
def test_a_pause_of_the_router_is_shown_as_what_caused_it(concurrency: Any, number: int) -> None:
    def refused_first(_: str, attempt: int) -> Exception | None:
        return ConnectionRefusedError() if attempt == 1 else CoolingDownError()

    options = {"concurrency": concurrency, "retry": Retry(max_wait=4)}
    _, results, took = run(refused_first, number, **options)
    assert took < 4
    for result in results:
        assert isinstance(result.exception, NotSentError)
        assert isinstance(result.exception.__cause__, ConnectionRefusedError)
        assert result.exception.too_long.startswith("the Router asks to wait 5 s, more than Retry")

    def back_soon(model: str, attempt: int) -> Exception | None:
        return refused_first(model, attempt) if trio.current_time() < back_at else None

    shown = list[Progress]()
    back_at = math.inf

    def on_progress(progress: Progress) -> None:
        nonlocal back_at
        back_at = min(back_at, trio.current_time() + 20)
        shown.append(progress)

    _, results, _ = run(back_soon, number, concurrency=concurrency, on_progress=on_progress)
    assert all(result.ok for result in results)
    reasons = {waiting.reason for progress in shown for waiting in progress.waiting}
    assert reasons == {"no connection to the server"}


@pytest.mark.parametrize("concurrency", [8, "auto"])
def test_a_told_wait_beyond_max_wait_is_not_waited_for(concurrency: Any) -> None:
    options = {"concurrency": concurrency, "retry": Retry(max_wait=100)}
    error = StatusError(503, retry_after="1800")
    router, results, took = run(lambda *_: error, 60, **options)
    assert took < 1
    assert len(router.sent) < 40
    not_sent = results[-1].exception
    assert isinstance(not_sent, NotSentError)
    assert not_sent.__cause__ is error
    assert "the provider asks to wait 1,800 s, more than Retry.max_wait (100 s" in str(not_sent)
    assert "longer than" not in str(not_sent)

    # The same after a failure of another kind, when an adaptive limit holds the calls already.
    def refused_first(_: str, attempt: int) -> Exception:
        return ConnectionRefusedError() if attempt == 1 else error

    router, results, took = run(refused_first, 60, **options)
    assert took < 60
    assert {type(result.exception) for result in results} <= {NotSentError, StatusError}
    # Where others get through, it is that request's own.
    slow = StatusError(429, retry_after="1800")
    router, results, _ = run(
        lambda model, _: slow if model == "slow" else None, 20, "slow", *"m" * 9
    )
    assert sum(result.ok for result in results) == 18


def test_none_turns_it_off() -> None:
    router, results, _ = run(fails_first(StatusError(429)), retry=None)
    assert not results[0].ok
    assert len(router.sent) == 1


def test_a_timeout_is_sent_once_more_while_others_get_through() -> None:
    calls = Counter[str]()

    def answer(model: str, attempt: int) -> Exception | None:
        return TimeoutError() if model == "slow" else None

    router, results, _ = run(answer, 1, "slow")
    assert len(router.sent) == 1  # nothing else got through

    class Slow(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 0":
                calls["slow"] += 1
                await anyio.sleep(3)
                raise TimeoutError
            return await super().acompletion(model, messages, **kwargs)

    async def main() -> None:
        slow = Slow(lambda *_: None)
        results = await parallel_core.parallel_acompletions(
            slow.acompletion, list(requests(20)), concurrency=4, retry=Retry()
        )
        assert sum(result.ok for result in results) == 19
        assert calls["slow"] == 2

    in_virtual_time(main)
    assert results


def test_timeout_and_deadline_cut_a_wait_short() -> None:
    error = StatusError(429, retry_after="60")
    _, results, took = run(lambda *_: error, timeout=20)
    assert results[0].exception is error
    assert took < 1
    _, results, took = run(lambda *_: error, deadline=20)
    assert isinstance(results[0].exception, parallel_core.BatchDeadlineError)
    assert took == pytest.approx(20)


def test_a_fail_fast_batch_raises_what_is_left_after_the_waits() -> None:
    with pytest.raises(StatusError):
        run(lambda *_: StatusError(429), 3, return_exceptions=False, retry=Retry(max_attempts=2))
    _, results, _ = run(fails_first(StatusError(429)), 3, return_exceptions=False)
    assert all(result.ok for result in results)


# --- the gate ---


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


# --- the account ---


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


def test_a_key_that_works_for_others_dooms_nothing() -> None:
    """Every third call says 404, of whatever; the others succeed."""
    calls = Counter[str]()

    def answer(model: str, attempt: int) -> Exception | None:
        calls["all"] += 1
        return StatusError(404) if calls["all"] % 3 == 0 else None

    _, results, _ = run(answer, 60, concurrency=1)
    assert sum(result.ok for result in results) == 40
    assert not any(isinstance(result.exception, NotSentError) for result in results)


@pytest.mark.parametrize("options", [{"concurrency": "auto"}, {"fair_by": "model"}])
def test_with_other_controls(options: dict[str, Any]) -> None:
    router, results, _ = run(lambda *_: StatusError(401), 200, **options)
    assert sum(isinstance(result.exception, NotSentError) for result in results) > 150
    router, results, _ = run(fails_first(StatusError(429)), 50, **options)
    assert all(result.ok for result in results)
    assert all(count == 2 for count in router.of_text.values())


def test_waits_without_a_told_one_double() -> None:
    router, _, _ = run(lambda *_: StatusError(429), 1, retry=Retry(max_attempts=5))
    times = [at for at, _ in router.sent]
    for number, (before, after) in enumerate(itertools.pairwise(times)):
        assert 2**number <= after - before <= 2**number * 1.25 + 0.1


def test_waits_hardly_grow_while_most_attempts_get_through() -> None:
    router = FakeRouter(lambda *_: None)
    times = list[float]()

    async def acompletion(model: str, messages: list[Any], **kwargs: Any) -> Any:
        if messages[0]["content"] != "m 150":
            return await router.acompletion(model, messages, **kwargs)
        times.append(trio.current_time())
        if len(times) <= 5:
            raise StatusError(429)
        return {"choices": []}

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            acompletion, list(requests(400)), concurrency=8, retry=Retry()
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)
    assert len(times) == 6
    assert times[-1] - times[0] < 16  # with waits for a slot; 31 and more where they double


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


def failover_of_three() -> Failover:
    orders = {"m": dict.fromkeys("abc", 0.0)}
    return Failover(lambda model: orders.get(model, {}), lambda *_: None)


def failed_on(deployment: str, status: int, **headers: str) -> StatusError:
    error = StatusError(status, **headers)
    error.failed_deployment_id = deployment  # type: ignore[attr-defined]
    return error


def test_a_request_goes_to_a_deployment_that_it_has_not_tried() -> None:
    failover = failover_of_three()
    error = failed_on("a", 429)
    assert failover.failed("m", classify_failure(error), error, 0.0) == "a"
    assert failover.passed_over("m", {"a"}, 0.0) == {"a"}
    assert failover.passed_over("m", frozenset(), 0.0) == set()  # others may ask it
    assert failover.is_one_left("m", {"a", "b"}, 0.0)
    assert not failover.is_one_left("m", {"a", "b", "c"}, 0.0)
    assert failover.passed_over("m", {"a", "b", "c"}, 0.0) == set()


@pytest.mark.parametrize(
    ("error", "seconds"), [(failed_on("a", 401), 60.0), (failed_on("a", 429, retry_after="7"), 7.0)]
)
def test_a_deployment_pauses_for_all_requests(error: StatusError, seconds: float) -> None:
    failover = failover_of_three()
    failover.failed("m", classify_failure(error), error, 0.0)
    assert failover.passed_over("m", frozenset(), seconds - 1) == {"a"}
    assert failover.passed_over("m", {"b"}, seconds - 1) == {"a", "b"}
    # A pause is kept before what a request has tried; the last one that is left is asked.
    assert failover.passed_over("m", {"b", "c"}, seconds - 1) == {"a"}
    assert not failover.is_one_left("m", {"b", "c"}, seconds - 1)
    assert failover.passed_over("m", frozenset(), seconds) == set()
    assert failover.passed_over("other", {"a"}, seconds - 1) == set()
    for other in "abc":
        again = failed_on(other, 401)
        failover.failed("m", classify_failure(again), again, 0.0)
    assert failover.passed_over("m", frozenset(), seconds - 1) == set()


def test_a_deployment_of_a_fallback_is_another_models() -> None:
    failover = failover_of_three()
    error = failed_on("x", 401)
    assert not failover.failed("m", classify_failure(error), error, 0.0)
    assert not failover.failed("m", classify_failure(StatusError(401)), StatusError(401), 0.0)
    assert failover.passed_over("m", frozenset(), 0.0) == set()


def test_a_deployment_that_fails_in_a_row_is_asked_by_one_request_at_a_time() -> None:
    failover = failover_of_three()
    error = failed_on("a", 529)

    def fail(now: float, times: int = 1) -> None:
        for _ in range(times):
            failover.failed("m", classify_failure(error), error, now)

    def passed_over(now: float, index: int) -> set[str]:
        return set(failover.passed_over("m", frozenset(), now, index))

    fail(0.0, 2)
    assert passed_over(0.0, 0) == set()
    fail(0.0, 8)  # calls that were in flight together
    assert passed_over(0.9, 0) == {"a"}
    assert [passed_over(1.0, index) for index in (1, 2, 1)] == [set(), {"a"}, set()]
    failover.ended(1)  # another deployment has answered it
    assert passed_over(1.0, 2) == set()
    fail(2.0)
    failover.ended(2)
    assert [passed_over(at, 3) for at in (3.9, 4.0)] == [{"a"}, set()]  # twice as long
    failover.ended(3)
    for _ in range(10):
        fail(now := failover_end(failover))
    assert failover_end(failover) - now == 60.0
    failover.got_through("m", "an answer of nobody knows whom", frozenset(), now + 60, now + 61)
    assert passed_over(now + 1, 4) == set()


def test_a_refused_key_beside_a_busy_deployment() -> None:
    failover = failover_of_three()
    refused, busy = failed_on("a", 401), failed_on("b", 429, retry_after="30")
    for error in (refused, failed_on("c", 401)):
        failover.failed("m", classify_failure(error), error, 0.0)
    assert failover.may_come_back("m") is None
    failover.failed("m", classify_failure(busy), busy, 0.0)
    assert failover.may_come_back("m") == (classify_failure(busy), busy)
    assert failover.passed_over("m", frozenset(), 1.0) == {"a", "c"}  # all pause


def failover_end(failover: Failover) -> float:
    """Return when a deployment is asked again, in whole seconds."""
    return next(float(at) for at in range(10_000) if not failover.passed_over("m", set(), at, None))


def test_failures_that_the_router_hides_behind_an_answer() -> None:
    """It falls back to a deployment of a higher order, and to another model."""
    orders = {"m": {"first": 1, "second": 2, "third": 3}}
    for answering, passed in (("second", {"first"}), ("other", {"first", "second", "third"})):
        failover = Failover(
            lambda model: orders.get(model, {}),
            lambda *_: None,
            lambda value: (value, True),
            lambda model: True,
        )
        for _ in range(3):
            failover.got_through("m", answering, frozenset(), 0.0, 0.0)
        assert failover.passed_over("m", frozenset(), 0.5) == passed
        assert failover.passed_over("other", frozenset(), 0.5) == set()


def test_a_timeout_of_nobody_knows_whom_is_of_the_one_that_never_answers() -> None:
    orders = {"m": {"a": 0.0, "b": 0.0}}
    failover = Failover(lambda model: orders[model], lambda *_: None, lambda value: (value, False))
    error = parallel_core.RequestTimeoutError(0, "m", 1.0)
    for now in range(3):
        failover.failed("m", classify_failure(error), error, now)
        failover.got_through("m", "b", frozenset(), now, now)
    assert failover.passed_over("m", frozenset(), 2.5) == {"a"}


@pytest.mark.parametrize(
    ("option", "value"), [("max_attempts", 0), ("max_wait", -1.0), ("max_wait", float("nan"))]
)
def test_bad_values(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Retry.{option}"):
        Retry(**{option: value})  # type: ignore[arg-type]
