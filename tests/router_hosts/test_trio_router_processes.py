"""Routers in trio, in processes of their own: trio-asyncio, Ctrl-C, and what a process becomes.

What is about a fresh interpreter runs in one. The others are forked, and have litellm already.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from helpers.forked_processes import ForkedProcess, ForkedProcesses
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

HERE = Path(__file__).parent
TIMEOUT = 60.0  # seconds; importing litellm takes some of them
WARNINGS = "default::ResourceWarning"
SERVER_TIMEOUT = 60.0

needs_trio_asyncio = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="trio-asyncio does not work there"
)

NOISE = (
    "Task was destroyed",
    "asynchronous generator",
    "TrioInternalError",
    "Task exception was never retrieved",
    "Exception ignored",
    "nhandled exception",
    "ResourceWarning",
    "Traceback",
)

PRELUDE = """
import asyncio, os, signal, sys, threading, warnings

# A shell that runs the tests in the background has had SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

import trio, trio.testing
import parallel_core
from litellm import Router, close_litellm_async_clients
from parallel_core import open_router_host, parallel_acompletions

deployment = {"model": "openai/fast", "api_base": os.environ["DEMO_URL"], "api_key": "none"}
router = Router(model_list=[{"model_name": "fast", "litellm_params": deployment}], num_retries=0)

def ask(**orders):
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "fast", "messages": messages, "extra_body": {"demo": orders}}

async def check(**options):
    results = await parallel_acompletions(router, [ask()] * 10, concurrency=4, **options)
    assert [result.exception for result in results] == [None] * 10, results[0].exception

def threads():
    return sorted(t.name for t in threading.enumerate() if not t.name.startswith("Trio thread"))

def import_trio_asyncio():
    with warnings.catch_warnings():  # it uses what Python 3.12 has deprecated
        warnings.simplefilter("ignore")
        import trio_asyncio
    return trio_asyncio
"""


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        yield server


@pytest.fixture
def server(running_server: DemoServerThread) -> DemoServerThread:
    running_server.wait_idle(SERVER_TIMEOUT)
    running_server.reset_stats()
    return running_server


class Scripts:
    """Runs scripts that use the server."""

    def __init__(self, forks: ForkedProcesses, folder: Path, server: DemoServerThread) -> None:
        self._forks = forks
        self._script = folder / "script.py"
        self._server = server
        self._started: list[ForkedProcess] = []

    def start(self, script: str) -> ForkedProcess:
        self._script.write_text(PRELUDE + dedent(script))
        process = self._forks.start(
            [],
            script=self._script,
            folder=self._script.parent,
            standard_input=None,
            environment={"DEMO_URL": self._server.url},
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()

    def check(self, script: str, *, afresh: bool = False) -> None:
        """Run it. It must say that all is fine, and nothing that is not."""
        if afresh:
            code, out, err = self._run_afresh(script)
        else:
            process = self.start(script)
            code, out, err = process.wait(TIMEOUT), process.stdout, process.stderr
        assert code == 0, err
        assert out.strip().splitlines()[-1:] == ["fine"], out + err
        assert_no_noise(err)
        self._server.wait_idle(SERVER_TIMEOUT)

    def _run_afresh(self, script: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-W", WARNINGS, "-c", PRELUDE + dedent(script)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={
                **os.environ,
                "DEMO_URL": self._server.url,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
        return done.returncode, done.stdout, done.stderr


def assert_no_noise(err: str) -> None:
    for word in NOISE:
        assert word not in err, err


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedProcesses]:
    with ForkedProcesses(warnings=[WARNINGS]) as started:
        yield started


@pytest.fixture
def scripts(forks: ForkedProcesses, tmp_path: Path, server: DemoServerThread) -> Iterator[Scripts]:
    with contextlib.closing(Scripts(forks, tmp_path, server)) as runs:
        yield runs


@needs_trio_asyncio
def test_everything_works_on_a_loop_of_trio_asyncio() -> None:
    """The whole of ``test_trio_router.py``, with the other host."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_trio_router.py"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PARALLEL_CORE_ROUTER_HOST": "trio-asyncio"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_a_process_stays_what_it_was(scripts: Scripts) -> None:
    scripts.check(
        """
        before = set(threads())
        loop_before = asyncio.new_event_loop()
        loop_before.close()
        trio.run(check)
        trio.run(lambda: check(router_host="thread"))
        assert set(threads()) == before, threads()
        assert "trio_asyncio" not in sys.modules

        async def plain():
            loop = asyncio.get_running_loop()
            assert type(loop) is type(loop_before), loop
            response = await router.acompletion(**ask(reply="plain"))
            assert "plain" in response.choices[0].message.content
            await check()
            await close_litellm_async_clients()  # on a loop of one's own that is one's own task

        asyncio.run(plain())
        trio.run(check)
        print("fine")
        """,
        afresh=True,
    )


