"""Where the Router of a file run comes from: a config of the proxy, a model's name, the demo."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import litellm
import pytest
import trio

import parallel_core
from helpers.run_configs import KEYS, Write, ask, one_deployment, problems_of
from parallel_core.config import endpoint_of, quiet_litellm, secrets_sent
from parallel_core.config.providers import shown_url
from parallel_core.config.router_members import deployments, setting
from parallel_core.config.run_router import (
    RouterConfigError,
    demo_router,
    router_from_config,
    router_from_model,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread


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
    monkeypatch.setenv("RUN_ROUTER_DROP", " True")  # as litellm's proxy server reads it
    text = (
        one_deployment(api_key="os.environ/RUN_ROUTER_NEW")
        + """
environment_variables: {RUN_ROUTER_NEW: sk-new-123, RUN_ROUTER_OLD: 7, PATH: /nowhere,
  RUN_ROUTER_EMPTY: os.environ/RUN_ROUTER_UNKNOWN}
litellm_settings: {drop_params: os.environ/RUN_ROUTER_DROP, request_timeout: 33,
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
        assert litellm.drop_params is True
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
    assert shown_url("http://h:port/") == "(invalid URL)"
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
