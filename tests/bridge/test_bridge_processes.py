"""Batches in processes of their own: Ctrl-C, exits, trio-asyncio, a foreign guest run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from textwrap import dedent

import pytest

NOISE = (
    "Task was destroyed",
    "never awaited",
    "async generator",
    "asynchronous generator",
    "TrioInternalError",
    "Task exception was never retrieved",
    "Exception ignored",
    "Unhandled exception",
    "unhandled exception",
    "ResourceWarning",
    "RuntimeWarning",
)

PRELUDE = """
import asyncio, logging, os, signal, sys, threading

# On a busy machine each callback may be a slow one, and debug mode tells that.
logging.getLogger("asyncio").addFilter(lambda record: "Executing" not in record.getMessage())

# A shell that runs the tests in the background has had SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

import trio
from parallel_core import bridge
from parallel_core.bridge import iter_parallel_map, parallel_map

ended = []

async def passes(count):
    for _ in range(count):
        await asyncio.sleep(0)

async def until(condition):
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")

async def forever(item):
    try:
        await asyncio.Event().wait()
    finally:
        await passes(2)
        ended.append(item)

begun = []

async def at_once(item):
    '''Needs no time to clean up; the first one returns.'''
    begun.append(item)
    try:
        await (brief(item) if item == 0 else asyncio.Event().wait())
    finally:
        ended.append(item)

async def brief(item):
    await passes(item % 3)
    return 2 * item

async def check_a_batch():
    results = await parallel_map(brief, range(12), concurrency=4, preserve_order=True)
    assert [result.unwrap() for result in results] == [2 * n for n in range(12)]

async def check_what_ends_otherwise():
    # A failure, a timeout, a cancellation and a break.
    async def failing(item):
        if item == 2:
            await asyncio.sleep(0)
            raise LookupError("mine")
        await forever(item)

    ended.clear()
    try:
        await parallel_map(failing, range(9), concurrency=4, return_exceptions=False)
    except LookupError as error:
        assert str(error) == "mine"
    else:
        raise AssertionError("no error")
    assert set(ended) == {0, 1, 3}, ended

    ended.clear()
    waiting = []
    try:
        async with asyncio.timeout(None) as timeout:
            async def until_timeout(item):
                waiting.append(item)
                if len(waiting) == 4:  # not before: it is their end that is to be seen
                    timeout.reschedule(asyncio.get_running_loop().time())
                await forever(item)

            await parallel_map(until_timeout, range(9), concurrency=4)
    except TimeoutError:
        pass
    else:
        raise AssertionError("no timeout")
    assert sorted(ended) == [0, 1, 2, 3], ended

    for count in range(20):
        ended.clear()
        task = asyncio.ensure_future(parallel_map(forever, range(9), concurrency=4))
        await passes(count)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task
        assert len(ended) == len(set(ended))

    ended.clear()
    others = []
    async def first_only(item):
        if item == 0:
            await until(lambda: len(others) == 3)
        else:
            others.append(item)
            await forever(item)

    async for result in iter_parallel_map(first_only, range(9), concurrency=4):
        assert result.index == 0
        break
    await until(lambda: len(ended) == 4)  # 1, 2, 3, and the one in the place of 0

def run(main):
    factory = asyncio.new_event_loop
    if LOOP == "uvloop":
        import uvloop
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if LOOP == "eager":
            runner.get_loop().set_task_factory(asyncio.eager_task_factory)
        return runner.run(main())

def files():
    return len(os.listdir("/proc/self/fd"))
