"""The proposal's API: ``install()``, the flag, and ``ParallelRouter``."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import parallel_core
from parallel_core import ParallelRouter, router_api

PROPOSED_MODULES = ("litellm.router_utils.parallel_acompletion", "litellm.experimental_flags")


def reload_with_flag(monkeypatch: pytest.MonkeyPatch, value: str | None) -> ModuleType:
    if value is None:
        monkeypatch.delenv(router_api.FLAG, raising=False)
    else:
        monkeypatch.setenv(router_api.FLAG, value)
    return importlib.reload(router_api)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    reload_with_flag(monkeypatch, "1")
    router_api.install()
    yield
    router_api.uninstall()
    reload_with_flag(monkeypatch, None)


def make_router(cls: Any = None) -> Any:
    """A Router whose calls need no server: litellm answers them itself."""
    from litellm import Router

    return (cls or Router)(
        model_list=[
            {
                "model_name": "gpt-3.5-turbo",
                "litellm_params": {
                    "model": "openai/gpt-3.5-turbo",
                    "api_key": "none",
                    "mock_response": "made up",
                },
            }
        ]
    )


@pytest.mark.usefixtures("installed")
def test_the_snippets_of_the_proposal_run_unchanged() -> None:
    router = make_router()
    lines: list[str] = []

    async def basic_usage() -> None:
        from litellm.router_utils.parallel_acompletion import (  # type: ignore[import-not-found]
            RouterParallelRequest,
        )

        requests = [
            RouterParallelRequest(
                model="gpt-3.5-turbo", messages=[{"role": "user", "content": f"Question {i}"}]
            )
            for i in range(10)
        ]
        results = await router.parallel_acompletions(requests, concurrency=4, preserve_order=True)
        for r in results:
            if r.exception:
                lines.append(f"{r.index} failed")
            else:
                lines.append(f"{r.index} {r.response.choices[0].message.content}")

    async def iterator() -> None:
        from litellm.router_utils.parallel_acompletion import RouterParallelRequest

        requests = [
            RouterParallelRequest("gpt-3.5-turbo", [{"role": "user", "content": "hi"}])
            for _ in range(10)
        ]
        async for result in router.iter_parallel_acompletions(requests, concurrency=4):
            lines.append(f"iterated {result.index}")

    async def helpers() -> None:
        from litellm.experimental_flags import (  # type: ignore[import-not-found]
            ENABLE_PARALLEL_ACOMPLETIONS,
        )
        from litellm.router_utils.parallel_acompletion import (
            RouterParallelRequest,
            RouterParallelResult,
            gather_parallel_acompletions,
            iter_parallel_acompletions,
        )

        assert ENABLE_PARALLEL_ACOMPLETIONS is True
        requests = [RouterParallelRequest("gpt-3.5-turbo", [{"role": "user", "content": "hi"}])]
        (result,) = await gather_parallel_acompletions(
            router, requests, concurrency=8, return_exceptions=True, preserve_order=False
        )
        assert isinstance(result, RouterParallelResult)
        async for result in iter_parallel_acompletions(router, requests, concurrency=8):
            assert result.ok

    asyncio.run(basic_usage())
    asyncio.run(iterator())
    asyncio.run(helpers())
    assert lines[:10] == [f"{index} made up" for index in range(10)]
    assert sorted(lines[10:]) == sorted(f"iterated {index}" for index in range(10))


def test_install_is_idempotent_and_uninstall_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from litellm import Router

    before = set(vars(Router))
    router_api.uninstall()  # nothing is there: nothing happens
    for _ in range(2):
        parallel_core.install()
    assert set(vars(Router)) - before == {
        "parallel_acompletions",
        "iter_parallel_acompletions",
        "iter_parallel_streams",
    }
    assert all(importlib.import_module(name) for name in PROPOSED_MODULES)
    for _ in range(2):
        parallel_core.uninstall()
    assert set(vars(Router)) == before
    for name in PROPOSED_MODULES:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_the_methods_have_the_signature_of_the_proposal() -> None:
    parallel_core.install()
    try:
        from litellm import Router

        for name in ("parallel_acompletions", "iter_parallel_acompletions"):
            parameters = inspect.signature(getattr(Router, name)).parameters
            assert list(parameters) == [
                "self",
                "requests",
                "concurrency",
                "return_exceptions",
                "preserve_order",
                "controls",  # and what has come since
            ]
            defaults = [parameters[key].default for key in list(parameters)[2:5]]
            assert defaults == [8, True, False]
    finally:
        parallel_core.uninstall()


@pytest.mark.parametrize("what", ["a method", "a module"])
def test_install_refuses_to_overwrite_a_litellm_that_brings_these(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litellm import Router

    if what == "a method":
        monkeypatch.setattr(Router, "parallel_acompletions", lambda self: None, raising=False)
    else:
        monkeypatch.setitem(sys.modules, PROPOSED_MODULES[1], ModuleType(PROPOSED_MODULES[1]))
    before = dict(vars(Router))
    with pytest.raises(RuntimeError, match=r"would overwrite litellm\."):
        parallel_core.install()
    assert dict(vars(Router)) == before
    assert PROPOSED_MODULES[0] not in sys.modules
    parallel_core.uninstall()
    assert dict(vars(Router)) == before, "uninstall took away what it had not put there"


@pytest.mark.parametrize(
    ("value", "enabled"),
    [
        (None, False),
        ("", False),
        ("0", False),
        ("false", False),
        ("off", False),
        ("2", False),
        ("1", True),
        ("true", True),
        ("TRUE", True),
        ("Yes", True),
        ("oN", True),
    ],
)
def test_the_flag(value: str | None, enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = reload_with_flag(monkeypatch, value)
    assert module.ENABLE_PARALLEL_ACOMPLETIONS is enabled
    router = make_router()
    module.install()
    try:
        # Without the flag: at the call, before anything is awaited, and for an empty list too.
        for method in (router.parallel_acompletions, router.iter_parallel_acompletions):
            if enabled:
                continue
            with pytest.raises(RuntimeError, match=r"^parallel_acompletions disabled") as caught:
                method([])
            assert "LITELLM_ENABLE_PARALLEL_ACOMPLETIONS=1" in str(caught.value)
        if enabled:
            assert asyncio.run(router.parallel_acompletions([])) == []
        # The functions of the package are not gated.
        assert asyncio.run(parallel_core.parallel_acompletions(router, [])) == []
    finally:
        module.uninstall()
        reload_with_flag(monkeypatch, None)


def test_the_flag_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = reload_with_flag(monkeypatch, None)
    monkeypatch.setenv(router_api.FLAG, "1")
    assert module.ENABLE_PARALLEL_ACOMPLETIONS is False
    module = importlib.reload(module)
    assert module.ENABLE_PARALLEL_ACOMPLETIONS is True
    reload_with_flag(monkeypatch, None)


def test_a_reload_while_installed_reaches_the_installed_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reload_with_flag(monkeypatch, None).install()
    try:
        router = make_router()
        with pytest.raises(RuntimeError, match="disabled"):
            router.parallel_acompletions([])
        reload_with_flag(monkeypatch, "on")
        assert asyncio.run(router.parallel_acompletions([])) == []
        flags = importlib.import_module(PROPOSED_MODULES[1])
        assert flags.ENABLE_PARALLEL_ACOMPLETIONS is True
    finally:
        router_api.uninstall()
        reload_with_flag(monkeypatch, None)


def test_parallel_router_needs_no_flag() -> None:
    router = make_router(ParallelRouter)
    requests: list[Any] = [
        {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "hi"}]}
    ] * 5

    async def main() -> None:
        results = await router.parallel_acompletions(requests, concurrency=2, preserve_order=True)
        assert [result.index for result in results] == [0, 1, 2, 3, 4]
        async with router.iter_parallel_acompletions(requests, concurrency=2) as batch:
            assert len([result async for result in batch]) == 5

    asyncio.run(main())


def test_importing_the_package_is_light() -> None:
    heavy = ["litellm", "openai", "aiohttp", "typer", "rich", "httpx", "trio_asyncio", "pydantic"]
    code = (
        "import sys; from parallel_core import *; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    names = dir(parallel_core)
    assert "ParallelRouter" in names
    for name in names:
        assert getattr(parallel_core, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        parallel_core.nothing  # noqa: B018
