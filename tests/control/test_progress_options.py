"""What ``progress`` and ``on_progress`` may be."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.progress_values import Counts, reporter_of, snapshot
from parallel_core.control.checks import checked_callback
from parallel_core.control.progress import Progress, checked_progress


@pytest.mark.parametrize("value", [True, False])
def test_progress_is_a_bool(value: bool) -> None:
    assert checked_progress(value) is value


@pytest.mark.parametrize("value", [1, 0, None, "yes", print])
def test_progress_is_nothing_else(value: object) -> None:
    with pytest.raises(TypeError, match="progress must be True or False, not "):
        checked_progress(value)


async def async_function(_: Progress) -> None:
    pass


async def async_generator(_: Progress) -> Any:
    yield


class AsyncCallable:
    async def __call__(self, _: Progress) -> None:
        pass


@pytest.mark.parametrize(
    "value",
    [
        None,
        "print",
        async_function,
        async_generator,
        AsyncCallable(),
        functools.partial(async_function),
    ],
    ids=["none", "text", "async function", "async generator", "async callable", "partial"],
)
def test_on_progress_is_a_plain_function(value: object) -> None:
    with pytest.raises(TypeError, match="on_progress must be a plain function"):
        checked_callback("on_progress", value)


def test_a_callback_is_called() -> None:
    seen: list[Progress] = []

    def plain(progress: Progress) -> str:
        seen.append(progress)
        return "returned"

    callback = checked_callback("on_progress", plain)
    given_one = snapshot()
    assert callback(given_one) == "returned"
    assert seen == [given_one]


def test_a_returned_coroutine_is_closed_and_refused() -> None:
    made: list[Any] = []

    def callback(progress: Progress) -> object:
        made.append(async_function(progress))
        return made[-1]

    reporter = reporter_of(Counts(), checked_callback("on_progress", callback))
    with pytest.raises(TypeError, match="it has returned coroutine, which"):
        reporter.tick(100.0)
    assert made[0].cr_frame is None  # closed


def test_a_returned_awaitable_without_close_is_refused() -> None:
    class Awaitable:
        def __await__(self) -> Iterator[None]:
            return iter(())

    def callback(_: Progress) -> Awaitable:
        return Awaitable()

    with pytest.raises(TypeError, match=r"it has returned .*Awaitable, which"):
        checked_callback("on_progress", callback)(snapshot())
