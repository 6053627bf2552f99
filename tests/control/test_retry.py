"""What a batch sends again, and when."""

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
from helpers.retries import fails_first, run
from parallel_core import NotSentError, Progress, Retry


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
        # A pause of the Router is not an attempt that was sent.
        assert result.exception.attempts == min(1, result.attempts)
        again = " again after 1 attempt" if result.attempts else ""
        assert f"was not sent{again}: no connection to the server; the" in str(result.exception)

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


def test_a_timeout_is_sent_once_more_unless_the_server_hangs_for_all() -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        return TimeoutError() if model == "slow" else None

    router, results, _ = run(answer, 1, "slow")
    assert len(router.sent) == 2  # alone, it says nothing of others
    router, results, _ = run(answer, 6, "slow")
    assert not any(result.ok for result in results)
    assert len(router.sent) == 6 + 1  # where others hang, too, none is sent again but the first


@pytest.mark.parametrize(
    "others",
    [
        lambda *_: None,
        fails_first(StatusError(429, retry_after="9")),
        fails_first(ConnectionRefusedError(), 4),
    ],
    ids=["answered", "told to wait", "not connected"],
)
def test_a_timeout_is_sent_once_more_whatever_else_others_meet(others: Answer) -> None:
    class Slow(FakeRouter):
        async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
            if messages[0]["content"] == "m 0":
                calls.append(trio.current_time())
                await anyio.sleep(3)
                raise TimeoutError
            return await super().acompletion(model, messages, **kwargs)

    calls = list[float]()

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            Slow(others).acompletion, list(requests(4)), concurrency=4, retry=Retry()
        )
        assert sum(result.ok for result in results) == 3

    in_virtual_time(main)
    assert len(calls) == 2


def test_timeout_and_total_timeout_cut_a_wait_short() -> None:
    error = StatusError(429, retry_after="60")
    _, results, took = run(lambda *_: error, timeout=20)
    assert results[0].exception is error
    assert took < 1
    _, results, took = run(lambda *_: error, total_timeout=20)
    assert isinstance(results[0].exception, parallel_core.BatchTimeoutError)
    assert took == pytest.approx(20)


def test_a_wait_for_the_own_rate_limit_takes_nothing_from_the_timeout() -> None:
    limit = parallel_core.RateLimit(requests_per_minute=60, burst=1)
    fails = fails_first(StatusError(429))
    router, results, _ = run(fails, 30, concurrency=16, timeout=10, rate_limit=limit)
    assert all(result.ok for result in results)
    assert len(router.sent) == 60


def test_a_fail_fast_batch_raises_what_is_left_after_the_waits() -> None:
    with pytest.raises(StatusError):
        run(lambda *_: StatusError(429), 3, return_exceptions=False, retry=Retry(max_attempts=2))
    _, results, _ = run(fails_first(StatusError(429)), 3, return_exceptions=False)
    assert all(result.ok for result in results)


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


@pytest.mark.parametrize(
    ("option", "value"), [("max_attempts", 0), ("max_wait", -1.0), ("max_wait", float("nan"))]
)
def test_bad_values(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Retry.{option}"):
        Retry(**{option: value})  # type: ignore[arg-type]