"""


def start(script: str, loop: str = "asyncio") -> subprocess.Popen[str]:
    code = f"LOOP = {loop!r}\n{PRELUDE}\n{dedent(script)}"
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def finish(process: subprocess.Popen[str], noise: tuple[str, ...] = NOISE) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the process hangs\n{out}\n{err}")
    for word in noise:
        assert word not in err, err
    return process.returncode, out, err


def interrupt_at(process: subprocess.Popen[str], line: str) -> None:
    """Press Ctrl-C when the process has printed a line."""
    assert process.stdout is not None
    seen = process.stdout.readline()
    if seen.strip() != line:
        process.kill()
        _, err = process.communicate()
        pytest.fail(f"{seen!r} instead of {line!r}\n{err}")
    process.send_signal(signal.SIGINT)


def check_script(script: str, loop: str = "asyncio") -> None:
    code, out, err = finish(start(script, loop))
    assert code == 0, err
    assert out.strip().splitlines()[-1:] == ["fine"], out + err
    assert not err, err


@pytest.fixture(params=["asyncio", "uvloop", "eager"])
def loop(request: pytest.FixtureRequest) -> str:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    if request.param == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    name: str = request.param
    return name


FORMS = {
    "list": "await parallel_map(call, range(20), concurrency=4)",
    "block": """
    async with iter_parallel_map(call, range(20), concurrency=4) as batch:
        async for _ in batch:
            pass
    """,
    "plain": """
    async for _ in iter_parallel_map(call, range(20), concurrency=4):
        pass
    """,
    "background": """
    task = asyncio.ensure_future(parallel_map(call, range(20), concurrency=4))
    await asyncio.Event().wait()
    """,
}


def body(form: str) -> str:
    return "async def main():\n    " + FORMS[form].strip() + "\n"


# --- Ctrl-C ---


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_ends_a_batch_in_order(loop: str, form: str) -> None:
    process = start(
        body(form)
        + dedent("""
        async def call(item):
            if item == 3:
                print("ready", flush=True)
            await forever(item)

        try:
            run(main)
        except KeyboardInterrupt:
            print("interrupted", sorted(ended), trio.lowlevel.in_trio_run())
            raise
        """),
        loop,
    )
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.strip() == "interrupted [0, 1, 2, 3] False"
    assert err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_twice_cuts_the_cleanup_of_calls_short(loop: str, form: str) -> None:
    process = start(
        body(form)
        + dedent("""
        async def call(item):
            if item == 3:
                print("ready", flush=True)
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    if item == 3:
                        # From another thread, when this one has come to rest: SIGINT is not to
                        # hit the callback that prints, but the loop.
                        threading.Timer(0.1, print_cleaning).start()
                    await asyncio.sleep(3600)
                finally:
                    ended.append(item)

        def print_cleaning():
            print("cleaning", flush=True)

        try:
            run(main)
        except KeyboardInterrupt:
            print("interrupted", sorted(ended), trio.lowlevel.in_trio_run())
            raise
        """),
        loop,
    )
    interrupt_at(process, "ready")
    interrupt_at(process, "cleaning")
    if form in ("list", "block"):
        code, out, err = finish(process)
        assert out.strip() == "interrupted [0, 1, 2, 3] False"
    else:
        # The second one breaks off the shutdown of asyncio.run itself, which closes the loop with
        # tasks in it and says so.
        code, out, err = finish(process, noise=("TrioInternalError", "never awaited"))
        assert out.startswith("interrupted")
    assert code == -signal.SIGINT, err


def test_ctrl_c_in_a_busy_batch(loop: str) -> None:
    """It comes at any time: in a call, in the engine, or in a step of trio."""
    process = start(
        """
        import itertools

        async def call(item):
            if item == 200:
                print("ready", flush=True)
            await passes(item % 2)

        async def main():
            async for _ in iter_parallel_map(call, itertools.count(), concurrency=8):
                pass

        try:
            run(main)
        except KeyboardInterrupt:
            print("interrupted", trio.lowlevel.in_trio_run())
            raise
        """,
        loop,
    )
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.strip() == "interrupted False"


def test_ctrl_c_between_short_batches(loop: str) -> None:
    """It comes while guest runs begin and end, hundreds of times a second."""
    process = start(
        """
        async def main():
            await check_a_batch()
            print("ready", flush=True)
            while True:
                await check_a_batch()

        try:
            run(main)
        except KeyboardInterrupt:
            print("interrupted", trio.lowlevel.in_trio_run())
            raise
        """,
        loop,
    )
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.strip() == "interrupted False"


def test_sigint_handler_of_the_application_is_left_alone(loop: str) -> None:
    check_script(
        """
        import signal

        async def main():
            seen = []
            before = signal.getsignal(signal.SIGINT)
            async with iter_parallel_map(forever, range(9)) as batch:
                await until(lambda: batch.in_flight == 8)
                assert signal.getsignal(signal.SIGINT) is before
                asyncio.get_running_loop().add_signal_handler(
                    signal.SIGINT, lambda: seen.append("SIGINT")
                )
                signal.raise_signal(signal.SIGINT)
                await until(lambda: seen)
                assert batch.in_flight == 8
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        run(main)
        assert signal.getsignal(signal.SIGINT) is before
        print("fine")
        """,
        loop,
    )


# --- KeyboardInterrupt and SystemExit raised by calls ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["KeyboardInterrupt()", "SystemExit(7)"])
def test_an_exit_raised_in_a_call_leaves_the_loop_and_the_process(
    loop: str, form: str, kind: str
) -> None:
    process = start(
        body(form)
        + dedent(f"""
        async def call(item):
            if item == 3:
                await passes(3)
                raise {kind}
            await forever(item)

        try:
            run(main)
        except BaseException as exception:
            print(type(exception).__name__, sorted(ended), trio.lowlevel.in_trio_run())
            raise
        """),
        loop,
    )
    code, out, err = finish(process)
    name = kind.partition("(")[0]
    assert out.strip() == f"{name} [0, 1, 2] False", err
    assert code == (7 if name == "SystemExit" else -signal.SIGINT), err


@pytest.mark.parametrize("where", ["sync source", "async source"])
def test_an_exit_raised_by_a_source(loop: str, where: str) -> None:
    process = start(
        f"""
        def sync_source():
            yield from range(3)
            raise SystemExit(7)

        async def async_source():
            for number in range(3):
                yield number
            await passes(3)
            raise SystemExit(7)

        async def main():
            await parallel_map(forever, {where.replace(" ", "_")}(), concurrency=4)

        try:
            run(main)
        except BaseException as exception:
            print(type(exception).__name__, sorted(ended), trio.lowlevel.in_trio_run())
            raise
        """,
        loop,
    )
    code, out, err = finish(process)
    assert out.strip() == "SystemExit [0, 1, 2] False", err
    assert code == 7


# --- synchronous code ---

SYNC = """
import threading
from parallel_core import parallel_completions

