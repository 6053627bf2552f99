"""Requests of the chat completions API: check the body of a line."""

from __future__ import annotations

from typing import Any, Final, cast

from parallel_core.errors import InvalidRequestError
from parallel_core.files.input_records import LineError, kind_of, missing, shown
from parallel_core.files.parameters import openai_roles
from parallel_core.router import as_request
from parallel_core.types import CHAT, RouterParallelRequest

from .bodies import check_timeout, wrong_type
from .endpoint import Endpoint

_SHAPES_OF_OTHERS: Final = {
    "contents": 'write a line of Gemini\'s batches: {"key": "1", "request": {"contents": […]}}',
    "prompt": 'rewrite it as "messages": [{"role": "user", "content": "the prompt"}], make prompts '
    "of the rows (--template '{{prompt}}'), or use the url \"/v1/completions\" (--endpoint "
    "completions)",
    "input": 'rewrite it as "messages": [{"role": "user", "content": "the input"}], or use the '
    'url "/v1/embeddings" (--endpoint embeddings) or that of another endpoint',
}
_API_HINT: Final = "see the chat completions API for valid values"
_FROM_ONE: Final = ("n", "max_tokens", "max_completion_tokens")
_CHECKED_PARAMETERS: Final = frozenset((*_FROM_ONE, "stop", "tools", "stream"))
_ROLES_WITHOUT_CONTENT: Final = ("assistant", "function")  # an assistant may only call tools


def _refuse_other_shapes(body: dict[str, Any]) -> None:
    """Refuse a body that is not a chat completion request, before other members are checked.

    Raises:
        LineError: it has no messages, or a system prompt beside them.
    """
    if "messages" not in body:
        hints = [hint for name, hint in _SHAPES_OF_OTHERS.items() if name in body]
        usual = 'for instance "messages": [{"role": "user", "content": "…"}]'
        raise missing("messages", hints[0] if hints else usual)
    if "system" in body:
        raise LineError(
            "invalid_request",
            "system is not a parameter of chat completions",
            'make it the first message, {"role": "system", "content": "…"}, or write a line of '
            'Anthropic\'s batches: {"custom_id": "1", "params": {"system": "…", …}}',
        )


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    """Return the request of a body.

    Raises:
        LineError: a parameter or a message is invalid.
    """
    if "timeout" in body:
        check_timeout(body["timeout"])
    try:
        request = as_request(line, body)
    except InvalidRequestError as error:
        message = error.problems[line]
        code = "invalid_type" if " must be " in message else "invalid_request"
        raise LineError(code, message, _API_HINT) from None
    if not _CHECKED_PARAMETERS.isdisjoint(body):
        _check_parameters(body)
    roles = openai_roles()
    for position, message in enumerate(request.messages):
        if message["role"] not in roles or message.get("content").__class__ is not str:
            _check_message(f"messages[{position}]", message, roles)
    return request


def _check_parameters(body: dict[str, Any]) -> None:
    """Refuse values that no provider accepts."""
    for name in _FROM_ONE:
        number = body.get(name)
        # Some servers take -1 for "no limit".
        if number is not None and number < 1 and (name == "n" or number != -1):
            problem = f"{name} must be 1 or more, not {number}"
            raise LineError("invalid_request", problem, _API_HINT)
    stop = body.get("stop")
    texts: list[object] = [stop]
    if stop.__class__ is list:
        texts = cast("list[object]", stop)
    if stop is not None and not all(type(text) is str for text in texts):
        raise wrong_type("stop", "a string or an array of strings", stop)
    tools, stream = body.get("tools"), body.get("stream")
    if tools is not None and type(tools) is not list:
        raise wrong_type("tools", "an array", tools)
    if stream is not None and type(stream) is not bool:
        raise wrong_type("stream", "true or false", stream)


def _check_message(place: str, message: dict[str, Any], roles: frozenset[str]) -> None:
    """Refuse a message that no provider accepts. Content parts may be objects of any type."""
    role, content = message["role"], message.get("content")
    if role not in roles:
        hint = f"use one of {', '.join(sorted(roles))}"
        raise LineError("invalid_request", f"{place}.role is {shown(role)}", hint)
    if content is None:
        if role in _ROLES_WITHOUT_CONTENT:
            return
        problem = f"{place}.content must be a string or an array of parts, not null"
        raise LineError("invalid_type", problem, f"a message with the role {role} needs content")
    for number, part in enumerate(content):
        if type(part) is not dict:  # litellm fails on a text
            problem = f"{place}.content[{number}] must be an object, not {kind_of(part)}"
            hint = 'for instance {"type": "text", "text": "…"}'
            raise LineError("invalid_type", problem, hint)


def _of_text(model: str, text: str) -> RouterParallelRequest:
    return RouterParallelRequest(model, [{"role": "user", "content": text}])


CHAT_COMPLETIONS: Final = Endpoint(
    name="chat",
    operation=CHAT,
    paths=("/chat/completions",),
    refuse_other_shapes=_refuse_other_shapes,
    request_of=_request_of,
    as_request=as_request,
    of_text=_of_text,
    fixed=frozenset((
        *("model", "messages", "stream", "stream_options", "n", "max_tokens"),
        *("max_completion_tokens", "temperature", "top_p", "seed"),
    )),
)  # fmt: skip
