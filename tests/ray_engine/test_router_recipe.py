"""How the processes of workers get their Routers: what can be sent to them, what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import parallel_core
from parallel_core._router_members import deployments
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.run_router import (
    RouterConfigError,
    RunRouter,
    demo_router,
    router_from_config,
    router_from_model,
)

pytest.importorskip("ray")

from parallel_core._router_recipe import Recipe, checked_recipe

KEY = "sk-of-the-recipe-0123456789"
MODELS = {"fast": 1.0, "smart": 1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0, models=MODELS)) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith(("_KEY", "_TOKEN", "_PROXY", "_API_BASE", "_BASE_URL")):
            monkeypatch.delenv(name)


def sent(recipe: Recipe) -> Recipe:
    """The recipe as it comes out in another process."""
    copy: Recipe = pickle.loads(pickle.dumps(recipe))
    return copy


def ask(router: Any, *models: str) -> list[Any]:
    messages = [{"role": "user", "content": "?"}]
    requests = [{"model": model, "messages": messages} for model in models]
    return asyncio.run(parallel_core.parallel_acompletions(router, requests))


def arguments_of(server: DemoServerThread, **parameters: object) -> dict[str, Any]:
    shared = {"model": "openai/fast", "api_base": server.url, "api_key": KEY, **parameters}
    return {"model_list": [{"model_name": "gpt", "litellm_params": shared}], "num_retries": 0}


class Answers:
    """Stands for a Router."""

    def __init__(self, name: str = "of a class") -> None:
        self.name = name
        self.discarded = False

    async def acompletion(self, **arguments: Any) -> str:
        return f"{self.name}: {arguments['model']}"

    def discard(self) -> None:
        self.discarded = True


async def answer(*, model: str, messages: Any) -> str:
    return f"{len(messages)} for {model}"


# --- what makes a Router ---


def test_a_function_makes_the_router_in_each_process() -> None:
    made: list[Answers] = []

    def make() -> Answers:
        made.append(Answers("of a function"))
        return made[-1]

    recipe = checked_recipe(make)
    assert made == []
    with recipe.open() as router:
        assert [router] == made  # it is called itself here
        assert not router.discarded
    assert made[0].discarded
    with sent(recipe).open() as router:
        assert ask(router, "gpt")[0].response == "of a function: gpt"
    assert len(made) == 1


@pytest.mark.parametrize(
    "source",
    [Answers, functools.partial(Answers, "of a class"), lambda: Answers()],
    ids=["a class", "a partial", "a lambda"],
)
def test_every_callable_makes_a_router(source: Callable[[], Any]) -> None:
    with sent(checked_recipe(source)).open() as router:
        assert ask(router, "gpt")[0].response == "of a class: gpt"


def test_a_function_may_give_a_bare_callable() -> None:
    with sent(checked_recipe(lambda: answer)).open() as router:
        assert ask(router, "gpt")[0].response == "1 for gpt"


@pytest.mark.parametrize("gives", ["itself", "with .router", "a Router"])
def test_a_context_manager_is_entered_and_left(gives: str) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def opened() -> Generator[Any]:
        router = Answers()
        steps.append("entered")
        yield SimpleNamespace(router=router) if gives == "with .router" else router
        steps.append("left")
        assert not router.discarded  # who enters it is not asked to

    class Manager(Answers):
        def __enter__(self) -> Manager:
            steps.append("entered")
            return self

        def __exit__(self, *_: object) -> None:
            steps.append("left")

    recipe = checked_recipe(Manager if gives == "itself" else opened)
    with recipe.open() as router:
        assert steps == ["entered"]
        assert ask(router, "gpt")[0].response == "of a class: gpt"
    assert steps == ["entered", "left"]


def test_a_mapping_has_the_arguments_of_litellms_router(
    server: DemoServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arguments_of(server, api_key="os.environ/RECIPE_KEY")
    before = json.dumps(arguments)
    recipe = checked_recipe(arguments)
    monkeypatch.setenv("RECIPE_KEY", KEY)  # looked up where the Router is made
    with recipe.open() as first, sent(recipe).open() as second:
        assert first is not second
        for router in (first, second):
            assert deployments(router)[0]["litellm_params"]["api_key"] == KEY
            assert router.num_retries == 0
            assert ask(router, "gpt")[0].ok
    assert json.dumps(arguments) == before


def test_a_config_file_is_read_once_and_travels(
    server: DemoServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    path = config_of(tmp_path, server)
    recipe = checked_recipe(str(path))
    path.unlink()
    drop_params = litellm.drop_params
    monkeypatch.setenv("RECIPE_KEY", KEY)
    with sent(recipe).open() as router:
        assert os.environ["RECIPE_SET"] == "by the file"
        assert litellm.drop_params is True
        assert deployments(router)[0]["litellm_params"]["api_key"] == KEY
        assert ask(router, "gpt")[0].ok
    assert "RECIPE_SET" not in os.environ
    assert litellm.drop_params is drop_params
    monkeypatch.delenv("RECIPE_KEY")
    with pytest.raises(RouterConfigError, match="RECIPE_KEY is not set"), sent(recipe).open():
        pass


def config_of(folder: Path, server: DemoServerThread) -> Path:
    path = folder / "config.yaml"
    path.write_text(
        f"""
