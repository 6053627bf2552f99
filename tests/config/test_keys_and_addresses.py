"""Which key goes to which address, over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import parallel_core
from helpers.key_recorders import ANTHROPIC_KEY, GROQ_KEY, OPENAI_KEY, Recorder
from parallel_core.config.providers import owner_of, providers_by_host
from parallel_core.config.run_router import (
    RouterConfigError,
    RunRouter,
    router_from_config,
    router_from_model,
)

pytestmark = pytest.mark.usefixtures("three_keys")


def ask(run_router: RunRouter, *models: str) -> None:
    for model in models:
        request = {"model": model, "messages": [{"role": "user", "content": "?"}]}
        (result,) = parallel_core.parallel_completions(run_router.router, [request])
        assert result.exception is None


@pytest.mark.parametrize(
    ("model", "others", "sent"),
    [
        (
            "openai/y",
            ["plain", "openai/z", "anthropic/claude-x", "groq/q", "meta-llama/L"],
            [
                ("y", OPENAI_KEY),
                ("plain", OPENAI_KEY),
                ("z", OPENAI_KEY),
                ("anthropic/claude-x", OPENAI_KEY),
                ("groq/q", OPENAI_KEY),
                ("meta-llama/L", OPENAI_KEY),
            ],
        ),
        (
            "groq/y",
            ["plain", "groq/z", "openai/gpt-oss", "anthropic/claude-x", "gpt-4o"],
            [
                ("y", GROQ_KEY),
                ("plain", GROQ_KEY),
                ("z", GROQ_KEY),
                ("openai/gpt-oss", GROQ_KEY),
                ("anthropic/claude-x", GROQ_KEY),
                ("gpt-4o", GROQ_KEY),
            ],
        ),
        (
            "anthropic/claude-y",
            ["plain", "openai/gpt", "gpt-4o"],
            [
                ("claude-y", ANTHROPIC_KEY),
                ("plain", ANTHROPIC_KEY),
                ("openai/gpt", ANTHROPIC_KEY),
                ("gpt-4o", ANTHROPIC_KEY),
            ],
        ),
        ("hosted_vllm/y", ["openai/gpt", "plain"], [("y", ""), ("openai/gpt", ""), ("plain", "")]),
        ("claude-x", ["anthropic/y"], [("claude-x", OPENAI_KEY), ("anthropic/y", OPENAI_KEY)]),
    ],
)
def test_all_names_keep_the_provider_address_and_key_of_the_model(
    model: str,
    others: list[str],
    sent: list[tuple[str, str]],
    servers: tuple[Recorder, Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, elsewhere = servers
    for name in ("OPENAI", "GROQ", "ANTHROPIC"):  # a call that went there would be seen
        monkeypatch.setenv(f"{name}_API_BASE", elsewhere.url)
    with router_from_model(model, api_base=server.url, others=others) as run_router:
        ask(run_router, model, *others)
    arrived = [(one.model, one.keys) for one in server.sent]
    assert [name for name, _ in arrived] == [name for name, _ in sent]
    others_keys = {OPENAI_KEY, ANTHROPIC_KEY, GROQ_KEY}
    assert [keys & others_keys for _, keys in arrived] == [{key} - {""} for _, key in sent]
    assert elsewhere.sent == []


def test_without_an_address_each_provider_gets_its_own_key(
    servers: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    openai, groq = servers
    monkeypatch.setenv("OPENAI_API_BASE", openai.url)
    monkeypatch.setenv("GROQ_API_BASE", groq.url)
    # A name without a provider is one of the provider of --model, also where litellm knows it as
    # another one's; a name with a provider goes to that one.
    with router_from_model("groq/y", others=["plain", "gpt-4o", "openai/gpt-4o"]) as run_router:
        ask(run_router, "groq/y", "plain", "gpt-4o", "openai/gpt-4o")
    assert [(one.model, one.keys) for one in groq.sent] == [
        ("y", {GROQ_KEY}),
        ("plain", {GROQ_KEY}),
        ("gpt-4o", {GROQ_KEY}),
    ]
    assert [(one.model, one.keys) for one in openai.sent] == [("gpt-4o", {OPENAI_KEY})]


def test_a_server_without_a_key_of_its_provider_gets_none(
    servers: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    with router_from_model("x", api_base=servers[0].url, others=["anthropic/y"]) as run_router:
        ask(run_router, "x", "anthropic/y")
        copy = run_router.recipe
    with copy() as run_router:  # as a worker makes it, elsewhere
        ask(run_router, "anthropic/y")
    assert [(one.model, one.keys) for one in servers[0].sent] == [
        ("x", {"none"}),
        ("anthropic/y", {"none"}),
        ("anthropic/y", {"none"}),
    ]


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.anthropic.com", "anthropic"),
        ("https://api.openai.com/v1", "openai"),
        ("https://api.groq.com./openai/v1", "groq"),
        ("HTTPS://API.Groq.Com:443/openai/v1", "groq"),
        ("https://api.x.ai/v1", "xai"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
        ("https://api.fireworks.ai/inference/v1", "fireworks_ai"),
        ("http://localhost:11434", None),
        ("http://127.0.0.1:8000/v1", None),
        ("https://openai.example.com/v1", None),
        ("http://openai:8000", None),
        ("http://[broken", None),
    ],
)
def test_whose_an_address_is(address: str, owner: str | None) -> None:
    assert owner_of(address) == owner


def test_an_address_of_a_variable_belongs_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_BASE", "https://llm.example.com/v1")
    providers_by_host.cache_clear()
    assert owner_of("https://llm.example.com/v1") is None
    assert owner_of("https://api.cerebras.ai./v1") == "cerebras"
    assert os.environ["GROQ_API_BASE"] == "https://llm.example.com/v1"


def test_an_address_in_a_line_needs_a_key_in_the_line(
    run_command: Callable[..., tuple[int, str]], servers: tuple[Recorder, Recorder]
) -> None:
    server, elsewhere = servers
    options = ["--model", "openai/m", "--api-base", server.url]
    options += ["--trust-input", "--send-columns", "--force-new"]
    for name in ("api_base", "base_url"):
        for key in ({}, {"api_key": None}, {"api_key": " "}):
            code, output = run_command(*options, members={name: elsewhere.url, **key})
            assert code == 2
            assert f"'{name}' without an api_key: the key of the Router would be sent" in output
        code, _ = run_command(*options, members={name: elsewhere.url, "api_key": "theirs"})
        assert code == 0
    # Without an address litellm takes the usual one of the provider.
    code, _ = run_command(*options, members={"api_base": None})
    assert code == 2
    assert [one.keys for one in elsewhere.sent] == [{"theirs"}, {"theirs"}]
    assert server.sent == []


def test_no_key_goes_to_the_address_of_another_provider(tmp_path: Path) -> None:
    with pytest.raises(RouterConfigError) as caught:
        router_from_model("openai/llama", api_base="https://api.groq.com/openai/v1").close()
    assert "would send the key of openai to https://api.groq.com/openai/v1" in str(caught.value)
    assert "write groq/llama" in str(caught.value)
    with router_from_model("llama", api_base="https://api.groq.com/openai/v1") as run_router:
        assert [endpoint.model for endpoint in run_router.endpoints] == ["groq/llama"]
    # A key that is given for the address is sent to it.
    given = {"api_base": "https://api.groq.com/openai/v1", "api_key": GROQ_KEY}
    router_from_model("openai/llama", api_base=given["api_base"], api_key=given["api_key"]).close()
    path = tmp_path / "config.yaml"
    entry: dict[str, Any] = {
        "model_name": "gpt",
        "litellm_params": {"model": "openai/llama", **given},
    }
    path.write_text(json.dumps({"model_list": [entry]}))
    router_from_config(path).close()
    with pytest.raises(RouterConfigError, match=r"an address of xai; write xai/llama"):
        router_from_model("openai/llama", api_base="https://api.x.ai/v1").close()
    del entry["litellm_params"]["api_key"]
    path.write_text(json.dumps({"model_list": [entry]}))
    with pytest.raises(RouterConfigError, match=r"line 1: .*would send the key of openai"):
        router_from_config(path).close()
