"""litellm's builder makes the same answer of joined texts as of all chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import litellm
import pytest
from litellm.types.utils import (
    Delta,
    ModelResponseStream,
    StreamingChoices,
    TextChoices,
    TextCompletionResponse,
    Usage,
)

from parallel_core.router.stream_merging import merge_texts


def chunk(
    delta: Mapping[str, Any], finish: str | None = None, index: int = 0, **members: Any
) -> Any:
    choice = StreamingChoices(index=index, delta=Delta(**delta), finish_reason=finish)
    origin = {"id": "1", "created": 7, "model": "gpt-4o-mini", **members}
    return ModelResponseStream(**origin, choices=[choice])


def texts(*parts: str, hidden: Mapping[str, Any] | None = None, **members: Any) -> list[Any]:
    chunks = [chunk({"content": part}, **members) for part in parts]
    for one in chunks:
        one._hidden_params = {"created_at": 1.0, **(hidden or {})}
    return chunks


def changed(change: Callable[[Any], None]) -> list[Any]:
    """Texts, the second of which a consumer has changed."""
    chunks = texts("a", "b", "c")
    change(chunks[1])
    return chunks


def set_delta(value: Any) -> Callable[[Any], None]:
    return lambda one: setattr(one.choices[0], "delta", value)


END = chunk({}, "stop")
USAGE = ModelResponseStream(
    id="1",
    created=7,
    model="gpt-4o-mini",
    choices=[],
    usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3),
)
SAMPLES: Mapping[str, list[Any]] = {
    "texts": texts("a", "b", "", "c"),
    "empty texts": texts("", ""),
    "a model that a router chose": [
        *texts("a", "b", hidden={"provider_response_model": "router"}),
        *texts("c", "d", hidden={"provider_response_model": "gpt-4o"}),
    ],
    "a provider that a router chose": [
        *texts("a", "b"),
        *texts("c", hidden={"upstream_provider": "x"}),
    ],
    "fields of the provider": [
        *texts("a", "b"),
        *texts("c", "d", hidden={"provider_specific_fields": {"a": 1}}),
    ],
    "usage in hidden parameters": [
        *texts("a", "b"),
        *texts("c", hidden={"usage": Usage(prompt_tokens=9, completion_tokens=9, total_tokens=18)}),
    ],
    "thinking": [
        *(chunk({"content": "", "reasoning_content": part}) for part in "ab"),
        chunk({"thinking_blocks": [{"type": "thinking", "thinking": "x", "signature": "s"}]}),
        *texts("c", "d"),
    ],
    "annotations": [
        *texts("a", "b"),
        chunk({"content": "c", "annotations": [{"type": "url_citation", "url_citation": {}}]}),
        *texts("d", "e"),
    ],
    "another role": [chunk({"role": "user", "content": "a"}), *texts("b", "c")],
    "a reason with a text": [*texts("a", "b"), chunk({"content": "c"}, "length")],
    "two choices": [
        chunk({"content": part}, index=n // 2 % 2) for n, part in enumerate("abcdefgh")
    ],
    "ids change": [*texts("a", "b", id=""), *texts("c", "d", id="2")],
    "text completions": [
        TextCompletionResponse(id="1", choices=[TextChoices(text=part, index=0)]) for part in "abc"
    ],
    "dicts": [one.model_dump() for one in texts("a", "b")],
    "no delta": changed(set_delta(None)),
    "a delta of a consumer": changed(set_delta({"content": "own"})),
    "no choice": changed(lambda one: setattr(one, "choices", [])),
    "parts of a text": changed(set_delta(Delta(content=["own"]))),
}


def built(chunks: list[Any]) -> dict[str, Any]:
    response: Any = litellm.stream_chunk_builder(chunks, messages=[])
    hidden = {name: str(value) for name, value in dict(response._hidden_params).items()}
    hidden.pop("created_at", None)
    return {"response": response.model_dump(warnings=False), "hidden": hidden}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_answer_is_that_of_all_chunks(name: str) -> None:
    end = [] if "completions" in name else [END, USAGE]
    chunks = [*SAMPLES[name], *end]
    plain, joined = built(list(chunks)), built(merge_texts(chunks))
    for answer in (plain, joined):
        for member in ("id", "created"):
            if "completions" in name:
                answer["response"].pop(member)
    assert joined == plain


def test_texts_of_one_kind_become_one_chunk() -> None:
    assert len(merge_texts([*texts("a", "b"), *texts("c", hidden={"own": 1}), END])) == 3
    assert merge_texts(texts("a", "b", "c"))[0].choices[0].delta.content == "abc"


def test_chunks_without_hidden_parameters_are_passed_on() -> None:
    chunks = texts("a", "b")
    for one in chunks:
        one._hidden_params = None
    assert merge_texts(chunks) == chunks