def requests(count):
    return [
        {"model": f"m{n}", "messages": [{"role": "user", "content": "x"}]} for n in range(count)
    ]
"""


def test_ctrl_c_in_parallel_completions() -> None:
    process = start(
        SYNC
        + dedent("""
        async def acompletion(*, model, messages):
            if model == "m3":
                print("ready", flush=True)
            await forever(model)

        try:
            parallel_completions(acompletion, requests(20), concurrency=4)
        except KeyboardInterrupt:
            names = [thread.name for thread in threading.enumerate()]
            print(sorted(ended), [name for name in names if not name.startswith("Trio thread")])
            raise
        """)
    )
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.strip() == "['m0', 'm1', 'm2', 'm3'] ['MainThread']"


@pytest.mark.parametrize("kind", ["KeyboardInterrupt()", "SystemExit(7)"])
def test_an_exit_raised_in_a_call_of_parallel_completions(kind: str) -> None:
    process = start(
        SYNC
        + dedent(f"""
        async def acompletion(*, model, messages):
            if model == "m3":
                await passes(3)
                raise {kind}
            await forever(model)

        try:
            parallel_completions(acompletion, requests(20), concurrency=4)
        except BaseException as exception:
            print(type(exception).__name__, sorted(ended))
            raise
        """)
    )
    code, out, err = finish(process)
    name = kind.partition("(")[0]
    assert out.strip() == f"{name} ['m0', 'm1', 'm2']", err
    assert code == (7 if name == "SystemExit" else -signal.SIGINT), err


# --- asyncio code under trio-asyncio ---

TRIO_ASYNCIO = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trio_asyncio
"""


