"""Hosts, Routers and callables that are refused before any call."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

import parallel_core
from helpers.hosts import thread_names, threads_besides
from helpers.router_stands import REQUEST, Stand, at_once, run
from parallel_core import open_router_host, parallel_acompletions
from parallel_core.config.router_members import deployments


def test_bad_hosts_are_refused_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    stand: Any = Stand(at_once)

    async def native(**arguments: Any) -> None:
        raise AssertionError("it was called")

    async def main() -> None:
        for bad in ("threads", "", 3, ["thread"]):
            with pytest.raises(ValueError, match="must be one of 'thread', 'thread-uvloop'"):
                await parallel_acompletions(stand, [REQUEST], router_host=bad)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="must be one of"):
                parallel_core.iter_parallel_acompletions(stand, [REQUEST], router_host=bad)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="must be one of"):
                async with open_router_host(stand, bad):  # type: ignore[arg-type]
                    pass
        with pytest.raises(ValueError, match="a bare callable is called in trio"):
            await parallel_acompletions(native, [REQUEST], router_host="thread")
        with pytest.raises(TypeError, match="anything with an acompletion coroutine method"):
            async with open_router_host(native):  # type: ignore[arg-type]
                pass
        with pytest.raises(RuntimeError, match="no loop of trio-asyncio is open in this task"):
            await parallel_acompletions(stand, [REQUEST], router_host="trio-asyncio")
        async with open_router_host(stand) as host:
            with pytest.raises(ValueError, match="is a RouterHost already"):
                await parallel_acompletions(host, [REQUEST], router_host="thread")
            with pytest.raises(TypeError, match="pass the Router that it was opened for"):
                host.with_router(host)
            for no_router in (None, native):
                with pytest.raises(TypeError, match="anything with an acompletion"):
                    host.with_router(no_router)  # type: ignore[arg-type]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(RuntimeError, match="needs uvloop: pip install"):
            await parallel_acompletions(stand, [REQUEST], router_host="thread-uvloop")
        assert not stand.started

    run(main)


def test_asyncio_functions_of_litellm_are_refused_in_trio() -> None:
    import litellm

    router = litellm.Router(
        model_list=[{"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "x"}}]
    )

    async def main() -> None:
        class Own(parallel_core.ParallelRouter):
            async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
                raise AssertionError("it was called")

        own = Own(model_list=deployments(router))
        functions: list[Any] = [router.acompletion, litellm.acompletion, own.acompletion]
        for function in [*functions, functools.partial(router.acompletion)]:
            with pytest.raises(TypeError, match=r"asyncio code .* pass the Router itself"):
                await parallel_acompletions(function, [REQUEST])

    run(main)


def test_hosts_are_for_trio_and_for_the_run_that_has_opened_them() -> None:
    stand = Stand(at_once)
    kept: list[parallel_core.RouterHost] = []

    async def main() -> None:
        async with open_router_host(stand) as host:
            kept.append(host)

            def in_another_run() -> None:
                async def other() -> None:
                    for use in (
                        host.acompletion,
                        lambda: parallel_acompletions(host, [REQUEST]),
                        lambda: parallel_acompletions(stand, [REQUEST], router_host=host),
                    ):
                        with pytest.raises(RuntimeError, match="belongs to another trio run"):
                            await use()

                trio.run(other)

            await trio.to_thread.run_sync(in_another_run)

    run(main)

    async def in_asyncio() -> None:
        with pytest.raises(ValueError, match="router_host is for trio"):
            await parallel_acompletions(stand, [REQUEST], router_host="thread")
        with pytest.raises(ValueError, match="router_host is for trio"):
            parallel_core.iter_parallel_acompletions(stand, [REQUEST], router_host="thread")
        with pytest.raises(TypeError, match="a RouterHost is for trio"):
            await parallel_acompletions(kept[0], [REQUEST])
        with pytest.raises(TypeError, match="a RouterHost is for trio"):
            parallel_core.parallel_completions(kept[0], [REQUEST])

        async def refused(_: int) -> None:
            # Also while a guest run of trio is there.
            with pytest.raises(RuntimeError, match="for trio, and asyncio is running here"):
                async with open_router_host(stand):
                    pass
            with pytest.raises(RuntimeError, match="for trio, and asyncio is running here"):
                async with parallel_core.open_trio_asyncio():
                    pass

        await refused(0)
        (result,) = await parallel_core.parallel_map(refused, [0])
        result.unwrap()

    threads = thread_names()
    asyncio.run(in_asyncio())
    assert threads_besides(threads) == []
    assert "trio_asyncio" not in sys.modules
    assert not stand.started


def test_trio_asyncio_is_refused_where_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
        with pytest.raises(RuntimeError, match=r"does not work on Python 3\.14 and newer"):
            await parallel_acompletions(Stand(at_once), [REQUEST], router_host="trio-asyncio")
        with pytest.raises(RuntimeError, match=r"does not work on Python 3\.14 and newer"):
            async with parallel_core.open_trio_asyncio():
                pass
        monkeypatch.undo()

    run(main)
    assert "trio_asyncio" not in sys.modules