model_list:
- model_name: gpt
  litellm_params: {{model: openai/fast, api_base: "{server.url}", api_key: os.environ/RECIPE_KEY}}
environment_variables: {{RECIPE_SET: by the file}}
litellm_settings: {{drop_params: true}}
router_settings: {{num_retries: 0}}
""",
        "utf-8",
    )
    return path


def test_a_router_is_forgotten_by_litellm_when_its_recipe_is_left(server: DemoServerThread) -> None:
    import litellm
    from litellm.router import Router

    def known() -> list[Any]:
        return [*litellm.input_callback, *litellm.success_callback, *litellm.callbacks]

    arguments = arguments_of(server)
    before = known()
    for source in (arguments, lambda: Router(**arguments)):
        with checked_recipe(source).open():
            pass  # before 1.110 each Router adds to these lists; since, one entry serves for all
        assert known() == before


# --- what is refused ---


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
        assert "has to be made inside of a function" in text


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


def test_a_recipe_shows_no_key(server: DemoServerThread, tmp_path: Path) -> None:
    path = config_of(tmp_path, server)
    path.write_text(path.read_text("utf-8").replace("os.environ/RECIPE_KEY", KEY), "utf-8")
    with router_from_model("openai/fast", api_base=server.url, api_key=KEY) as of_model:
        recipes = [
            checked_recipe(arguments_of(server)),
            checked_recipe(path),
            checked_recipe(of_model.recipe),
            checked_recipe(functools.partial(Answers, KEY)),
        ]
        texts = [repr(of_model.recipe), *map(repr, recipes)]
    for text in texts:
        assert KEY not in text
    assert repr(recipes[1]) == f"<Recipe of the config file {path}>"


# --- the Routers of file runs, elsewhere ---

ELSEWHERE = """
import asyncio, json, os, pickle, sys

import parallel_core
from parallel_core._router_members import deployments

opened = {}
for name, packed in pickle.load(sys.stdin.buffer).items():
    recipe = pickle.loads(packed)
    with recipe.open() as router:
        models = [deployment["model_name"] for deployment in deployments(router)]
        request = {"model": models[0], "messages": [{"role": "user", "content": "?"}]}
        (result,) = asyncio.run(parallel_core.parallel_acompletions(router, [request]))
        opened[name] = {
            "answered": result.ok,
            "models": models,
            "parameters": deployments(router)[0]["litellm_params"],
            "retries": router.num_retries,
            "variable": os.environ.get("RECIPE_SET"),
        }
print(json.dumps(opened, default=str))
"""


def opened_elsewhere(recipes: Mapping[str, Recipe], **environment: str) -> dict[str, Any]:
    """What another process, with another environment, makes of them."""
    process = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickle.dumps({name: pickle.dumps(recipe) for name, recipe in recipes.items()}),
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr.decode()
    answers: dict[str, Any] = json.loads(process.stdout.decode().splitlines()[-1])
    return answers


def test_another_process_opens_the_same_routers(
    server: DemoServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_KEY", "sk-of-the-driver")
    with contextlib.ExitStack() as stack:
        routers: dict[str, RunRouter] = {
            "config": router_from_config(config_of(tmp_path, server)),
            "model": router_from_model(
                "openai/fast", api_base=server.url, api_key=KEY, others=["smart"], num_retries=1
            ),
            "no key": router_from_model("fast", api_base=server.url, others=["smart"]),
            "demo": demo_router(["fast", "smart"], latency=0.0, num_retries=1),
        }
        for router in routers.values():
            stack.enter_context(router)
        demo = routers["demo"].server
        assert demo is not None
        opened = opened_elsewhere(
            {name: checked_recipe(router.recipe) for name, router in routers.items()},
            RECIPE_KEY="sk-of-the-worker",
        )
        assert demo.stats().accepted == 1  # it asked the one that is there, and has not ended it
    assert [one["answered"] for one in opened.values()] == [True] * 4
    assert opened["config"]["parameters"]["api_key"] == "sk-of-the-worker"
    assert opened["config"]["variable"] == "by the file"
    assert opened["model"]["parameters"]["api_key"] == KEY
    assert opened["model"]["models"] == ["openai/fast", "smart"]
    assert opened["no key"]["parameters"]["api_key"] == "none"
    assert opened["demo"]["parameters"]["api_base"] == demo.url
    assert [opened[name]["retries"] for name in ("config", "model", "demo")] == [0, 1, 1]


def test_a_key_that_only_the_driver_has_is_missed_where_the_router_is_made(
    server: DemoServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        router_from_model("openai/fast") as provider,
        router_from_model("openai/fast", api_base=server.url) as own,
    ):
        recipes = [provider.recipe, own.recipe]
    for recipe in recipes:
        copy = sent(checked_recipe(recipe))
        with copy.open():
            pass
        with monkeypatch.context() as without:
            without.delenv("OPENAI_API_KEY")
            with pytest.raises(RouterConfigError, match="set the environment variable OPENAI_API_"):
                copy.open().__enter__()
