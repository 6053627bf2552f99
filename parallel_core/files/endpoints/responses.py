"""Requests of the responses API: check the body of a line."""

from __future__ import annotations

from typing import Any, Final, cast

from parallel_core.errors import InvalidRequestError
from parallel_core.files.input_records import LineError
from parallel_core.files.parameters import is_litellm_setting, parameters_of
from parallel_core.types import RouterParallelRequest

from . import bodies
from .endpoint import Endpoint

_OPERATION: Final = "aresponses"
# litellm would call tools of such an address by itself, in this process.
_GATEWAY: Final = "litellm_proxy"


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    bodies.check_model(body)
    given: object = body["input"]
    if type(given) is not str:
        wrong = bodies.wrong_type("input", "a string or an array of objects", given)
        items = cast("list[object]", given) if type(given) is list else []
        if not items or not all(type(item) is dict for item in items):
            raise wrong
    bodies.check_numbers(body, ("max_output_tokens", "max_tool_calls"), 1)
    bodies.check_numbers(body, ("temperature", "top_p", "top_logprobs"))
    bodies.check_kinds(body, "instructions", (str,), "a string")
    bodies.check_kinds(body, "tools", (list,), "an array")
    bodies.check_kinds(body, "background", (bool,), "true or false")
    bodies.check_kinds(body, "metadata", (dict,), "an object")
    bodies.refuse_streams(body, "a response")
    if body.get("background"):
        raise LineError(
            "invalid_request",
            "background: a response in the background has no answer yet when it returns",
            "leave it out: a run waits for each answer",
        )
    if "messages" in body:
        raise LineError(
            "invalid_request",
            "messages is not a parameter of responses",
            'rename it to input, or use the url "/v1/chat/completions"',
        )
    for tool in cast("list[object]", body.get("tools") or []):
        address = cast("dict[str, Any]", tool).get("server_url") if type(tool) is dict else None
        if type(address) is str and address.startswith(_GATEWAY):
            raise LineError(
                "forbidden_parameter",
                f"a tool with the server_url {_GATEWAY!r} must not come from a file: litellm would "
                "call it itself",
                "leave it out",
            )
    return _as_request(line, body)


def _as_request(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    """Return the request of a body. litellm sends parameters of a vendor only in extra_body."""
    if body.get("input") is None or body.get("model") is None:
        raise InvalidRequestError({line: "model or input missing"})
    request = bodies.request_of_operation(_OPERATION, body)
    arguments = cast("dict[str, Any]", request.kwargs)
    known = parameters_of(_OPERATION)
    of_a_vendor = [
        name
        for name in arguments
        if name not in known and name != "extra_body" and not is_litellm_setting(name, _OPERATION)
    ]
    if of_a_vendor:
        extra = {name: arguments.pop(name) for name in of_a_vendor}
        arguments["extra_body"] = {**extra, **(arguments.get("extra_body") or {})}
    return request


def _of_text(model: str, text: str) -> RouterParallelRequest:
    return RouterParallelRequest(model, (), {"input": text}, None, _OPERATION)


RESPONSES: Final = Endpoint(
    name="responses",
    operation=_OPERATION,
    paths=("/responses",),
    refuse_other_shapes=bodies.required("input", '"input": "a text"'),
    request_of=_request_of,
    as_request=_as_request,
    of_text=_of_text,
    fixed=frozenset((
        *("model", "input", "instructions", "stream", "background", "max_output_tokens", "tools"),
        *("temperature", "top_p"),
    )),
)  # fmt: skip