def test_batches_in_asyncio_code_under_trio_asyncio() -> None:
    check_script(
        TRIO_ASYNCIO
        + dedent("""
        async def main():
            async with trio_asyncio.open_loop():
                before = files()
                for _ in range(3):
                    await trio_asyncio.aio_as_trio(check_a_batch)()
                    await trio_asyncio.aio_as_trio(check_what_ends_otherwise)()
                await trio.testing.wait_all_tasks_blocked()
                assert files() == before
                run = trio.lowlevel.current_statistics()
                assert run.tasks_living < 12, run

        import trio.testing
        trio.run(main)
        trio_asyncio.run(trio_asyncio.aio_as_trio(check_a_batch))
        print("fine")
        """)
    )


def test_many_batches_at_once_under_trio_asyncio() -> None:
    check_script(
        TRIO_ASYNCIO
        + dedent("""
        async def nested(item):
            await check_a_batch()
            return item

        async def many():
            await asyncio.gather(*(check_a_batch() for _ in range(10)))
            results = await parallel_map(nested, range(6), concurrency=3)
            assert [result.exception for result in results] == [None] * 6, results

        trio_asyncio.run(trio_asyncio.aio_as_trio(many))
        print("fine")
        """)
    )


def test_a_trio_scope_around_a_batch_under_trio_asyncio() -> None:
    check_script(
        TRIO_ASYNCIO
        + dedent("""
        async def stuck():
            await parallel_map(forever, range(9), concurrency=4)

        async def main():
            async with trio_asyncio.open_loop():
                for seconds in (0.05, 0.5, 5):  # on a busy machine calls begin late
                    ended.clear()
                    with trio.move_on_after(seconds) as scope:
                        await trio_asyncio.aio_as_trio(stuck)()
                    assert scope.cancelled_caught
                    if len(ended) == 4:
                        break
                assert sorted(ended) == [0, 1, 2, 3], ended
                await trio_asyncio.aio_as_trio(check_a_batch)()

        trio.run(main)
        print("fine")
        """)
    )


def test_an_iterator_dropped_under_trio_asyncio() -> None:
    check_script(
        TRIO_ASYNCIO
        + dedent("""
        async def main():
            async for _ in iter_parallel_map(at_once, range(9), concurrency=4):
                break

        trio_asyncio.run(trio_asyncio.aio_as_trio(main))
        assert len(begun) >= 4, begun
        assert sorted(ended) == sorted(begun), (begun, ended)
        print("fine")
        """)
    )


# --- somebody else's guest run in the thread ---

FOREIGN = """
class Foreign:
    '''A guest run of trio that has nothing to do with us.'''

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.done = asyncio.Event()
        self.outcome = None
        self.ticks = 0
        self.scope = trio.CancelScope()
        trio.lowlevel.start_guest_run(
            self.main,
            run_sync_soon_threadsafe=self.loop.call_soon_threadsafe,
            done_callback=self.ended,
            host_uses_signal_set_wakeup_fd=True,
        )

    async def main(self):
        with self.scope:
            while True:
                self.ticks += 1
                await trio.sleep(0.001)

    def ended(self, outcome):
        self.outcome = outcome
        self.done.set()

    async def close(self):
        self.scope.cancel()
        await self.done.wait()
        self.outcome.unwrap()  # no error of ours has got into it
        assert not trio.lowlevel.in_trio_run()
"""


def test_batches_beside_a_foreign_guest_run(loop: str) -> None:
    check_script(
        FOREIGN
        + dedent("""
        async def main():
            before = files()
            foreign = Foreign()
            for _ in range(3):
                await check_a_batch()
                await check_what_ends_otherwise()
                await asyncio.gather(*(check_a_batch() for _ in range(5)))
            ticks = foreign.ticks
            await until(lambda: foreign.ticks > ticks)  # alive and well
            assert trio.lowlevel.in_trio_run()
            await foreign.close()
            await check_a_batch()  # and on a guest run of our own again
            await check_what_ends_otherwise()
            await until(lambda: not trio.lowlevel.in_trio_run())
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
            assert files() == before

        run(main)
        print("fine")
        """),
        loop,
    )


