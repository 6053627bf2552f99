"""Turn a request into one call of a Router: of ``acompletion``, or of another operation."""

from __future__ import annotations

import copy
import sys
import uuid
from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
)
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from parallel_core.config import (
    deployments,
    deployments_for,
    unwrap_router,
)
from parallel_core.types import CHAT, RouterParallelRequest

from .direct import off_the_lane
from .direct_counts import DirectCounts
from .router_facts import ATTEMPT_TIMEOUTS, RETRIED, has_timeouts, router_overrides

if TYPE_CHECKING:
    from .direct.lane import DirectLane

BATCH_ID, BATCH_INDEX = BATCH_METADATA = ("parallel_batch_id", "parallel_index")
"""Keys that a batch adds to the metadata of a call."""

INDEX = "parallel_core_index"
"""Argument with the index of the request, for calls that workers make."""

STALL_TIMEOUT, TIMEOUT = "parallel_core_stall_timeout", "parallel_core_timeout"
"""Arguments with the timeouts of a call that a worker makes, in seconds."""

OPERATION = "parallel_core_operation"
"""Argument with the Router's method that a worker calls, if it is not that of chat."""

NOT_CHAT = "another operation than chat"
"""Reason why a call is not sent directly."""

DIRECT = "parallel_core_direct"
"""Argument of a call that a worker sends directly: the option ``direct``."""

DIRECT_COUNTS = "parallel_core_direct_counts"
"""Argument with the :class:`DirectCounts` of the batch. It does not go to the worker."""


class WorkerOptions(NamedTuple):
    """Options that workers apply to the calls of a Router (:func:`calls_run_in_workers`).

    Attributes:
        stall_timeout: seconds to the first chunk of a stream, and from one chunk to the next.
        timeout: seconds for a call; None: only the request's own timeout.
        times_calls: True if workers time the calls, because calls wait there for a slot.
        direct: workers send the calls directly.
        counts: counts the attempts of such calls.
    """

    stall_timeout: float | None
    timeout: float | None
    times_calls: bool
    direct: bool | Literal["verify"] = False
    counts: DirectCounts | None = None

    def arguments(self, index: int, request: RouterParallelRequest) -> dict[str, Any]:
        """Return the arguments that the call of a request carries to its worker."""
        added: dict[str, Any] = {INDEX: index}
        if self.stall_timeout is not None:
            added[STALL_TIMEOUT] = self.stall_timeout
        timeout = self.timeout if request.timeout is None else request.timeout
        if self.times_calls and timeout is not None:
            added[TIMEOUT] = timeout
        if self.direct:
            added[DIRECT], added[DIRECT_COUNTS] = self.direct, self.counts
        return added


RequestCall: TypeAlias = Callable[[int, RouterParallelRequest], Awaitable[Any]]


