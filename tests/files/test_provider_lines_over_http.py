"""Lines of Anthropic and Gemini through a Router: what arrives is what the line says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import parallel_core
from helpers.batch_files import KEY, write
from helpers.hosts import ASYNCIO_HOSTS
from helpers.key_recorders import Recorder
from helpers.made_up_lines import MadeUp
from helpers.provider_lines import ANTHROPIC, GEMINI, camel, normal_anthropic
from helpers.routers import run_with_routers
from parallel_core.files.batch_input import InputFile


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    started = Recorder()
    yield started
    started.close()


def arrived(recorder: Recorder, path: Path, models: dict[str, str]) -> list[dict[str, Any]]:
    """Send the requests of a file one after the other; return the bodies that arrived."""
    with InputFile(path) as file:
        assert file.check().problems == []
        requests = [found.request for found in file.requests()]
    recorder.sent.clear()

    async def main() -> None:
        from litellm import Router

        router = Router(
            [
                {
                    "model_name": name,
                    "litellm_params": {"model": model, "api_base": recorder.url, "api_key": KEY},
                }
                for name, model in models.items()
            ]
        )
        for result in await parallel_core.parallel_acompletions(router, requests, concurrency=1):
            assert result.exception is None
            assert result.response.choices[0].message.content == "yes"

    run_with_routers(ASYNCIO_HOSTS[0], main)
    return [sent.body for sent in recorder.sent]


def check_anthropic(recorder: Recorder, path: Path, given: list[dict[str, Any]]) -> None:
    lines = [{"custom_id": str(number), "params": params} for number, params in enumerate(given)]
    bodies = arrived(recorder, write(path, *lines), {"claude": "anthropic/claude-sonnet-4-5"})
    assert len(bodies) == len(given) > 0
    for params, body in zip(given, bodies, strict=True):
        assert body == normal_anthropic({**params, "model": "claude-sonnet-4-5"})
    assert {sent.path for sent in recorder.sent} == {"/v1/messages"}


def check_gemini(recorder: Recorder, path: Path, given: list[dict[str, Any]]) -> None:
    lines = [
        {"key": str(number), "model": "models/g", "request": request}
        for number, request in enumerate(given)
    ]
    bodies = arrived(recorder, write(path, *lines), {"g": "gemini/gemini-2.5-flash"})
    assert len(bodies) == len(given) > 0
    for request, body in zip(given, bodies, strict=True):
        assert camel(body) == camel(request)


def test_what_arrives_at_anthropic_is_the_params_of_the_line(
    recorder: Recorder, tmp_path: Path, no_keys_of_this_machine: None
) -> None:
    check_anthropic(recorder, tmp_path / "in.jsonl", list(ANTHROPIC.values()))


def test_what_arrives_at_gemini_is_the_request_of_the_line(
    recorder: Recorder, tmp_path: Path, no_keys_of_this_machine: None
) -> None:
    check_gemini(recorder, tmp_path / "in.jsonl", list(GEMINI.values()))


@pytest.mark.thorough
def test_what_arrives_is_what_the_line_says_in_many_shapes(
    recorder: Recorder, tmp_path: Path, no_keys_of_this_machine: None
) -> None:
    made = MadeUp(seed=1)
    check_anthropic(recorder, tmp_path / "a.jsonl", [made.anthropic() for _ in range(200)])
    check_gemini(recorder, tmp_path / "g.jsonl", [made.gemini() for _ in range(200)])


@pytest.mark.parametrize("name", ["one prompt", "all parameters", "parts"])
def test_litellm_translates_in_the_same_way_what_it_does_not_change(
    name: str, tmp_path: Path
) -> None:
    """It joins the texts of an answer, and has all as parts: so not for each line."""
    # Other releases of litellm have it elsewhere.
    adapters = pytest.importorskip("litellm.llms.anthropic.messages.adapters.transformation")
    params = ANTHROPIC[name]
    with InputFile(write(tmp_path / "in.jsonl", {"custom_id": "a", "params": params})) as file:
        (ours,) = file.requests()
    theirs: Any = adapters.AnthropicAdapter().translate_completion_input_params(dict(params))
    for message in theirs["messages"]:
        if message.get("thinking_blocks", ...) is None:
            del message["thinking_blocks"]
    assert ours.request.messages == theirs["messages"]
