"""Tokens of a request: what it asks for, a bound from its bytes, and counts by a tokenizer.

litellm, which has the tokenizers, is imported lazily.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import anyio
import anyio.to_thread

from parallel_core.types import RouterParallelRequest

from .checks import is_amount

# Tokens of a part that is not text: more than any provider counts for an image of usual size.
_TOKENS_OF_A_PART = 65_536
_TOKENS_AROUND_A_MESSAGE = 16
# Texts with more characters are counted in a thread: they would block the event loop too long.
_LONG = 20_000

_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
# Parts whose tokens do not depend on the length of their data.
_PICTURES = ("image", "image_url", "input_image")
_RECORDINGS = ("audio", "audio_url", "input_audio", "video", "video_url")
_BYTES_OF_A_RECORDED_TOKEN = 32  # at the lowest bit rates in use
# Arguments that count as part of the prompt.
_IN_THE_PROMPT = (
    "tools", "functions", "tool_choice", "response_format", "prediction", "system", "extra_body",
)  # fmt: skip
# Arguments of operations other than chat whose texts are the prompt.
_TEXTS = ("input", "prompt", "query", "documents", "instructions")
_BYTES_OF_A_TOKEN = 4  # about


def asked_output(arguments: Mapping[str, Any], names: Sequence[str] = _OUTPUT_LIMITS) -> int | None:
    """Return the tokens that an answer may have; None if the arguments have no limit."""
    return _largest(arguments, names)


def choices(arguments: Mapping[str, Any]) -> int:
    """Return the number of answers that a call asks for.

    A text completion answers each prompt of a list, and may make more answers than it returns.
    """
    answers = max(1, _largest(arguments, ("n", "best_of")) or 1)
    prompts: object = arguments.get("prompt")
    if not isinstance(prompts, list):
        return answers
    members = cast("list[object]", prompts)
    is_of_tokens = all(isinstance(member, int) for member in members)
    return answers if is_of_tokens else answers * len(members)


def unseen_prompt(arguments: Mapping[str, Any]) -> str | None:
    """Name the argument that adds tokens to a prompt that a request does not show; else None."""
    for name in ("previous_response_id", "conversation"):
        if arguments.get(name) is not None:
            return name
    if isinstance(arguments.get("prompt"), Mapping):  # one that the provider keeps
        return "prompt"
    for tool in cast("Sequence[object]", arguments.get("tools") or ()):
        kind = cast("Mapping[str, object]", tool).get("type") if isinstance(tool, Mapping) else None
        if kind not in (None, "function", "custom"):  # the provider runs it, and reads what it gets
            return "tools"
    return None


def _largest(arguments: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Return the largest of these arguments; ``extra_body`` overrides others only sometimes."""
    found = [
        value
        for source in (arguments, arguments.get("extra_body"))
        if isinstance(source, Mapping)
        for name in names
        if is_amount(value := cast("Mapping[str, Any]", source).get(name))
        and isinstance(value, int)
    ]
    return max(found, default=None)


def most_prompt_tokens(request: RouterParallelRequest) -> int:
    """Return the bytes of a prompt.

    A token has at least one byte, so a prompt has at least as many bytes as tokens, with any
    tokenizer.
    """
    total = 0
    for message in request.messages:
        total += _TOKENS_AROUND_A_MESSAGE + _bytes_of(_fields_of(message))
    for name in _IN_THE_PROMPT:
        value = (request.kwargs or {}).get(name)
        if value is not None:
            total += _bytes_of(value)
    return total + _of_texts(request, _most_tokens)


def _of_texts(request: RouterParallelRequest, count: Callable[[Any], int]) -> int:
    """Count the texts of an operation. In a reranking, each document comes with the query."""
    arguments = request.kwargs or {}
    total = sum(_of_all(arguments[name], count) for name in _TEXTS if name in arguments)
    documents = arguments.get("documents")
    if isinstance(documents, Sequence) and len(cast("Any", documents)) > 1:
        total += _of_all(arguments.get("query"), count) * (len(cast("Any", documents)) - 1)
    return total


