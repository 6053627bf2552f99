"""The API of the original proposal, installed on litellm's Router."""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any, cast

import pytest

import parallel_core
from helpers.mocked_routers import make_mocked_router
from parallel_core import api
from parallel_core.litellm_patch import patch as our_patch

PROPOSED_MODULES = ("litellm.router_utils.parallel_acompletion", "litellm.experimental_flags")


def set_flag(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(our_patch.FLAG, raising=False)
    else:
        monkeypatch.setenv(our_patch.FLAG, value)


@pytest.fixture
def restored_router_module() -> Iterator[ModuleType]:
    """``litellm.router``, which the test may reload: its names are put back afterwards."""
    module = importlib.import_module("litellm.router")
    names = dict(vars(module))
    yield module
    vars(module).clear()
    vars(module).update(names)


@pytest.fixture
def installed(
    restored_router_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The proposal's API in litellm, with the flag on."""
    set_flag(monkeypatch, "1")
    parallel_core.install()
    yield
    parallel_core.uninstall()


@pytest.mark.usefixtures("installed")
def test_the_snippets_of_the_proposal_run_unchanged() -> None:
    router = make_mocked_router()
    lines: list[str] = []

    async def basic_usage() -> None:
        from litellm.router_utils.parallel_acompletion import RouterParallelRequest  # type: ignore[import-not-found]

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
        from litellm.experimental_flags import ENABLE_PARALLEL_ACOMPLETIONS  # type: ignore[import-not-found]
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
    finders = list(sys.meta_path)
    parallel_core.uninstall()  # nothing is there: nothing happens
    for _ in range(2):
        parallel_core.install()
    assert set(vars(Router)) - before == {
        "parallel_acompletions",
        "iter_parallel_acompletions",
        "iter_parallel_streams",
    }
    assert all(importlib.import_module(name) for name in PROPOSED_MODULES)
    assert len(sys.meta_path) == len(finders) + 1
    for _ in range(2):
        parallel_core.uninstall()
    assert set(vars(Router)) == before
    assert sys.meta_path == finders
    assert not hasattr(importlib.import_module("litellm.router"), "ENABLE_PARALLEL_ACOMPLETIONS")
    for name in PROPOSED_MODULES:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.mark.usefixtures("installed")
def test_the_methods_and_the_helpers_have_the_signature_of_the_proposal() -> None:
    from litellm import Router

    helpers = importlib.import_module(PROPOSED_MODULES[0])
    for function, what_is_called in (
        (cast("Any", Router).parallel_acompletions, "self"),
        (cast("Any", Router).iter_parallel_acompletions, "self"),
        (helpers.gather_parallel_acompletions, "router"),
        (helpers.iter_parallel_acompletions, "router"),
    ):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:5] == [
            what_is_called,
            "requests",
            "concurrency",
            "return_exceptions",
            "preserve_order",
        ]
        defaults = [parameters[key].default for key in list(parameters)[2:5]]
        assert defaults == [8, True, False]


@pytest.mark.usefixtures("installed")
def test_the_defaults_of_the_proposal_are_passed_on_whatever_those_of_the_package_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed: list[dict[str, Any]] = []

    def record(router: Any, requests: Any, **options: Any) -> Any:
        passed.append({name: options.get(name) for name in ("concurrency", "return_exceptions")})
        passed[-1]["preserve_order"] = options.get("preserve_order", False)  # streams have none
        return asyncio.sleep(0)

    for name in ("parallel_acompletions", "iter_parallel_acompletions", "iter_parallel_streams"):
        monkeypatch.setattr(api, name, record)
    helpers = importlib.import_module(PROPOSED_MODULES[0])
    router = make_mocked_router()

    async def main() -> None:
        await router.parallel_acompletions([])
        await router.iter_parallel_acompletions([])
        await router.iter_parallel_streams([])
        await helpers.gather_parallel_acompletions(router, [])
        await helpers.iter_parallel_acompletions(router, [])

    asyncio.run(main())
    defaults = {"concurrency": 8, "return_exceptions": True, "preserve_order": False}
    assert passed == [defaults] * 5


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
    set_flag(monkeypatch, value)
    parallel_core.install()
    router = make_mocked_router()
    try:
        for name in ("litellm.experimental_flags", "litellm.router"):
            assert importlib.import_module(name).ENABLE_PARALLEL_ACOMPLETIONS is enabled
        assert_switched(router, enabled)
        # The functions of the package are not gated.
        assert asyncio.run(parallel_core.parallel_acompletions(router, [])) == []
    finally:
        parallel_core.uninstall()


def assert_switched(router: Any, enabled: bool) -> None:
    if enabled:
        assert asyncio.run(router.parallel_acompletions([])) == []
        return
    # At the call, before anything is awaited, and for an empty list too.
    for name in ("parallel_acompletions", "iter_parallel_acompletions", "iter_parallel_streams"):
        with pytest.raises(RuntimeError, match=r"^parallel_acompletions disabled") as caught:
            getattr(router, name)([])
        assert "LITELLM_ENABLE_PARALLEL_ACOMPLETIONS=1" in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_patching_the_flag_in_litellms_router_switches_the_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = make_mocked_router()
    monkeypatch.setenv(our_patch.FLAG, "0")  # it is not read at a call
    assert_switched(router, True)
    with monkeypatch.context() as patch:
        patch.setattr("litellm.router.ENABLE_PARALLEL_ACOMPLETIONS", False)
        assert_switched(router, False)
    assert_switched(router, True)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("reloaded", ["litellm.experimental_flags", "litellm.router", "both"])
def test_a_reload_applies_the_new_value_of_the_flag(
    reloaded: str, restored_router_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litellm import Router

    flags = importlib.import_module("litellm.experimental_flags")
    before = make_mocked_router()
    for enabled in (False, True):
        set_flag(monkeypatch, str(int(enabled)))
        for module in (flags, restored_router_module):
            if reloaded in (module.__name__, "both"):
                assert importlib.reload(module) is module
        assert flags.ENABLE_PARALLEL_ACOMPLETIONS is enabled
        assert restored_router_module.__dict__["ENABLE_PARALLEL_ACOMPLETIONS"] is enabled
        # Routers of both classes: the one from before the reload, and the new one.
        assert_switched(before, enabled)
        new_class = restored_router_module.__dict__["Router"]
        assert (new_class is Router) is (reloaded == "litellm.experimental_flags")
        assert_switched(make_mocked_router(new_class), enabled)
    parallel_core.uninstall()
    for router_class in (Router, new_class):
        assert not hasattr(router_class, "parallel_acompletions")
    assert type(importlib.import_module("litellm.router").__loader__) is SourceFileLoader


def test_install_extends_the_class_that_users_import_after_a_reload_of_the_module(
    restored_router_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litellm import Router

    set_flag(monkeypatch, "1")
    importlib.reload(restored_router_module)
    new_class = restored_router_module.__dict__["Router"]
    assert new_class is not Router
    parallel_core.install()
    assert_switched(make_mocked_router(), True)
    assert_switched(make_mocked_router(new_class), True)
    parallel_core.uninstall()
    for router_class in (Router, new_class):
        assert not hasattr(router_class, "parallel_acompletions")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("again", ["reloaded", "imported"])
def test_a_router_api_that_is_loaded_again_recognizes_what_it_has_installed(
    again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litellm import Router

    if again == "reloaded":
        api = importlib.reload(our_patch)
    else:
        for name in ("litellm_patch", "litellm_patch.import_finder", "litellm_patch.patch"):
            monkeypatch.delitem(sys.modules, f"parallel_core.{name}")
        monkeypatch.setattr(parallel_core, "litellm_patch", None)
        api = importlib.import_module("parallel_core.litellm_patch.patch")
        assert api is not our_patch
    api.install()
    assert_switched(make_mocked_router(), True)
    assert len([finder for finder in sys.meta_path if "ImportFinder" in repr(finder)]) == 1
    api.uninstall()
    assert not hasattr(Router, "parallel_acompletions")
    assert PROPOSED_MODULES[0] not in sys.modules


@pytest.mark.usefixtures("installed")
def test_the_spec_of_litellms_router_has_the_loader_of_a_source_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "litellm.router")  # as if it had not been imported yet
        spec = importlib.util.find_spec("litellm.router")
    assert spec is not None
    loader: Any = spec.loader
    assert loader.get_filename("litellm.router") == spec.origin
    assert "class Router" in loader.get_source("litellm.router")
    assert loader.get_code("litellm.router").co_filename == spec.origin
    with pytest.raises(AttributeError):
        copy.copy(loader).no_such_attribute  # noqa: B018


@pytest.mark.usefixtures("installed")
def test_a_reloaded_router_takes_over_a_flag_that_was_patched(
    restored_router_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``from litellm.experimental_flags import …``, as the proposal's ``litellm.router`` has it."""
    monkeypatch.setattr("litellm.experimental_flags.ENABLE_PARALLEL_ACOMPLETIONS", False)
    importlib.reload(restored_router_module)
    assert_switched(make_mocked_router(restored_router_module.__dict__["Router"]), False)


def test_importing_the_package_is_light() -> None:
    heavy = ["litellm", "openai", "aiohttp", "typer", "rich", "httpx", "trio_asyncio", "pydantic"]
    heavy += ["jinja2", "matplotlib"]
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
