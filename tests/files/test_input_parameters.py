"""Parameters of providers are sent, and settings of litellm are not taken from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.batch_files import BODY, a_line, problems_of, with_messages, write
from parallel_core.files import input_members
from parallel_core.files.batch_input import InputFile


def test_a_timeout_may_be_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {**BODY, "timeout": 2.5}, {**BODY, "timeout": None})
    with InputFile(path) as file:
        requests = [one.request for one in file.requests()]
    assert [(request.timeout, request.kwargs) for request in requests] == [
        (2.5, None),
        (None, None),
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_a_line_may_ask_for_a_stream(tmp_path: Path, stream: bool) -> None:
    path = write(tmp_path / "in.jsonl", a_line(body={**BODY, "stream": stream}))
    with InputFile(path) as file:
        (request,) = file.requests()
    assert request.request.kwargs == {"stream": stream}


def test_what_providers_take_is_taken(tmp_path: Path) -> None:
    """Also what only some of them take: parts of any type, whole numbers with a point."""
    path = write(
        tmp_path / "in.jsonl",
        with_messages({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        with_messages({"role": "assistant"}, {"role": "function", "name": "f", "content": None}),
        with_messages({"role": "developer", "content": ""}, {"role": "tool", "content": []}),
        with_messages({"role": "user", "content": [{"type": "odd"}, {}]}),
        {**BODY, "temperature": 0, "top_p": 0.5, "max_tokens": 100.0, "seed": -1, "n": None},
        {**BODY, "temperature": None, "max_completion_tokens": -1, "metadata": None},
    )
    assert problems_of(path) == []


def litellm_settings() -> set[str]:
    """What the litellm that is installed takes as its own."""
    import litellm
    from litellm.types import router, utils

    names = set(utils.all_litellm_params).union(
        router.GenericLiteLLMParams.model_fields,
        router.LiteLLM_Params.model_fields,
        router.CredentialLiteLLMParams.model_fields,
        utils.StandardCallbackDynamicParams.__annotations__,
    )
    body_parameters = {"model", "messages", "metadata", "timeout"}
    return names - body_parameters - set(litellm.OPENAI_CHAT_COMPLETION_PARAMS) | {"api_base"}


def test_no_setting_of_litellm_comes_from_a_body_that_is_not_trusted(tmp_path: Path) -> None:
    settings_of_litellm = sorted(litellm_settings())
    lines = [
        # An address needs a key beside it.
        a_line(f"{number}", body={**BODY, "api_key": "none", name: None})
        if name in ("api_base", "base_url")
        else a_line(f"{number}", body={**BODY, name: None})
        for number, name in enumerate(settings_of_litellm)
    ]
    path = write(tmp_path / "in.jsonl", *lines)
    codes = {code for _, code in problems_of(path)}
    with InputFile(path) as file:
        refused = {problem.line - 1 for problem in file.problems()}
    assert codes == {"forbidden_parameter"}
    assert [settings_of_litellm[n] for n in set(range(len(lines))) - refused] == []
    with InputFile(path, trust_input=True) as file:
        assert file.check().problems == []
        sent = {name for request in file.requests() for name in request.request.kwargs or {}}
    assert sent - {"api_key"} == set(settings_of_litellm) - {"api_key"}


VENDOR_PARAMETERS = {
    "top_k": 20,
    "input": "of embeddings",
    "prompt": "of text completions",
    "query": "of a reranker",
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "guided_json": {"type": "object"},
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking": {"type": "enabled"},
    "safe_prompt": True,
    "stop_token_ids": [1],
    "ignore_eos": True,
    "transforms": [],
    "kv_transfer_params": {},
    "documents": [],
    "reasoning": {"effort": "low"},
}


def test_parameters_of_openai_and_of_vendors_are_sent(tmp_path: Path) -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

    openai = dict.fromkeys(CompletionCreateParamsStreaming.__annotations__)
    body = {**openai, **BODY, **VENDOR_PARAMETERS}
    path = write(tmp_path / "in.jsonl", a_line(body=body), {**openai, **BODY, "timeout": 9})
    with InputFile(path) as file:
        assert file.check().problems == []
        first, second = file.requests()
    expected = {name: value for name, value in body.items() if name not in BODY}
    assert first.request.kwargs == expected
    assert second.request.kwargs == {n: None for n in openai if n not in BODY}
    assert second.request.timeout == 9
    body = {**BODY, "extra_body": {**VENDOR_PARAMETERS, "priority": 1, "id": "x", "ttl": 5}}
    with InputFile(write(tmp_path / "in.jsonl", body)) as file:
        (request,) = file.requests()
    assert request.request.kwargs == {"extra_body": body["extra_body"]}


def test_litellm_is_not_asked_about_names_that_openai_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import takes seconds."""

    def never(name: str, operation: str) -> bool:
        raise AssertionError(name)

    monkeypatch.setattr(input_members, "is_litellm_setting", never)
    body = {**BODY, "temperature": 0.2, "seed": 1, "extra_body": {"top_k": 2}, "timeout": 1}
    path = write(tmp_path / "in.jsonl", {**body, "source": "web"}, a_line(body=body))
    with InputFile(path, drop_columns=True) as file:
        assert file.check().problems == []
