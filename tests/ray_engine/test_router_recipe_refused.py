"""What makes no Router in another process, and how that is told."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.router_recipes import KEY, Answers, answer, arguments_of, sent
from parallel_core.config.run_router import RouterConfigError
from parallel_core.demo_server import DemoServerThread
from parallel_core.ray_engine.router_recipe import checked_recipe

pytest.importorskip("ray")

pytestmark = pytest.mark.usefixtures("no_keys_of_this_machine")


class _NeedsMore:
    def __init__(self, name: str) -> None:
        raise AssertionError(name)


class _CalledAsync:
    async def __call__(self) -> Any: ...


async def _make_async() -> Any: ...


async def _generate_async() -> AsyncGenerator[Any]:
    yield


def _needs_a_model(model: str) -> Any:
    raise AssertionError(model)


class _HoldsRouter:
    def __init__(self) -> None:
        self.router = Answers()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Answers(), "a Router (Answers) cannot be sent to another process: give a function"),
        (_HoldsRouter(), "a Router (_HoldsRouter) cannot be sent to another process"),
        (answer, "must not be async; to call an async function instead of a Router, give"),
        (_make_async, "must not be async"),
        (functools.partial(_make_async), "must not be async"),
        (_generate_async, "must not be async"),
        (_CalledAsync(), "must not be async"),
        (_NeedsMore, "is called without arguments: missing a required argument: 'name'"),
        (_needs_a_model, "is called without arguments: missing a required argument: 'model'"),
        (7, "or the path of a config file, got int"),
        (None, "got NoneType"),
        (["model_list"], "got list"),
    ],
)
def test_what_makes_no_router_is_a_type_error(source: Any, says: str) -> None:
    with pytest.raises(TypeError) as caught:
        checked_recipe(source)
    assert says in str(caught.value)


@pytest.mark.parametrize("source", [{}, {"model_list": []}, {"num_retries": 3}, {"model_list": 7}])
def test_a_mapping_needs_a_model_list(source: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="the mapping has no model_list: it must have the argum"):
        checked_recipe(source)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RouterConfigError, match=r"nothing\.yaml cannot be read: No such file"):
        checked_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(RouterConfigError, match="cannot be read: No such file"):
        checked_recipe("gpt-4o")


def test_what_cannot_be_sent_is_told_with_the_reason() -> None:
    lock = threading.Lock()

    def make() -> Any:
        return lock

    sources: list[Any] = [make, {"model_list": [{}], "redis": lock}]
    for source in sources:
        with pytest.raises(TypeError) as caught:
            checked_recipe(source)
        text = str(caught.value)
        assert "cannot be sent to another process (TypeError: cannot pickle '_thread.lock'" in text
        assert "create the objects that it refers to" in text


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: None, "and gave NoneType"),
        (lambda: Answers, "and gave type"),
        (lambda: _make_async(), "gave a coroutine: it must not be async"),
        (contextlib.asynccontextmanager(_generate_async), "gave an asynchronous context manager"),
    ],
)
def test_what_a_function_gives_is_checked_when_it_is_opened(
    made: Callable[[], Any], says: str
) -> None:
    with pytest.raises(TypeError, match=says), checked_recipe(made).open():
        pass


def test_a_function_that_raises_is_heard() -> None:
    def make() -> Any:
        raise LookupError("nothing is there")

    with pytest.raises(LookupError, match="nothing is there"), sent(checked_recipe(make)).open():
        pass


def test_a_module_that_a_worker_has_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_the_driver.py").write_text("def make(): ...\n", "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = importlib.import_module("module_of_the_driver")
    recipe = sent(checked_recipe(module.make))
    monkeypatch.delitem(sys.modules, "module_of_the_driver")
    monkeypatch.setattr(sys, "path", [name for name in sys.path if name != str(tmp_path)])
    with pytest.raises(ImportError) as caught, recipe.open():
        pass
    assert "cannot be loaded in this process: No module named 'module_of_the" in str(caught.value)
    assert "must be installed wherever workers run" in str(caught.value)


def test_a_wrong_argument_of_the_router_is_told_without_its_value(server: DemoServerThread) -> None:
    recipe = checked_recipe({**arguments_of(server), "unknown_setting": 1})
    with pytest.raises(RouterConfigError, match="unknown_setting"):
        recipe.open().__enter__()
    recipe = checked_recipe(arguments_of(server, model=[7]))
    with pytest.raises(RouterConfigError) as caught:
        recipe.open().__enter__()
    assert KEY not in str(caught.value)


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        checked_recipe(Answers)
    assert str(caught.value) == "workers need Ray: pip install 'parallel_core[ray]'"
