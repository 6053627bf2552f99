"""Check the requests of a batch, each as its operation asks: a chat, an embedding, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from parallel_core.config import check_operation
from parallel_core.types import CHAT, RouterParallelRequest

from .request_checks import (
    brief,
    is_mapping,
    problem_of_chat,
    problem_of_model,
    problem_of_timeout,
    request_of,
)
from .router_facts import problem_of_name


class RequestChecks:
    """Check the requests of a batch, before any of them costs money.

    Args:
        router: the Router, or the object in its place.
        operation: operation of the requests that name none.
        streaming: every answer is streamed, so every request must be a chat.
    """

    def __init__(self, router: object, operation: str = CHAT, *, streaming: bool = False) -> None:
        self._router = router
        self._operation = operation
        self._streaming = streaming
        self._checks: dict[str, OperationChecks | str] = {}

    def as_request(self, index: int, item: object) -> RouterParallelRequest:
        """Turn an item of a source into a request that names its operation, unless it is a chat.

        Raises:
            InvalidRequestError: the item is invalid. It has the index and the problem.
        """
        request = request_of(index, item, self.problem_of)
        if request.operation is None and self._operation != CHAT:
            return msgspec.structs.replace(request, operation=self._operation)
        return request

    def problem_of(self, item: object) -> str | None:
        """Return the reason why an item is not a valid request; None if it is valid."""
        operation = self._operation
        if isinstance(item, RouterParallelRequest):
            operation = item.operation or operation
        if operation == CHAT:
            return problem_of_chat(item)
        checks = self._checks.get(operation)
        if checks is None:
            checks = self._checks[operation] = self._checks_of(operation)
        return checks if isinstance(checks, str) else checks.problem_of(item)

    def _checks_of(self, operation: str) -> OperationChecks | str:
        """Return the checks of an operation, or the reason why the batch cannot have it."""
        if self._streaming:
            return f"the answers of {operation} cannot be streamed here: use parallel_calls"
        try:
            check_operation(self._router, operation)
        except (TypeError, ValueError) as error:
            return str(error)
        return OperationChecks(self._router, operation)


class OperationChecks:
    """Check the requests of one operation other than chat.

    The arguments themselves are those of litellm, which knows them: they are not checked here.

    Args:
        router: the Router, for the names of its models.
        operation: name of its method.
    """

    def __init__(self, router: object, operation: str) -> None:
        self._router = router
        self._operation = operation
        self._known: set[str] = set()  # models that the Router has

    def problem_of(self, item: object) -> str | None:
        """Return the reason why an item is not a valid request; None if it is valid."""
        if isinstance(item, RouterParallelRequest):
            arguments: object = {} if item.kwargs is None else item.kwargs
            if not is_mapping(arguments):
                return (
                    f"kwargs must be a mapping of arguments of {self._operation}, not "
                    f"{brief(arguments)}"
                )
            if "model" in arguments or ("messages" in arguments and item.messages):
                return "an argument is given twice: as a field and in kwargs"
            return self._problem_of(item.model, arguments) or problem_of_timeout(item.timeout)
        if not is_mapping(item):
            return (
                f"a request is a mapping of the arguments of {self._operation}, with its 'model', "
                f"not {type(item).__qualname__}"
            )
        if "model" not in item:
            return "model missing: a request is a mapping {'model', …} of the method's arguments"
        if "kwargs" in item:
            return (
                f"a mapping takes the arguments of {self._operation} at its top level, not under "
                "'kwargs' (RouterParallelRequest has that field)"
            )
        return self._problem_of(item["model"], item) or problem_of_timeout(item.get("timeout"))

    def _problem_of(self, model: object, arguments: Mapping[Any, Any]) -> str | None:
        for name, value in arguments.items():
            if not isinstance(name, str):
                return f"names of arguments must be str, not {brief(name)}"
            if _is_open_file(value):
                return (
                    f"{name} is an open file, which can be read only once, and a request may be "
                    "sent again: give its bytes, for instance ('name.wav', path.read_bytes())"
                )
        if arguments.get("stream"):
            return (
                f"stream is not for {self._operation} in a batch, whose results have whole "
                "answers: leave it out, or use iter_parallel_streams for chat"
            )
        metadata = arguments.get("litellm_metadata")
        if metadata is not None and not is_mapping(metadata):
            return f"litellm_metadata must be a mapping, not {brief(metadata)}"
        problem = problem_of_model(model)
        # `specific_deployment` names a deployment where others name a model.
        if problem is not None or arguments.get("specific_deployment"):
            return problem
        return self._problem_of_name(cast("str", model))

    def _problem_of_name(self, model: str) -> str | None:
        if model not in self._known:
            problem = problem_of_name(self._router, model)
            if problem is not None:
                return problem
            self._known.add(model)
        return None


def _is_open_file(value: object) -> bool:
    parts = cast("Sequence[object]", value) if isinstance(value, tuple) else (value,)
    return any(callable(getattr(part, "read", None)) for part in parts)
