"""What the lane has learnt of one deployment is not used for another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from helpers.direct_parity import Way, router_of, send, unlike
from helpers.recording_provider import Answer, Canned, Kept, recording_provider
from helpers.thorough import thorough_but
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop


def ask(model: str, **arguments: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "a"}], **arguments}


def sent(one: Kept) -> Any:
    """A request as the provider reads it: names of headers have no case."""
    headers = [(name.lower(), value) for name, value in one.headers]
    return one.path, sorted(pair for pair in headers if pair[0] != "connection"), one.body


def compare(
    groups: Any, requests: list[dict[str, Any]], answer: Answer | None = None, **settings: Any
) -> Way:
    """Check that both ways send the same and have the same outcomes. Return the direct one."""
    ways: list[Way] = []

    async def main() -> None:
        for direct in (False, True):
            with recording_provider(answer) as provider:
                router = router_of(provider.url, groups, **settings)
                ways.append(await send(router, requests, direct, retry=None))
                ways[-1].outcomes.append({"sent": [sent(one) for one in provider.kept]})

    # Not run_with_routers: litellm closes some clients of its own in tasks that it leaves behind.
    with asyncio.Runner() as runner:
        runner.run(main())
        runner.run(close_clients_of_this_loop())
    plain, direct = ways
    for request, one, other in zip([*requests, {}], plain.outcomes, direct.outcomes, strict=True):
        assert unlike(one, other) == {}, request
    return direct


def test_deployments_with_equal_parameters() -> None:
    groups = {name: [{"model": "openai/fast"}] for name in ("one", "two")}
    way = compare(groups, [ask(name) for name in ("one", "two") * 3])
    assert way.direct_calls == 6


def test_deployments_with_equal_parameters_and_other_prices() -> None:
    groups = {
        name: [{"model": "openai/gpt-4o-mini", **prices}]
        for name, prices in {
            "listed": {},
            "dear": {"input_cost_per_token": 1.0, "output_cost_per_token": 2.0},
            "free": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
        }.items()
    }
    way = compare(groups, [ask(name) for name in ("listed", "dear", "free") * 3])
    assert way.direct_calls == 9
    # The listed price is litellm's, which other tests of this process may have changed.
    costs = [outcome["hidden"]["response_cost"] for outcome in way.outcomes[:3]]
    assert costs[1:] == [19.0, 0.0]


def test_what_one_model_accepts_another_may_refuse() -> None:
    """A temperature is passed on to one model, and refused for the other, as litellm knows."""
    groups = {name: [{"model": f"openai/{name}"}] for name in ("fast", "gpt-5-mini")}
    requests = [ask("fast", temperature=number / 10) for number in range(20)]
    requests += [ask("gpt-5-mini", temperature=number) for number in (1.0, 0.5, 1.0)]
    way = compare(groups, requests, num_retries=0)
    assert [outcome.get("class").__name__ for outcome in way.outcomes[20:23]] == [  # type: ignore[union-attr]
        "ModelResponse",
        "UnsupportedParamsError",
        "ModelResponse",
    ]
    assert way.direct_calls == 22
    assert way.indirect_calls == {"litellm refuses it": 1}


# --- providers ---


def of_anthropic(path: str, body: Any) -> Canned:
    text = [{"type": "text", "text": "hi"}]
    usage = {"input_tokens": 3, "output_tokens": 4}
    answer = {"id": "1", "type": "message", "role": "assistant", "model": "claude"}
    return Canned({**answer, "content": text, "stop_reason": "end_turn", "usage": usage})


def of_gemini(path: str, body: Any) -> Canned:
    content = {"parts": [{"text": "hi"}], "role": "model"}
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}
    candidate = {"content": content, "finishReason": "STOP", "index": 0}
    return Canned({"candidates": [candidate], "usageMetadata": usage, "responseId": "1"})


def of_ollama(path: str, body: Any) -> Canned:
    counts = {"prompt_eval_count": 3, "eval_count": 4}
    message = {"role": "assistant", "content": "hi"}
    done = {"model": "llama3", "done": True, "done_reason": "stop", **counts}
    return Canned({**done, "message": message, "response": "hi"})


def of_cohere(path: str, body: Any) -> Canned:
    counts = {"input_tokens": 3, "output_tokens": 4}
    message = {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}
    usage = {"billed_units": counts, "tokens": counts}
    return Canned({"id": "1", "finish_reason": "COMPLETE", "message": message, "usage": usage})


def of_bedrock(path: str, body: Any) -> Canned:
    message = {"role": "assistant", "content": [{"text": "hi"}]}
    usage = {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}
    return Canned({"output": {"message": message}, "stopReason": "end_turn", "usage": usage})


def refuses_the_key(path: str, body: Any) -> Canned:
    return Canned({"error": {"type": "authentication_error", "message": "no such key"}}, 401)


AZURE = {"model": "azure/gpt-4o-mini", "api_key": "sk-azure"}
OPEN: Mapping[str, tuple[Mapping[str, Any], Answer | None]] = {
    "azure": ({**AZURE, "api_version": "2024-06-01"}, None),
    "azure-preview": ({**AZURE, "api_version": "2025-03-01-preview"}, None),
    "azure-v1": ({**AZURE, "api_version": "v1"}, None),
    "azure-priced": ({**AZURE, "api_version": "2024-06-01", "input_cost_per_token": 1.0}, None),
    "azure-base-model": ({**AZURE, "model": "azure/mine", "base_model": "azure/gpt-4o"}, None),
    "azure-ai": ({"model": "azure_ai/mistral-large"}, None),
    "hosted-vllm": ({"model": "hosted_vllm/m"}, None),
    "litellm-proxy": ({"model": "litellm_proxy/m"}, None),
    "deepseek": ({"model": "deepseek/deepseek-chat"}, None),
    "mistral": ({"model": "mistral/mistral-small-latest"}, None),
    "together": ({"model": "together_ai/m"}, None),
    "fireworks": ({"model": "fireworks_ai/m"}, None),
    "openrouter": ({"model": "openrouter/openai/gpt-4o-mini"}, None),
    "perplexity": ({"model": "perplexity/sonar"}, None),
    "cerebras": ({"model": "cerebras/llama3.1-8b"}, None),
    "databricks": ({"model": "databricks/m"}, None),
    "lm-studio": ({"model": "lm_studio/m"}, None),
    # It answers in a protocol of its own, which litellm reads each time.
    "cohere": ({"model": "cohere_chat/command-r"}, of_cohere),
}
AWS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region_name": "us-east-1"}
# litellm rewrites the messages for these.
REWRITTEN: Mapping[str, tuple[Mapping[str, Any], Answer | None]] = {
    "anthropic": ({"model": "anthropic/claude-3-5-sonnet-20241022"}, of_anthropic),
    "gemini": ({"model": "gemini/gemini-2.0-flash"}, of_gemini),
    "ollama": ({"model": "ollama/llama3"}, of_ollama),
    "ollama-chat": ({"model": "ollama_chat/llama3"}, of_ollama),
    "bedrock": ({"model": "bedrock/converse/anthropic.claude-v2", **AWS}, of_bedrock),
}
OF_EVERY_DAY = ("azure", "litellm-proxy", "anthropic", "gemini")


@pytest.mark.parametrize("name", thorough_but(OF_EVERY_DAY, OPEN))
def test_providers_for_which_the_lane_is_open(name: str) -> None:
    deployment, answer = OPEN[name]
    requests = [ask("group"), ask("group"), ask("group", temperature=0.5, max_tokens=7)]
    way = compare({"group": [deployment]}, requests, answer, num_retries=0)
    assert (way.direct_calls, way.indirect_calls, way.differences) == (3, {}, {})
    assert [outcome["class"].__name__ for outcome in way.outcomes[:3]] == ["ModelResponse"] * 3


@pytest.mark.parametrize("name", thorough_but(OF_EVERY_DAY, REWRITTEN))
def test_providers_whose_requests_litellm_makes(name: str) -> None:
    deployment, answer = REWRITTEN[name]
    way = compare({"group": [deployment]}, [ask("group")] * 3, answer, num_retries=0)
    reasons = {"litellm rewrites its messages": 3}
    assert (way.direct_calls, way.indirect_calls, way.differences) == (0, reasons, {})
    assert [outcome["class"].__name__ for outcome in way.outcomes[:3]] == ["ModelResponse"] * 3


@pytest.mark.parametrize("name", thorough_but(OF_EVERY_DAY, [*OPEN, *REWRITTEN]))
def test_providers_that_refuse_the_key(name: str) -> None:
    deployment, _ = {**OPEN, **REWRITTEN}[name]
    settings = {"num_retries": 0, "disable_cooldowns": True}
    way = compare({"group": [deployment]}, [ask("group")] * 2, refuses_the_key, **settings)
    assert way.direct_calls == (2 if name in OPEN else 0)
    assert [outcome["status_code"] for outcome in way.outcomes[:2]] == [401, 401]


def test_a_call_of_gemini_does_not_close_the_lane_for_others() -> None:
    """litellm makes a cache for it, which leaves its mark in the lists of callbacks."""
    deployment, answer = REWRITTEN["gemini"]
    compare({"group": [deployment]}, [ask("group")], answer)
    way = compare({"group": [{"model": "openai/fast"}]}, [ask("group")] * 2)
    assert (way.direct_calls, way.indirect_calls) == (2, {})