@needs_trio_asyncio
def test_loops_that_the_application_has_opened(scripts: Scripts) -> None:
    scripts.check(
        """
        trio_asyncio = import_trio_asyncio()

        class Watched:
            # Not the Router itself, whose background tasks suffer when it changes loops.
            loops = set()
            async def acompletion(self, **arguments):
                self.loops.add(asyncio.get_running_loop())
                await asyncio.sleep(0)

        async def check_where(expected, **options):
            Watched.loops.clear()
            results = await parallel_acompletions(Watched(), [ask()] * 5, **options)
            assert all(result.ok for result in results), results[0].exception
            assert (Watched.loops == {expected}) == (expected is not None), Watched.loops

        async def main():
            # None is open yet: a helper thread.
            await check_where(None)
            async with trio_asyncio.open_loop() as loop:
                await check_where(loop)
                await check_where(loop, router_host="trio-asyncio")
                await check_where(None, router_host="thread")  # by name, all the same
                executor = loop._default_executor
                async with open_router_host(router) as host:
                    assert host.name == "trio-asyncio", host
                    await host.run(asyncio.sleep, 0)
                await check_where(loop)
                assert loop._default_executor is executor
                tasks = trio.lowlevel.current_statistics().tasks_living
                for _ in range(5):
                    await check_where(loop)
                assert trio.lowlevel.current_statistics().tasks_living == tasks
                async with trio_asyncio.open_loop() as inner:
                    await check_where(inner)
                await check_where(loop)
            await check_where(None)

        trio.run(main)

        # The helper thread has a plain loop all the same.
        trio.run(lambda: check(router_host="thread"))

        # An executor of the application's own keeps doing the work.
        class Counting(trio_asyncio.TrioExecutor):
            count = 0
            async def submit(self, *args):
                self.count += 1
                return await super().submit(*args)

        async def own_executor():
            async with trio_asyncio.open_loop() as loop:
                executor = Counting()
                loop.set_default_executor(executor)
                await check()
                assert executor.count >= 10
                await trio_asyncio.aio_as_trio(close_litellm_async_clients)()
                assert await trio_asyncio.aio_as_trio(
                    lambda: loop.run_in_executor(None, sum, (1, 2)))() == 3

        trio.run(own_executor)
        print("fine")
        """
    )


@needs_trio_asyncio
def test_asyncio_code_under_trio_asyncio(scripts: Scripts, server: DemoServerThread) -> None:
    """It uses the asyncio API, and the trio run that is there."""
    scripts.check(
        """
        trio_asyncio = import_trio_asyncio()

        async def in_asyncio():
            await check()
            response = await router.acompletion(**ask(reply="plain"))
            assert "plain" in response.choices[0].message.content

        async def main():
            async with trio_asyncio.open_loop():
                await trio_asyncio.aio_as_trio(in_asyncio)()
                await trio_asyncio.aio_as_trio(close_litellm_async_clients)()
            async with parallel_core.open_trio_asyncio():
                await trio_asyncio.aio_as_trio(in_asyncio)()
                await check()

        trio.run(main)
        print("fine")
        """
    )
    stats = server.stats()
    assert stats.finished == 32


@needs_trio_asyncio
def test_a_loop_that_is_closed_under_a_batch(scripts: Scripts) -> None:
    scripts.check(
        """
        import_trio_asyncio()
        seen = []

        class Hanging:
            async def acompletion(self, **arguments):
                await asyncio.Event().wait()

        async def batch(router):
            results = await parallel_acompletions(router, [ask()] * 20, concurrency=4)
            seen.extend(type(result.exception).__name__ for result in results)

        async def main():
            async with trio.open_nursery() as nursery:
                async with parallel_core.open_trio_asyncio():
                    nursery.start_soon(batch, Hanging())
                    await trio.testing.wait_all_tasks_blocked()
                    await trio.testing.wait_all_tasks_blocked()
            assert seen == ["RouterHostClosedError"] * 20, seen
            seen.clear()
            import trio_asyncio
            async with trio.open_nursery() as nursery:
                async with trio_asyncio.open_loop():
                    nursery.start_soon(batch, Hanging())
                    await trio.testing.wait_all_tasks_blocked()
                    await trio.testing.wait_all_tasks_blocked()
            assert seen == ["RouterHostClosedError"] * 20, seen

        trio.run(main)
        print("fine")
        """
    )