def test_a_foreign_guest_run_that_ends_under_a_batch(loop: str) -> None:
    check_script(
        FOREIGN
        + dedent("""
        from parallel_core import BatchAbortedError

        async def main():
            for count in range(12):
                ended.clear()
                foreign = Foreign()
                task = asyncio.ensure_future(parallel_map(forever, range(9), concurrency=4))
                await passes(count)
                await foreign.close()
                await asyncio.wait({task}, timeout=60)
                assert task.done(), f"hangs when the run ends after {count} passes"
                error = task.exception()
                assert isinstance(error, BatchAbortedError), repr(error)
                assert len(ended) in (0, 1, 2, 3, 4), ended
                await check_a_batch()
                await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

        async def one_by_one():
            # All calls have begun when the run ends, and end in order.
            ended.clear()
            foreign = Foreign()
            batch = iter_parallel_map(forever, range(9), concurrency=4)
            async with batch:
                await until(lambda: batch.in_flight == 4)
                await foreign.close()
                assert sorted(ended) == [0, 1, 2, 3], ended
                try:
                    await anext(batch)
                except BatchAbortedError:
                    pass
                else:
                    raise AssertionError("no error")
            await check_a_batch()

        run(one_by_one)
        run(main)
        print("fine")
        """),
        loop,
    )


def test_a_foreign_guest_run_that_fails_under_a_batch(loop: str) -> None:
    check_script(
        FOREIGN
        + dedent("""
        from parallel_core import BatchAbortedError

        class Failing(Foreign):
            async def main(self):
                self.go = trio.Event()
                await self.go.wait()
                raise LookupError("theirs")

        async def main():
            foreign = Failing()
            async with iter_parallel_map(forever, range(9), concurrency=4) as batch:
                await until(lambda: batch.in_flight == 4)
                foreign.go.set()
                await foreign.done.wait()
                try:
                    foreign.outcome.unwrap()
                except LookupError as error:
                    assert str(error) == "theirs"
                else:
                    raise AssertionError("no error")
                try:
                    await anext(batch)
                except BatchAbortedError:
                    pass
                else:
                    raise AssertionError("no error")
            assert sorted(ended) == [0, 1, 2, 3], ended
            await check_a_batch()

        run(main)
        print("fine")
        """),
        loop,
    )


def test_an_exit_in_a_call_beside_a_foreign_guest_run(loop: str) -> None:
    check_script(
        FOREIGN
        + dedent("""
        async def call(item):
            if item == 3:
                await passes(3)
                raise SystemExit(7)
            await forever(item)

        async def main():
            foreign = Foreign()
            try:
                await parallel_map(call, range(9), concurrency=4)
            finally:
                await foreign.close()

        try:
            run(main)
        except SystemExit as exception:
            assert exception.code == 7
            assert sorted(ended) == [0, 1, 2], ended
            print("fine")
        """),
        loop,
    )


# --- the end of the process ---


def test_a_process_that_ends_with_batches_left_over(loop: str) -> None:
    check_script(
        """
        kept = []

        async def main():
            for _ in range(3):
                batch = iter_parallel_map(at_once, range(9), concurrency=4)
                kept.append(batch)
                await anext(batch)
            async for _ in iter_parallel_map(at_once, range(9), concurrency=4):
                break

        run(main)
        assert len(begun) >= 16, begun
        assert sorted(ended) == sorted(begun), (begun, ended)
        assert not trio.lowlevel.in_trio_run()
        print("fine")
        """,
        loop,
    )


def test_a_loop_that_is_never_closed_does_not_keep_the_process_alive() -> None:
    process = start(
        """
        async def first_only(item):
            await (brief if item == 0 else forever)(item)

        async def main():
            batch = iter_parallel_map(first_only, range(9), concurrency=4)
            await anext(batch)
            return batch

        loop = asyncio.new_event_loop()
        batch = loop.run_until_complete(main())
        print("fine", flush=True)
        sys.exit(0)
        """
    )
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the process hangs: {process.communicate()}")
    assert process.returncode == 0, err
    assert out.strip() == "fine"
