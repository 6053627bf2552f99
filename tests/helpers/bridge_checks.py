"""Checks after each test of the asyncio bridge, and waiting in passes of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

from helpers.hosts import ASYNCIO_HOSTS, Host, assert_nothing_left_in_asyncio

T = TypeVar("T")

HANG_AFTER = 100.0


async def passes(count: int) -> None:
    """Let the loop go round ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def after(count: int, function: Callable[[], object]) -> None:
    """Call a function some passes of the loop later."""
    loop = asyncio.get_running_loop()
    if count == 0:
        function()
    else:
        loop.call_soon(after, count - 1, function)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until a condition holds."""
    deadline = time.monotonic() + HANG_AFTER
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(0)


async def guest_gone() -> None:
    await until(lambda: not trio.lowlevel.in_trio_run())
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def assert_nothing_left() -> None:
    """Right here and now: no task but the current one, and no trio run in this thread."""
    assert_nothing_left_in_asyncio()
    assert not trio.lowlevel.in_trio_run(), "the guest run is still there"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> set[threading.Thread]:
    """All threads but the idle ones that trio keeps for later, which are no leak."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


def assert_no_new_threads(before: set[threading.Thread]) -> None:
    for thread in threads() - before:
        # A worker of anyio that was told to end needs a moment.
        thread.join(HANG_AFTER / 2)
        assert not thread.is_alive(), thread


@functools.cache
def warm_up() -> None:
    """Run each kind of loop once, so that what a process opens only once is open."""
    for host in ASYNCIO_HOSTS:
        host.run(lambda: asyncio.sleep(0))


@contextlib.contextmanager
def leaving_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Fail if a test hangs, or leaves files, threads, trio runs or warnings behind."""
    unraisable: list[str] = []

    def hang(number: int, frame: object) -> None:
        pytest.fail(f"the test hangs after {HANG_AFTER} s")

    warm_up()
    files_before, threads_before = open_files(), threads()
    old_hook, sys.unraisablehook = sys.unraisablehook, lambda args: unraisable.append(repr(args))
    old_handler = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_AFTER)
    try:
        yield
        gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        sys.unraisablehook = old_hook
        guest_was_left = trio.lowlevel.in_trio_run()
        vars(GLOBAL_RUN_CONTEXT).clear()  # or every test after this one would fail too
    assert not unraisable, unraisable
    assert not guest_was_left
    assert_no_new_threads(threads_before)
    assert open_files() <= files_before
    complaints = [
        record.getMessage()
        for record in caplog.get_records("call")
        # Debug mode reports slow callbacks, which a busy machine has.
        if record.name == "asyncio" and not record.getMessage().startswith("Executing")
        if record.levelname in ("WARNING", "ERROR", "CRITICAL")
    ]
    assert not complaints, complaints
    printed = capfd.readouterr().err
    complaints = [line for line in printed.splitlines() if not line.startswith("Executing")]
    assert not complaints, printed


def run_and_shut_down(host: Host, function: Callable[[], Awaitable[T]]) -> T:
    """Do as ``host.run`` does, for code that leaves batches to the shutdown of the loop."""
    complaints: list[dict[str, Any]] = []

    async def main() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        set_factory(host, loop)
        return await function()

    try:
        with asyncio.Runner(loop_factory=host.loop_factory, debug=host.debug) as runner:
            return runner.run(main())
    finally:
        gc.collect()
        assert not complaints, complaints
        assert not trio.lowlevel.in_trio_run(), "the guest run is still there"


def in_a_thread_of_its_own(function: Callable[[], object]) -> None:
    """Run a test whose failure would leave the thread unusable for the next one."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            function()
            assert not trio.lowlevel.in_trio_run(), "a guest run is still there"
        except BaseException as exception:
            errors.append(exception)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANG_AFTER / 2)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors.pop()


def new_loop(host: Host, complaints: list[dict[str, Any]]) -> asyncio.AbstractEventLoop:
    loop = (host.loop_factory or asyncio.new_event_loop)()
    loop.set_debug(host.debug)
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    set_factory(host, loop)
    return loop


def set_factory(host: Host, loop: asyncio.AbstractEventLoop) -> None:
    if host.eager and sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)


class Calls:
    """Calls that end at once, late or only when they are cancelled, and lists of what they did."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.running: set[int] = set()
        self.cancelled: list[int] = []
        self.ended: list[int] = []

    @contextlib.contextmanager
    def _seen(self, item: int) -> Iterator[None]:
        self.started.append(item)
        self.running.add(item)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.running.discard(item)
            self.ended.append(item)

    async def forever(self, item: int) -> int:
        with self._seen(item):
            await asyncio.Event().wait()
        return item

    async def only_first(self, item: int) -> int:
        """Return from the first call; the others wait until they are cancelled."""
        with self._seen(item):
            await asyncio.sleep(0)
            if item:
                await asyncio.Event().wait()
        return item

    async def brief(self, item: int) -> int:
        with self._seen(item):
            await passes(item % 4)
        return item

    async def slow_to_end(self, item: int) -> int:
        """Need some passes of the loop to clean up after a cancellation."""
        with self._seen(item):
            try:
                await asyncio.Event().wait()
            finally:
                await passes(3 + item % 3)
        return item

    async def slow_to_end_except_first(self, item: int) -> int:
        return item if item == 0 else await self.slow_to_end(item)
