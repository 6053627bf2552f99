"""Checks that the bodies of several endpoints share, and the requests made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, cast

from parallel_core.errors import InvalidRequestError
from parallel_core.files.input_records import LineError, kind_of, missing, shown
from parallel_core.files.parameters import is_litellm_setting, parameters_of
from parallel_core.types import RouterParallelRequest

_TIMEOUT_HINT: Final = 'for instance "timeout": 60'
_HINT: Final = "see the API of the endpoint for valid values"


def wrong_type(name: str, wanted: str, value: object) -> LineError:
    """Return the error of a member whose type no provider accepts."""
    kind = "an array of other values" if type(value) is list else kind_of(value)
    return LineError("invalid_type", f"{name} must be {wanted}, not {kind}", _HINT)


def required(name: str, example: str) -> Callable[[dict[str, Any]], None]:
    """Return a check that a body has a member and no messages."""

    def check(body: dict[str, Any]) -> None:
        if body.get(name) is None:
            raise missing(name, f"for instance {example}")

    return check


def check_model(body: dict[str, Any]) -> None:
    """Check the name of the model, and the timeout."""
    model = body["model"]
    if type(model) is not str:
        raise wrong_type("model", "a string", model)
    if not model:
        raise LineError("invalid_request", "model is empty", "name a model of the Router")
    if "timeout" in body:
        check_timeout(body["timeout"])


def check_timeout(seconds: object) -> None:
    """Check the timeout of a request in seconds."""
    if seconds is None:
        return
    if type(seconds) not in (int, float):
        message = f"timeout must be a number of seconds, not {kind_of(seconds)}"
        raise LineError("invalid_type", message, _TIMEOUT_HINT)
    if cast("float", seconds) <= 0:
        raise LineError("invalid_request", "timeout must be more than 0 seconds", _TIMEOUT_HINT)


def check_texts(name: str, value: object, *, tokens: bool = False, objects: bool = False) -> None:
    """Check a text or an array of texts that is not empty.

    Args:
        name: name of the member.
        value: its value.
        tokens: a text may be an array of the numbers of its tokens.
        objects: a text may be an object, as for pictures.
    """
    if type(value) is str:
        return
    wrong = wrong_type(name, "a string or an array of strings", value)
    if type(value) is not list:
        raise wrong
    texts = cast("list[object]", value)
    if not texts:
        raise LineError("invalid_request", f"{name} is empty", f"give {name} a text")
    if all(type(text) is str for text in texts):
        return
    if tokens and (all(type(text) is int for text in texts) or all(map(_is_of_tokens, texts))):
        return
    if objects and all(type(text) in (str, dict) for text in texts):
        return
    raise wrong


def _is_of_tokens(text: object) -> bool:
    tokens = cast("list[object]", text) if type(text) is list else []
    return bool(tokens) and all(type(token) is int for token in tokens)


def check_numbers(body: dict[str, Any], names: Collection[str], least: int | None = None) -> None:
    """Check that members are numbers, and are not less than ``least``; null means absent."""
    for name in names:
        number = body.get(name)
        if number is None:
            continue
        if type(number) not in (int, float):
            raise wrong_type(name, "a number", number)
        if least is not None and number < least:
            problem = f"{name} must be {least} or more, not {number}"
            raise LineError("invalid_request", problem, _HINT)


def check_kinds(body: dict[str, Any], name: str, kinds: tuple[type, ...], wanted: str) -> None:
    """Check the type of a member; null means absent."""
    value = body.get(name)
    if value is not None and type(value) not in kinds:
        raise wrong_type(name, wanted, value)


def refuse_streams(body: dict[str, Any], operation: str) -> None:
    """Refuse a stream, which only chat has in a run."""
    check_kinds(body, "stream", (bool,), "true or false")
    if body.get("stream"):
        raise LineError(
            "invalid_request",
            "stream is only for chat completions: the answers of other endpoints are whole",
            f"leave it out: {operation} is not streamed in a run",
        )


def refuse_what_is_not_sent(body: dict[str, Any], operation: str, path: str) -> None:
    """Refuse members that litellm would leave out of the request without a word."""
    known = parameters_of(operation)
    for name in body:
        if name in known or name in ("timeout", "metadata"):
            continue
        if name in ("extra_body", "messages") or not is_litellm_setting(name, operation):
            raise LineError(
                "invalid_request",
                f"{shown(name)} would not reach the provider: litellm sends only "
                f"{', '.join(sorted(known))} to {path}",
                "leave it out",
            )


def request_of_operation(operation: str, body: dict[str, Any]) -> RouterParallelRequest:
    """Return the request of a body for another operation than chat.

    ``metadata`` is not sent where it is no parameter: litellm would take it as its own.
    """
    arguments = dict(body)
    model, timeout = arguments.pop("model"), arguments.pop("timeout", None)
    if "metadata" in arguments and "metadata" not in parameters_of(operation):
        del arguments["metadata"]
    return RouterParallelRequest(model, (), arguments, timeout, operation)


def builder(operation: str, *names: str) -> Callable[[int, dict[str, Any]], RouterParallelRequest]:
    """Return a function that makes a request of a body that has these members."""

    def as_request(line: int, body: dict[str, Any]) -> RouterParallelRequest:
        absent = [name for name in ("model", *names) if body.get(name) is None]
        if absent:
            raise InvalidRequestError({line: f"{', '.join(absent)} missing"})
        return request_of_operation(operation, body)

    return as_request
