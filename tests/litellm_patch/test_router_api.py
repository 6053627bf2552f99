"""The proposal's API: ``install()``, the flag, and ``ParallelRouter``."""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import inspect
import pickle
import subprocess
import sys
import unittest.mock
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any, cast

import pytest

import parallel_core
from parallel_core import ParallelRouter, dispatch, router_api
from parallel_core._router_members import deployments

PROPOSED_MODULES = ("litellm.router_utils.parallel_acompletion", "litellm.experimental_flags")


def set_flag(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(router_api.FLAG, raising=False)
    else:
        monkeypatch.setenv(router_api.FLAG, value)


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
        monkeypatch.setattr(dispatch, name, record)
    helpers = importlib.import_module(PROPOSED_MODULES[0])
    router = make_router()

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
    router = make_router()
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
    router = make_router()
    monkeypatch.setenv(router_api.FLAG, "0")  # it is not read at a call
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
    before = make_router()
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
        assert_switched(make_router(new_class), enabled)
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
    assert_switched(make_router(), True)
    assert_switched(make_router(new_class), True)
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
        api = importlib.reload(router_api)
    else:
        for name in ("router_api", "litellm_patch", "litellm_patch.import_finder"):
            monkeypatch.delitem(sys.modules, f"parallel_core.{name}")
        monkeypatch.setattr(parallel_core, "router_api", None)
        monkeypatch.setattr(parallel_core, "litellm_patch", None)
        api = importlib.import_module("parallel_core.router_api")
        assert api is not router_api
    api.install()
    assert_switched(make_router(), True)
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
    assert_switched(make_router(restored_router_module.__dict__["Router"]), False)


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


def deployed(router: Any) -> list[str]:
    return [deployment["model_name"] for deployment in deployments(router)]


def test_a_parallel_router_is_a_router() -> None:
    from litellm import Router

    router = make_router(ParallelRouter)
    assert isinstance(router, Router)
    assert isinstance(router, ParallelRouter)
    assert not isinstance(make_router(), ParallelRouter)
    assert inspect.signature(ParallelRouter) == inspect.signature(Router)
    assert {"parallel_acompletions", "model_list", "acompletion"} <= set(dir(router))
    assert inspect.iscoroutinefunction(router.acompletion)
    shallow = copy.copy(router)
    assert isinstance(shallow, ParallelRouter)
    assert deployed(shallow) == ["gpt-3.5-turbo"]
    with pytest.raises(TypeError):  # of a Router, too
        pickle.dumps(router)
    with pytest.raises(TypeError):
        cast("Any", ParallelRouter)(no_such_argument=1)


def test_attributes_of_a_parallel_router_are_those_of_its_router() -> None:
    router = make_router(ParallelRouter)
    assert deployed(router) == ["gpt-3.5-turbo"]
    router.num_retries = 7
    assert router.num_retries == 7
    # What the Router itself reads is what was set: it knows no other place.
    assert vars(router)["_held_router"].num_retries == 7
    router.set_model_list([])
    assert deployed(router) == []
    router.mine = "kept"
    assert router.mine == "kept"
    del router.mine
    for name in ("mine", "no_such_attribute"):
        with pytest.raises(AttributeError, match=name):
            getattr(router, name)


def test_the_methods_of_a_parallel_router_can_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(ParallelRouter)
    request: Any = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "hi"}]}

    async def fake(model: str, messages: Any, **kwargs: Any) -> str:
        return "patched"

    async def answer() -> Any:
        ((result,), response) = (
            await router.parallel_acompletions([request]),
            await router.acompletion(**request),
        )
        assert type(result.unwrap()) is type(response)
        return response

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(router, "acompletion", fake)
            assert asyncio.run(answer()) == "patched"
        assert asyncio.run(answer()).choices[0].message.content == "made up"
        with unittest.mock.patch.object(router, "acompletion", fake):
            assert asyncio.run(answer()) == "patched"
        assert asyncio.run(answer()).choices[0].message.content == "made up"
    with monkeypatch.context() as patch:
        patch.setattr(router, "parallel_acompletions", fake)
        assert asyncio.run(router.parallel_acompletions("", "")) == "patched"
    assert asyncio.run(router.parallel_acompletions([])) == []


