"""A request's ``metadata`` goes to the provider only where it stores the answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from parallel_core.config.router_members import deployments
from parallel_core.router.call import send_metadata_to_store


@pytest.mark.parametrize(
    ("models", "arguments", "extra_body"),
    [
        (["openai/a"], {"store": True}, {"metadata": {"a": "b"}}),
        (["a"], {"store": True, "custom_llm_provider": "openai"}, {"metadata": {"a": "b"}}),
        (["openai/a"], {"store": True, "extra_body": {"c": 1}}, {"metadata": {"a": "b"}, "c": 1}),
        (["openai/a"], {"store": True, "extra_body": {"metadata": {}}}, {"metadata": {}}),
        (["openai/a"], {"store": False}, None),
        (["openai/a"], {}, None),
        (["anthropic/claude-3-haiku"], {"store": True}, None),
        (["openai/a", "anthropic/claude-3-haiku"], {"store": True}, None),
        ([], {"store": True}, None),
    ],
)
def test_metadata_is_sent_only_where_it_is_stored(
    models: list[str], arguments: dict[str, Any], extra_body: Any
) -> None:
    from litellm.router import Router

    provider = {"custom_llm_provider": arguments.pop("custom_llm_provider", None)}
    parameters: list[Any] = [{"model": model, "api_key": "k", **provider} for model in models]
    router = Router(
        model_list=[{"model_name": "m", "litellm_params": of} for of in parameters],
        model_group_alias={"alias": "m"},
    )
    batch = {"parallel_batch_id": "1", "parallel_index": 0}
    ids = [of["model_info"]["id"] for of in deployments(router)] if len(models) == 1 else []
    for name in ("m", "alias", *ids):
        sent = copy.deepcopy({"metadata": {"a": "b", **batch}, **arguments})
        send_metadata_to_store(router, name, sent)
        assert sent.pop("extra_body", None) == extra_body
        assert sent["metadata"] == {"a": "b", **batch}  # it is litellm's as before


@pytest.mark.parametrize("others", [[], [None]])
def test_metadata_is_sent_where_every_deployment_stores(others: list[bool | None]) -> None:
    from litellm.router import Router

    router = Router(
        model_list=[
            {
                "model_name": "m",
                "litellm_params": {"model": "openai/a", "api_key": f"k{number}", "store": store},
            }
            for number, store in enumerate([True, *others])
        ]
    )
    sent: dict[str, Any] = {"metadata": {"a": "b"}}
    send_metadata_to_store(router, "m", sent)
    assert sent.get("extra_body") == (None if others else {"metadata": {"a": "b"}})
