"""What a run is described by: what decides its answers, and not where they come from."""

from __future__ import annotations

import json
import re
from typing import Any

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from helpers.run_configs import Write, one_deployment
from parallel_core.config.identity import WITHOUT_INFLUENCE, describe_deployments
from parallel_core.config.run_router import router_from_config


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