def request_call(
    router: object,
    *,
    retried_by_us: bool = False,
    attempt_timeout: float | None = None,
    worker_options: WorkerOptions | None = None,
    lane: DirectLane | None = None,
) -> RequestCall:
    """Make the call of a batch from a Router, another object, or a bare callable.

    Each request calls the method that its ``operation`` names.

    A Router gets ``metadata`` with ``parallel_batch_id`` and ``parallel_index`` in addition to the
    user's own; for other operations than chat it is ``litellm_metadata``, since some of them send
    ``metadata`` to the provider. Another object that has the operation, or a bare callable
    ``(model=, messages=, **kwargs)``, gets the request's arguments only.

    Args:
        router: the Router, the object or the bare callable.
        retried_by_us: the batch retries requests, so the Router does not
            (:func:`router_overrides`).
        attempt_timeout: seconds for each attempt, if neither the Router nor the request has a
            timeout.
        worker_options: for a Router whose calls are made by workers.
        lane: sends the attempts of chat directly; None: litellm sends them.
    """
    if hasattr(router, "acompletion"):
        seconds = None if has_timeouts(router) else attempt_timeout
        call = _router_call(router, retried_by_us, seconds, worker_options)
        return off_the_lane(call) if lane is None else _chat_on(lane, call)

    def plain_call(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        method: Any = router if request.is_chat else getattr(router, str(request.operation))
        made: Awaitable[Any] = method(**request.arguments)
        return made

    return plain_call


def check_callable(router: object) -> None:
    """Check that an object in place of a Router can be called.

    Raises:
        TypeError: it is neither a Router nor a callable.
    """
    if not hasattr(router, "acompletion") and not callable(router):
        raise TypeError(
            "expected a litellm.Router (anything with an acompletion coroutine method) or an "
            f"async callable (model=, messages=, **kwargs), not {type(router).__qualname__}"
        )


def _chat_on(lane: DirectLane, call: RequestCall) -> RequestCall:
    """Send chats on the lane, and all else through litellm."""
    on_the_lane, off = lane.wrap(call), off_the_lane(call)

    def sent(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        if request.is_chat:
            return on_the_lane(index, request)
        lane.indirect_calls[NOT_CHAT] += 1
        return off(index, request)

    return sent


def _router_call(
    router: object,
    retried_by_us: bool,
    attempt_timeout: float | None,
    worker_options: WorkerOptions | None,
) -> RequestCall:
    batch_id = uuid.uuid4().hex
    overrides = router_overrides(router) if retried_by_us else None

    def call(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        # litellm writes into the metadata that it gets and, for some providers, into the messages.
        # Copies protect the user's objects, which many requests may share.
        arguments = {name: _copied(value) for name, value in (request.kwargs or {}).items()}
        operation = request.operation or CHAT
        is_chat = operation == CHAT
        metadata = "metadata" if is_chat else "litellm_metadata"
        if is_chat and worker_options is None:
            send_metadata_to_store(router, request.model, arguments)
        arguments[metadata] = {
            BATCH_ID: batch_id,
            BATCH_INDEX: index,
            **(arguments.get(metadata) or {}),
        }
        if worker_options is not None:
            arguments |= worker_options.arguments(index, request)
            if retried_by_us:
                arguments[RETRIED] = True
        if overrides is not None:
            overrides.add_to(arguments, request.model, operation)
        if attempt_timeout is not None and all(arguments.get(n) is None for n in ATTEMPT_TIMEOUTS):
            arguments["timeout"] = attempt_timeout
        if is_chat or request.messages:
            arguments["messages"] = [_copied_message(one) for one in request.messages]
        # Read for each call: it may be replaced, by a mock or by a Router that changes.
        made: Awaitable[Any] = getattr(router, operation)(model=request.model, **arguments)
        return made

    return call


def send_metadata_to_store(router: object, model: str, arguments: dict[str, Any]) -> None:
    """Send a request's metadata to the provider if the provider stores the answer.

    litellm does not send ``metadata``: its callbacks and tags use it. OpenAI accepts it only with
    ``"store": true``, from the request or from ``litellm_params``. In that case it is copied into
    ``extra_body`` if each deployment of the model supports ``store`` and ``extra_body`` has no
    metadata yet. The ids that a batch adds are not sent.
    """
    given: Mapping[str, Any] = arguments.get("metadata") or {}
    metadata = {name: _copied(given[name]) for name in given if name not in BATCH_METADATA}
    if metadata and arguments.get("store", True) is True and _stores(router, model, arguments):
        extra: Mapping[str, Any] = arguments.get("extra_body") or {}
        arguments["extra_body"] = {"metadata": metadata, **extra}


def _stores(router: object, model: str, arguments: Mapping[str, Any]) -> bool:
    """Return True if each deployment of a model supports ``store`` and its calls send it."""
    if "litellm" not in sys.modules:
        return False  # not a Router of litellm
    itself = unwrap_router(router)
    serving = deployments_for(itself, model) or [
        deployment
        for deployment in deployments(itself)
        if cast("Mapping[str, Any]", deployment.get("model_info") or {}).get("id") == model
    ]
    return bool(serving) and all(
        ("store" in arguments or deployment["litellm_params"].get("store") is True)
        and _takes_store(deployment["litellm_params"])
        for deployment in serving
    )


def _takes_store(parameters: Mapping[str, Any]) -> bool:
    """Return True if litellm knows that a deployment supports OpenAI's ``store``."""
    litellm: Any = sys.modules["litellm"]
    try:
        name, provider, *_ = litellm.get_llm_provider(
            model=parameters["model"],
            custom_llm_provider=parameters.get("custom_llm_provider"),
            api_base=parameters.get("api_base"),
        )
    except litellm.BadRequestError:
        return False
    return "store" in (litellm.get_supported_openai_params(name, provider) or ())


def _copied(value: Any) -> Any:
    """Copy dicts and lists at every depth. Return anything else (a client, a class, …) as it is."""
    if value.__class__ is dict:
        return {key: _copied(member) for key, member in value.items()}
    if value.__class__ is list:
        return [_copied(member) for member in value]
    return value


def _copied_message(message: Any) -> Any:
    """Copy a message at every depth, objects too. Plain dicts need no slow `deepcopy`."""
    kind = message.__class__
    if kind is str or kind is int or message is None:
        return message
    if kind is dict:
        return {name: _copied_message(member) for name, member in message.items()}
    if kind is list:
        return [_copied_message(member) for member in message]
    return copy.deepcopy(message)
