"""Streams as providers send them, plain and odd: each the body of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

WORDS = ("One ", "two ", "three ", "four ", "five ")
DONE = b"data: [DONE]\n\n"
_SHARED = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def event(delta: Any, finish: str | None = None, index: int = 0, **members: Any) -> dict[str, Any]:
    """An event with one choice. ``members`` are its own."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {**_SHARED, "choices": [choice], **members}


def words(*texts: str, name: str = "content", **members: Any) -> list[dict[str, Any]]:
    """An event for each text."""
    return [event({name: text}, **members) for text in texts]


def body(
    events: Sequence[Any], *, end: bytes = DONE, blank: bytes = b"\n", spaced: bool = False
) -> bytes:
    """A body of events: of dicts, or of bytes as they are."""
    separators = None if spaced else (",", ":")
    lines = [
        one
        if isinstance(one, bytes)
        else b"data: %s\n" % json.dumps(one, separators=separators).encode() + blank
        for one in events
    ]
    return b"".join(lines) + end


FIRST = event({"role": "assistant", "content": ""})
LAST = event({}, "stop")
USAGE = {
    **_SHARED,
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}


def tool_call(arguments: str) -> dict[str, Any]:
    call = {"index": 0, "function": {"arguments": arguments}}
    return event({"tool_calls": [call]})


_NAMED_TOOL = event(
    {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]}
)
_LOGPROBS = [
    {
        **event({"content": text}),
        "choices": [
            {
                "index": 0,
                "delta": {"content": text},
                "finish_reason": None,
                "logprobs": {"content": [{"token": text, "logprob": -0.5, "top_logprobs": []}]},
            }
        ],
    }
    for text in WORDS
]

# The direct lane makes chunks of these.
PLAIN_STREAMS: Mapping[str, bytes] = {
    "words": body([FIRST, *words(*WORDS), LAST, USAGE]),
    "spaced JSON": body([FIRST, *words(*WORDS), LAST, USAGE], spaced=True),
    "no usage": body([FIRST, *words(*WORDS), LAST]),
    "no first chunk": body([*words(*WORDS), LAST]),
    "odd texts": body(
        [
            FIRST,
            *words("a", "b", "0", "null", '"', "\\", '","content":"', "\n\n", "data: [DONE]"),
            *words("é", "😀", "\ud83d", "c", "\x7f", "\u2028", "</think>", "<|im_end|>"),
            LAST,
        ]
    ),
    "unescaped": b"".join(
        b'data: {"id":"1","created":7,"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text
        for text in ("é".encode(), "😀".encode(), b"\\u00e9", b"\\ud83d\\ude00", b"\\/")
    )
    + body([event({}, "stop")]),
    "blank texts": body([FIRST, *words("a", "b", " ", "", "\n", "c", "", "d"), LAST]),
    "repeated": body([FIRST, *words("a", "b", "long", "long", "long", "c", "c"), LAST]),
    "padded": body(
        [FIRST, *(words(w, obfuscation="x" * n)[0] for n, w in enumerate(WORDS)), LAST]
    ),
    "reasoning": body(
        [FIRST, *words(*WORDS, name="reasoning_content"), *words(*WORDS, name="content"), LAST]
    ),
    "two choices": body(
        [
            *(event({"content": w}, index=n % 2) for n, w in enumerate(WORDS * 2)),
            event({}, "stop", 0),
            event({}, "length", 1),
        ]
    ),
    "comments": body([FIRST, b": ping\n\n", *words(*WORDS), b": ping\n\n", *words("a"), LAST]),
    "lines end with CR LF": body([FIRST, *words(*WORDS), LAST]).replace(b"\n", b"\r\n"),
    "null usage": body([FIRST, *words(*WORDS, usage=None), LAST, USAGE]),
    "ends with text": body([FIRST, *words(*WORDS), event({"content": "six"}, "stop"), USAGE]),
    "nothing after the reason": body([FIRST, *words(*WORDS), LAST], end=b""),
    "no blank at the end": body([FIRST, *words(*WORDS), LAST], end=b"data: [DONE]\n"),
    "another id": body([FIRST, *words(*WORDS), *words(*WORDS, id="chatcmpl-2"), LAST]),
    "another time": body([FIRST, *words(*WORDS), *words(*WORDS, created=8), LAST]),
    "logprobs after": body([FIRST, *words(*WORDS), *_LOGPROBS, LAST]),
    "a tool after": body(
        [FIRST, *words(*WORDS), _NAMED_TOOL, tool_call('{"a"'), tool_call(":1}"),
         event({}, "tool_calls")]
    ),
    "an error": body([FIRST, *words(*WORDS), {"error": {"message": "overloaded", "code": 503}}]),
    "cut off": body([FIRST, *words(*WORDS)], end=b""),
    "cut off in a line": body([FIRST, *words(*WORDS)], end=b'data: {"choices":[{"ind'),
    "not JSON": body([FIRST, *words(*WORDS), b"data: {oops\n\n", *words("a"), LAST]),
    "an event in two lines": body(
        [FIRST, *words(*WORDS), body(words("a"), end=b"", blank=b""), *words("b"), LAST]
    ),
    "named events": body(
        [FIRST, *words(*WORDS), b"event: chunk\nid: 7\n", *words("a"), LAST, USAGE]
    ),
    "repeats for ever": body([FIRST, *words("a", "b"), *words("again") * 120, LAST]),
}  # fmt: skip

# litellm reads all of these.
OTHER_STREAMS: Mapping[str, bytes] = {
    "one word": body([FIRST, *words("One"), LAST, USAGE]),
    "no chunk": body([]),
    "no text": body([FIRST, LAST, USAGE]),
    "logprobs": body([FIRST, *_LOGPROBS, LAST]),
    "a tool": body([FIRST, _NAMED_TOOL, tool_call('{"a"'), tool_call(":1}"), LAST]),
    "usage so far": body([FIRST, *(words(w, usage=USAGE["usage"])[0] for w in WORDS), LAST]),
    "only usage": body([USAGE]),
    "an error at once": body([{"error": {"message": "overloaded", "code": 503}}]),
    "HTML": b"<html>busy</html>",
}