def test_a_subclass_of_parallel_router() -> None:
    class Counting(ParallelRouter):
        calls = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with pytest.raises(AttributeError, match=r"model_list.*super\(\).__init__"):
                self.model_list  # noqa: B018
            self.label = "set before"
            super().__init__(*args, **kwargs)
            self.label += ", and after"

        async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return await super().acompletion(*args, **kwargs)

    router = make_router(Counting)
    assert router.label == "set before, and after"
    requests = [{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "hi"}]}] * 3
    results = asyncio.run(router.parallel_acompletions(requests))
    assert [result.ok for result in results] == [True] * 3
    assert (router.calls, Counting.calls) == (3, 0)


def public_methods(cls: Any) -> dict[str, Any]:
    names = [name for name in dir(cls) if not name.startswith("_")]
    return {name: getattr(cls, name) for name in names if inspect.isroutine(getattr(cls, name))}


@pytest.mark.filterwarnings("ignore:Router:DeprecationWarning")
def test_the_class_has_every_public_member_of_router_and_of_the_same_kind() -> None:
    from litellm import Router

    assert {name for name in dir(Router) if not name.startswith("_")} <= set(dir(ParallelRouter))
    held = make_router()
    for name, method in public_methods(Router).items():
        own = getattr(ParallelRouter, name)
        assert inspect.iscoroutinefunction(own) is inspect.iscoroutinefunction(method), name
        assert inspect.signature(own) == inspect.signature(method), name
        kind = type(inspect.getattr_static(ParallelRouter, name))
        if inspect.ismethod(method):
            assert kind is classmethod, name
        else:
            static = inspect.signature(getattr(held, name)) == inspect.signature(method)
            assert kind is (staticmethod if static else FunctionType), name
    assert type(inspect.getattr_static(ParallelRouter, "get_valid_args")) is staticmethod
    if hasattr(Router, "from_config"):  # since 1.110
        assert isinstance(ParallelRouter.from_config(vars(held)["_core"]._config), ParallelRouter)


def test_a_subclass_and_its_users_reach_every_method_of_router() -> None:
    class Extended(ParallelRouter):
        def completion(self, *args: Any, **kwargs: Any) -> Any:
            return [super().completion(*args, **kwargs)]

        def flush_cache(self) -> Any:
            return [super().flush_cache()]

        @staticmethod
        def get_valid_args() -> list[str]:
            return ["extended", *ParallelRouter.get_valid_args()]

    router = make_router(Extended)
    request: Any = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "hi"}]}
    (answer,) = router.completion(**request)
    assert answer.choices[0].message.content == "made up"
    assert ParallelRouter.completion(router, **request).model == answer.model
    assert router.flush_cache() == [None]
    assert "num_retries" in router.get_valid_args()

    # What was read can be called by what replaces it.
    original = router.acompletion
    router.acompletion = lambda **kwargs: original(**kwargs)
    (result,) = asyncio.run(router.parallel_acompletions([request]))
    assert result.unwrap().choices[0].message.content == "made up"


def test_the_class_of_a_parallel_router_can_be_patched_and_specified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from litellm import Router

    router = make_router(ParallelRouter)
    for target in (ParallelRouter, Router):
        with unittest.mock.patch.object(target, "aembedding") as patched:
            assert isinstance(patched, unittest.mock.AsyncMock)
            patched.return_value = "patched"
            assert asyncio.run(router.aembedding(model="gpt-3.5-turbo", input="hi")) == "patched"
    with monkeypatch.context() as patch:
        patch.setattr(ParallelRouter, "flush_cache", lambda self: "patched")
        assert router.flush_cache() == "patched"
    assert router.flush_cache() is None

    for spec in (
        unittest.mock.create_autospec(ParallelRouter, instance=True),
        unittest.mock.Mock(spec=ParallelRouter),
    ):
        assert isinstance(spec.acompletion, unittest.mock.AsyncMock)
        spec.get_model_list(model_name="gpt-3.5-turbo")
        assert not isinstance(spec.completion, unittest.mock.AsyncMock)
        assert not hasattr(Router, "model_list") or spec.model_list  # before 1.110: of an instance
        with pytest.raises(AttributeError):
            spec.no_such_method()


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
