"""Which deployment is asked when another one has failed."""

import pytest

import parallel_core
from helpers.fake_router import StatusError
from parallel_core import classify_failure
from parallel_core.control.failover import Failover


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
    assert failover.excluded("m", {"a"}, 0.0) == {"a"}
    assert failover.excluded("m", frozenset(), 0.0) == set()  # others may ask it
    assert failover.has_untried("m", {"a", "b"}, 0.0)
    assert not failover.has_untried("m", {"a", "b", "c"}, 0.0)
    assert failover.excluded("m", {"a", "b", "c"}, 0.0) == set()


@pytest.mark.parametrize(
    ("error", "seconds"), [(failed_on("a", 401), 60.0), (failed_on("a", 429, retry_after="7"), 7.0)]
)
def test_a_deployment_pauses_for_all_requests(error: StatusError, seconds: float) -> None:
    failover = failover_of_three()
    failover.failed("m", classify_failure(error), error, 0.0)
    assert failover.excluded("m", frozenset(), seconds - 1) == {"a"}
    assert failover.excluded("m", {"b"}, seconds - 1) == {"a", "b"}
    # A pause is kept before what a request has tried; the last one that is left is asked.
    assert failover.excluded("m", {"b", "c"}, seconds - 1) == {"a"}
    assert not failover.has_untried("m", {"b", "c"}, seconds - 1)
    assert failover.excluded("m", frozenset(), seconds) == set()
    assert failover.excluded("other", {"a"}, seconds - 1) == set()
    for other in "abc":
        again = failed_on(other, 401)
        failover.failed("m", classify_failure(again), again, 0.0)
    assert failover.excluded("m", frozenset(), seconds - 1) == set()


def test_a_deployment_of_a_fallback_is_another_models() -> None:
    failover = failover_of_three()
    error = failed_on("x", 401)
    assert not failover.failed("m", classify_failure(error), error, 0.0)
    assert not failover.failed("m", classify_failure(StatusError(401)), StatusError(401), 0.0)
    assert failover.excluded("m", frozenset(), 0.0) == set()


def test_a_deployment_that_fails_in_a_row_is_asked_by_one_request_at_a_time() -> None:
    failover = failover_of_three()
    error = failed_on("a", 529)

    def fail(now: float, times: int = 1) -> None:
        for _ in range(times):
            failover.failed("m", classify_failure(error), error, now)

    def excluded(now: float, index: int) -> set[str]:
        return set(failover.excluded("m", frozenset(), now, index))

    fail(0.0, 2)
    assert excluded(0.0, 0) == set()
    fail(0.0, 8)  # calls that were in flight together
    assert excluded(0.9, 0) == {"a"}
    assert [excluded(1.0, index) for index in (1, 2, 1)] == [set(), {"a"}, set()]
    failover.ended(1)  # another deployment has answered it
    assert excluded(1.0, 2) == set()
    fail(2.0)
    failover.ended(2)
    assert [excluded(at, 3) for at in (3.9, 4.0)] == [{"a"}, set()]  # twice as long
    failover.ended(3)
    for _ in range(10):
        fail(now := failover_end(failover))
    assert failover_end(failover) - now == 60.0
    failover.got_through("m", "an answer of nobody knows whom", frozenset(), now + 60, now + 61)
    assert excluded(now + 1, 4) == set()


def test_a_refused_key_beside_a_busy_deployment() -> None:
    failover = failover_of_three()
    refused, busy = failed_on("a", 401), failed_on("b", 429, retry_after="30")
    for error in (refused, failed_on("c", 401)):
        failover.failed("m", classify_failure(error), error, 0.0)
    assert failover.may_come_back("m") is None
    failover.failed("m", classify_failure(busy), busy, 0.0)
    assert failover.may_come_back("m") == (classify_failure(busy), busy)
    assert failover.excluded("m", frozenset(), 1.0) == {"a", "c"}  # all pause


def failover_end(failover: Failover) -> float:
    """Return when a deployment is asked again, in whole seconds."""
    return next(float(at) for at in range(10_000) if not failover.excluded("m", set(), at, None))


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
        assert failover.excluded("m", frozenset(), 0.5) == passed
        assert failover.excluded("other", frozenset(), 0.5) == set()


def test_a_timeout_of_nobody_knows_whom_is_of_the_one_that_never_answers() -> None:
    orders = {"m": {"a": 0.0, "b": 0.0}}
    failover = Failover(lambda model: orders[model], lambda *_: None, lambda value: (value, False))
    error = parallel_core.RequestTimeoutError(0, "m", 1.0)
    for now in range(3):
        failover.failed("m", classify_failure(error), error, now)
        failover.got_through("m", "b", frozenset(), now, now)
    assert failover.excluded("m", frozenset(), 2.5) == {"a"}
