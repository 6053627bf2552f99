"""Requests that hypothesis makes up: messages and parameters as users send them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from helpers.wire_cases import PIXEL, SCHEMA, TOOLS, WEATHER

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}),
    st.fixed_dictionaries(
        {
            "type": st.just("image_url"),
            "image_url": st.fixed_dictionaries(
                {"url": st.sampled_from([PIXEL, "https://example.com/a.png"])},
                optional={"detail": st.sampled_from(["low", "high", "auto"])},
            ),
        }
    ),
)


def _message(role: str, content: Any, **more: Any) -> Any:
    return st.fixed_dictionaries({"role": st.just(role), "content": content}, optional=more)


MESSAGES = st.lists(
    st.one_of(
        _message("user", TEXTS | st.lists(PARTS, min_size=1, max_size=3), name=TEXTS),
        _message("system", TEXTS),
        _message("developer", TEXTS),
        _message("assistant", TEXTS | st.none(), refusal=TEXTS | st.none()),
    ),
    min_size=1,
    max_size=4,
)
TOKENS = st.text("abcXYZ019-_.", min_size=1, max_size=8)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2) | st.integers(0, 2),
        "top_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63),
        "user": TEXTS,
        "n": st.integers(1, 3),
        "max_tokens": st.integers(1, 100_000),
        "presence_penalty": st.floats(-2, 2),
        "stop": TEXTS | st.lists(TEXTS, max_size=4),
        "logit_bias": st.dictionaries(TOKENS, st.integers(-100, 100), max_size=3),
        "logprobs": st.booleans(),
        "tools": st.lists(st.sampled_from(TOOLS), min_size=1, max_size=2, unique_by=id),
        "response_format": st.sampled_from([SCHEMA, {"type": "json_object"}, {"type": "text"}]),
        "extra_headers": st.dictionaries(
            TOKENS.map(lambda token: f"X-{token}"), TOKENS, max_size=2
        ),
        "extra_body": st.dictionaries(TOKENS, JSON, max_size=2),
        "metadata": st.dictionaries(TOKENS, TEXTS, max_size=2),
        "timeout": st.floats(5, 600),
        "guided_json": st.just(WEATHER),
    },
)
MODELS = ["openai", "known", "vllm"]
REQUESTS = st.builds(
    lambda model, messages, parameters: {"model": model, "messages": messages, **parameters},
    st.sampled_from(MODELS),
    MESSAGES,
    PARAMETERS,
)
GROUPS = {
    "openai": [{"model": "openai/fast"}],
    "known": [{"model": "openai/gpt-4o-mini"}],
    "vllm": [{"model": "hosted_vllm/fast"}],
}