@needs_trio_asyncio
def test_a_cancellation_reaches_a_call_that_is_in_the_executor(scripts: Scripts) -> None:
    """litellm begins every call there. Trio cannot cancel the thread; the call must not go on."""
    scripts.check(
        """
        import_trio_asyncio()
        begun, go_on = threading.Event(), threading.Event()
        steps = []

        class InTheExecutor:
            async def acompletion(self, **arguments):
                def function():
                    async def coroutine():
                        steps.append("awaited")
                    begun.set()
                    go_on.wait()
                    return coroutine()

                await (await asyncio.get_running_loop().run_in_executor(None, function))
                steps.append("went on")

        async def main():
            async with parallel_core.open_trio_asyncio():
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(parallel_acompletions, InTheExecutor(), [ask()])
                        await trio.to_thread.run_sync(begun.wait)
                        scope.cancel()
                        go_on.set()
                assert scope.cancelled_caught
                assert not steps, steps

        warnings.simplefilter("error")
        trio.run(main)
        print("fine")
        """
    )


@needs_trio_asyncio
def test_a_host_and_its_loop_that_are_closed_at_once(scripts: Scripts) -> None:
    scripts.check(
        """
        trio_asyncio = import_trio_asyncio()
        outcomes = []

        class SlowToEnd:
            async def acompletion(self, **arguments):
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.05)

        async def call(host):
            try:
                await host.acompletion()
            except parallel_core.RouterHostClosedError:
                outcomes.append("call")

        async def use(nursery, task_status):
            async with open_router_host(SlowToEnd(), "trio-asyncio") as host:
                nursery.start_soon(call, host)
                await trio.testing.wait_all_tasks_blocked()
                task_status.started()
            outcomes.append("host")

        async def main():
            for opener in (trio_asyncio.open_loop, parallel_core.open_trio_asyncio):
                outcomes.clear()
                async with trio.open_nursery() as nursery:
                    async with opener():
                        await nursery.start(use, nursery)
                assert sorted(outcomes) == ["call", "host"], outcomes

        trio.run(main)
        print("fine")
        """
    )


@pytest.mark.parametrize("host", ["thread", "thread-uvloop", "trio-asyncio"])
@pytest.mark.parametrize("form", ["list", "block", "host", "stream"])
def test_ctrl_c(host: str, form: str, scripts: Scripts, server: DemoServerThread) -> None:
    if host == "trio-asyncio" and sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio does not work there")
    if host == "thread-uvloop":
        pytest.importorskip("uvloop")
    forms = {
        "list": "await parallel_acompletions(router, [hang] * 50, concurrency=16)",
        "block": """
            async with parallel_core.iter_parallel_acompletions(
                router, [hang] * 50, concurrency=16
            ) as batch:
                async for _ in batch:
                    pass
            """,
        "host": "await host.acompletion(**hang)",
        "stream": """
            async with await host.acompletion(**ask(chunk_gap=3600.0), stream=True) as stream:
                async for _ in stream:
                    print("a chunk", flush=True)  # from here on: before, the call may be cut off
            """,
    }
    body = dedent(forms[form]).strip().replace("\n", "\n    ")
    count = 16 if form in ("list", "block") else 1
    process = scripts.start(
        f"""
HOST = {host!r}
hang = ask(fault="hang")

async def send():
    {body}

async def press_ctrl_c():
    # When nothing runs: SIGINT then reaches trio, and not asyncio code that happens to run in the
    # main thread, where a loop of trio-asyncio can be broken by it.
    await trio.to_thread.run_sync(sys.stdin.readline)
    await trio.testing.wait_all_tasks_blocked(0.1)
    signal.raise_signal(signal.SIGINT)

async def main():
    global host
    async with open_router_host(router, HOST) as host:
        try:
            trio.lowlevel.spawn_system_task(press_ctrl_c)
            await send()
        finally:
            print("ended", flush=True)

async def in_a_loop():
    import_trio_asyncio()
    async with parallel_core.open_trio_asyncio():
        await main()

try:
    trio.run(in_a_loop if HOST == "trio-asyncio" else main)
except BaseException as error:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions  # trio-asyncio runs its body in nurseries
    assert type(error) is KeyboardInterrupt, repr(error)
    others = [name for name in threads() if name != "MainThread"]
    print("interrupted", others, flush=True)
"""
    )
    server.wait_in_flight(count, TIMEOUT)
    if form == "stream":
        process.wait_for("a chunk\n")
    process.write("now\n")
    code, out, err = process.wait(TIMEOUT), process.stdout, process.stderr
    lines = [line for line in out.splitlines() if line != "a chunk"]
    assert lines == ["ended", "interrupted []"], out + err
    assert code == 0, err
    assert_no_noise(err)
    server.wait_idle(SERVER_TIMEOUT)
    stats = server.stats()
    assert stats.accepted == stats.disconnected == count
    assert stats.open_connections == 0
