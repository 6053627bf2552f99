"""``ParallelRouter``: a Router with the methods of the proposal, without a flag."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import unittest.mock
from types import FunctionType
from typing import Any, cast

import pytest

from helpers.mocked_routers import make_mocked_router
from parallel_core import ParallelRouter
from parallel_core.config.router_members import deployments


def test_parallel_router_needs_no_flag() -> None:
    router = make_mocked_router(ParallelRouter)
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

    router = make_mocked_router(ParallelRouter)
    assert isinstance(router, Router)
    assert isinstance(router, ParallelRouter)
    assert not isinstance(make_mocked_router(), ParallelRouter)
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
    router = make_mocked_router(ParallelRouter)
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
    router = make_mocked_router(ParallelRouter)
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

    router = make_mocked_router(Counting)
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
    held = make_mocked_router()
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

    router = make_mocked_router(Extended)
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

    router = make_mocked_router(ParallelRouter)
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
