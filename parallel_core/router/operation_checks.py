"""Check the requests of an operation other than chat: an embedding, a reranking, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from parallel_core.types import RouterParallelRequest

from .request_checks import (
    brief,
    is_mapping,
    problem_of_model,
    problem_of_timeout,
    request_of,
)
from .router_facts import problem_of_name


class OperationChecks:
    """Check the requests of one operation, before any of them costs money.

    The arguments themselves are those of litellm, which knows them: they are not checked here.

    Args:
        router: the Router, for the names of its models.
        operation: name of its method.
    """

    def __init__(self, router: object, operation: str) -> None:
        self._router = router
        self._operation = operation
        self._known: set[str] = set()  # models that the Router has

    def as_request(self, index: int, item: object) -> RouterParallelRequest:
        """Turn an item of a source into a request.

        Raises:
            InvalidRequestError: the item is invalid. It has the index and the problem.
        """
        return request_of(index, item, self.problem_of)

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