def _of_all(value: Any, count: Callable[[Any], int]) -> int:
    if isinstance(value, int):  # a token
        return 1
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return sum(_of_all(member, count) for member in cast("Any", value))
    return count(value)


def _most_tokens(value: Any) -> int:
    return _TOKENS_AROUND_A_MESSAGE + _bytes_of(_fields_of(value))


def _fields_of(message: Any) -> Any:
    # A message may be an answer of litellm (a pydantic object) from an earlier turn.
    if message is None or isinstance(message, Mapping | str):
        return cast("Any", message)
    dump = getattr(message, "model_dump", None)
    return dict(getattr(message, "__dict__", {})) if dump is None else dump()


def _bytes_of(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        kind = fields.get("type")
        if isinstance(kind, str) and kind in _PICTURES:
            return _TOKENS_OF_A_PART
        size = sum(_bytes_of(str(name)) + 4 + _bytes_of(part) for name, part in fields.items())
        if isinstance(kind, str) and kind in _RECORDINGS:
            return _TOKENS_OF_A_PART + size // _BYTES_OF_A_RECORDED_TOKEN
        return size
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return sum(2 + _bytes_of(member) for member in cast("Any", value))
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError):  # a pydantic class as response_format
        schema = getattr(value, "model_json_schema", None)
        return len(json.dumps(schema())) if callable(schema) else len(repr(value))


def about_prompt_tokens(request: RouterParallelRequest) -> int:
    """Guess the tokens of a prompt without a tokenizer."""
    return most_prompt_tokens(request) // _BYTES_OF_A_TOKEN


def about_tokens(text: str) -> int:
    """Guess the tokens of a text without a tokenizer."""
    return _bytes_of(text) // _BYTES_OF_A_TOKEN


class TokenCounter:
    """Count tokens with the tokenizers of litellm, without blocking the event loop for long."""

    def __init__(self) -> None:
        self._loaded: set[str] = set()  # models whose tokenizer has been loaded
        self._loading = anyio.Lock()

    def is_quick(self, model: str, text: str) -> bool:
        """Return True if the tokenizer is loaded and counts this text quickly."""
        return model in self._loaded and len(text) <= _LONG

    async def of_prompt(self, item: RouterParallelRequest) -> int:
        """Return the tokens of a prompt."""
        if item.model not in self._loaded:
            # The first count loads a tokenizer and may import litellm: do it once, in a thread.
            async with self._loading:
                if item.model not in self._loaded:
                    prompt = await anyio.to_thread.run_sync(_count_prompt_tokens, item)
                    self._loaded.add(item.model)
                    return prompt
        if most_prompt_tokens(item) > _LONG:
            return await anyio.to_thread.run_sync(_count_prompt_tokens, item)
        return _count_prompt_tokens(item)

    async def of_text(self, model: str, text: str) -> int:
        """Return the tokens of a text. Count a prompt of the model first: it loads a tokenizer."""
        if len(text) > _LONG:
            return await anyio.to_thread.run_sync(_count_tokens, model, text)
        return _count_tokens(model, text)


def _count_prompt_tokens(request: RouterParallelRequest) -> int:
    import litellm

    arguments = request.kwargs or {}
    count: Any = cast("Any", litellm).token_counter

    def count_text(value: Any) -> int:
        if isinstance(value, str):
            return int(count(model=request.model, text=value))
        return _most_tokens(value) // _BYTES_OF_A_TOKEN

    try:
        if not request.messages:
            return _of_texts(request, count_text)
        return int(
            count(
                model=request.model,
                messages=[_fields_of(message) for message in request.messages],
                tools=arguments.get("tools"),
                use_default_image_token_count=True,  # otherwise it downloads the images
            )
        )
    except Exception:  # noqa: BLE001 - the counter does not understand the messages
        return about_prompt_tokens(request)


def _count_tokens(model: str, text: str) -> int:
    import litellm

    try:
        return int(cast("Any", litellm).token_counter(model=model, text=text))
    except Exception:  # noqa: BLE001 - the tokenizer does not accept the text
        return about_tokens(text)
