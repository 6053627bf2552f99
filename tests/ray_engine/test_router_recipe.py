"""How the processes of workers get their Routers: what can be sent to them, what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import pickle
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import parallel_core
from helpers.forked_processes import ForkedProcesses
from helpers.router_recipes import KEY, Answers, answer, arguments_of, sent
from parallel_core.config.router_members import deployments
from parallel_core.config.run_router import (
    RouterConfigError,
    RunRouter,
    demo_router,
    router_from_config,
    router_from_model,
)
from parallel_core.demo_server import DemoServerThread
from parallel_core.ray_engine.router_recipe import Recipe, checked_recipe

pytest.importorskip("ray")

pytestmark = pytest.mark.usefixtures("no_keys_of_this_machine")


def ask(router: Any, *models: str) -> list[Any]:
    messages = [{"role": "user", "content": "?"}]
    requests = [{"model": model, "messages": messages} for model in models]
    return asyncio.run(parallel_core.parallel_acompletions(router, requests))


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


def opened_elsewhere(
    commands: ForkedProcesses, folder: Path, recipes: Mapping[str, Recipe], **environment: str
) -> dict[str, Any]:
    """What another process, with another environment, makes of them."""
    process = commands.start(
        [],
        script=Path(__file__).with_name("scripts") / "open_recipes.py",
        folder=folder,
        standard_input=pickle.dumps({name: pickle.dumps(one) for name, one in recipes.items()}),
        environment=environment,
    )
    assert process.wait() == 0, process.output
    answers: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answers


@pytest.mark.thorough  # each test with Ray does
def test_another_process_opens_the_same_routers(
    server: DemoServerThread,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commands: ForkedProcesses,
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
            commands,
            tmp_path,
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
