"""Check a request and turn it into one ``acompletion`` call."""

from __future__ import annotations

import copy
import functools
import math
import sys
import uuid
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MappingView,
    Sequence,
    Set,
)
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

import msgspec

from parallel_core.config import LAYERS, aliases, deployments, deployments_for, setting
from parallel_core.config import unwrap_router as unwrap_router
from parallel_core.control import Failover, RouterTraits, checked_number
from parallel_core.errors import InvalidRequestError
from parallel_core.types import RouterParallelRequest, StreamedResponse, SupportsAcompletion

if TYPE_CHECKING:
    from typing_extensions import TypeIs

BATCH_ID, BATCH_INDEX = BATCH_METADATA = ("parallel_batch_id", "parallel_index")
"""Keys that a batch adds to the metadata of a call."""

INDEX = "parallel_core_index"
"""Argument with the index of the request, for calls that workers make."""

STALL_TIMEOUT, TIMEOUT = "parallel_core_stall_timeout", "parallel_core_timeout"
"""Arguments with the timeouts of a call that a worker makes, in seconds."""


_EXCLUDED = "_excluded_deployment_ids"  # litellm's argument: deployments that a call must not use
_TIMEOUTS = ("timeout", "request_timeout", "stream_timeout")
"""Arguments of a call, and parameters of a deployment, with litellm's timeouts of an attempt."""

RETRIED = "parallel_core_retried"
"""Argument of a call that the batch sends again after a temporary failure."""


class LeftToWorkers(NamedTuple):
    """Timeouts that workers apply to the calls of a Router (:func:`calls_run_in_workers`).

    Attributes:
        stall_timeout: seconds to the first chunk of a stream, and from one chunk to the next.
        timeout: seconds for a call; None: only the request's own timeout.
        times_calls: True if workers time the calls, because calls wait there for a slot.
    """

    stall_timeout: float | None
    timeout: float | None
    times_calls: bool

    def arguments(self, index: int, request: RouterParallelRequest) -> dict[str, float]:
        """Return the arguments that the call of a request carries to its worker."""
        added: dict[str, float] = {INDEX: index}
        if self.stall_timeout is not None:
            added[STALL_TIMEOUT] = self.stall_timeout
        timeout = self.timeout if request.timeout is None else request.timeout
        if self.times_calls and timeout is not None:
            added[TIMEOUT] = timeout
        return added


CompletionCall: TypeAlias = Callable[[int, RouterParallelRequest], Awaitable[Any]]


def completion_call(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    *,
    retried_by_us: bool = False,
    attempt_timeout: float | None = None,
    left_to_workers: LeftToWorkers | None = None,
) -> CompletionCall:
    """Make the call of a batch from a Router or a bare callable.

    A Router gets ``metadata`` with ``parallel_batch_id`` and ``parallel_index`` in addition to the
    user's own. A bare callable ``(model=, messages=, **kwargs)`` gets the request's arguments only.

    Args:
        router: the Router or the bare callable.
        retried_by_us: the batch retries requests, so the Router does not
            (:func:`left_to_the_batch`).
        attempt_timeout: seconds for each attempt, if neither the Router nor the request has a
            timeout.
        left_to_workers: for a Router whose calls are made by workers.

    Raises:
        TypeError: ``router`` is neither a Router nor a callable.
    """
    if hasattr(router, "acompletion"):
        given = cast("SupportsAcompletion", router)
        seconds = None if _has_timeouts(router) else attempt_timeout
        return _router_call(given, retried_by_us, seconds, left_to_workers)
    if not callable(router):
        raise TypeError(
            "expected a litellm.Router (anything with an acompletion coroutine method) or an "
            f"async callable (model=, messages=, **kwargs), not {type(router).__qualname__}"
        )
    acompletion = router

    def call(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        return acompletion(
            model=request.model, messages=request.messages, **dict(request.kwargs or {})
        )

    return call


_MAPPINGS = frozenset(("metadata", "stream_options"))
_WHOLE_NUMBERS = frozenset(("max_tokens", "max_completion_tokens", "n", "seed"))
_NUMBERS = frozenset(("temperature", "top_p", *_WHOLE_NUMBERS))
_CHECKED = frozenset(("model", "messages", *_MAPPINGS, *_NUMBERS))
# Types that no provider accepts as a number. Other types, such as numpy's, may be numbers.
_NO_NUMBERS = (bool, str, bytes, list, tuple, dict)


def _router_call(
    router: SupportsAcompletion,
    retried_by_us: bool,
    attempt_timeout: float | None,
    left_to_workers: LeftToWorkers | None,
) -> CompletionCall:
    batch_id = uuid.uuid4().hex
    left_to_us = left_to_the_batch(router) if retried_by_us else None

    def call(index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        # litellm writes into the metadata that it gets and, for some providers, into the messages.
        # Copies protect the user's objects, which many requests may share.
        arguments = {name: _copied(value) for name, value in (request.kwargs or {}).items()}
        if left_to_workers is None:
            send_metadata_to_store(router, request.model, arguments)
        arguments["metadata"] = {
            BATCH_ID: batch_id,
            BATCH_INDEX: index,
            **(arguments.get("metadata") or {}),
        }
        if left_to_workers is not None:
            arguments |= left_to_workers.arguments(index, request)
            if retried_by_us:
                arguments[RETRIED] = True
        if left_to_us is not None:
            left_to_us.add_to(arguments, request.model)
        if attempt_timeout is not None and all(arguments.get(n) is None for n in _TIMEOUTS):
            arguments["timeout"] = attempt_timeout
        return router.acompletion(
            model=request.model, messages=copy.deepcopy(list(request.messages)), **arguments
        )

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


def calls_run_in_workers(router: object) -> bool:
    """Return True if workers make the calls of a Router. They read each stream to its end."""
    for _ in range(LAYERS):
        if getattr(router, "calls_run_in_workers", False) is True:
            return True
        router = getattr(router, "router", router)
    return False


class LeftToBatch(NamedTuple):
    """Tasks that a Router leaves to its batch.

    Attributes:
        retries: the Router's retries by kind of error, all 0; None: the Router retries itself.
        cooldowns: True if no failure of a call makes a deployment pause.
    """

    retries: dict[str, int] | None
    cooldowns: bool

    def add_to(self, arguments: dict[str, Any], model: str) -> None:
        """Add these settings to the arguments of a call, unless the request has its own."""
        if self.retries is not None:
            arguments.setdefault("model_group_retry_policy", {model: dict(self.retries)})
        if self.cooldowns:
            arguments.setdefault("cooldown_time", 0)


def left_to_the_batch(router: object) -> LeftToBatch:
    """Return the tasks that a Router leaves to its batch: those that the user has not configured.

    The Router's retries would occupy a slot and multiply the retries of the batch. Its cooldowns
    disable all deployments of a model for seconds as soon as each has answered one 429.
    """
    itself = unwrap_router(router)
    if not hasattr(itself, "model_group_retry_policy"):
        return LeftToBatch(None, False)
    from litellm.types.router import RetryPolicy

    has_policy = setting(itself, "retry_policy") or setting(itself, "model_group_retry_policy")
    retries = None if has_policy else dict.fromkeys(RetryPolicy.model_fields, 0)
    return LeftToBatch(retries, _has_default_cooldowns(itself))


def _has_default_cooldowns(router: object) -> bool:
    """Return True if neither the Router nor any of its deployments has a configured cooldown."""
    from litellm.constants import DEFAULT_COOLDOWN_TIME_SECONDS

    parts: list[Any] = []
    for deployment in deployments(router):
        parts += (deployment["litellm_params"], deployment.get("model_info") or {})
    is_default = setting(router, "cooldown_time") == DEFAULT_COOLDOWN_TIME_SECONDS
    return is_default and all(part.get("cooldown_time") is None for part in parts)


def router_traits(router: object) -> RouterTraits:
    """Return the facts about a Router that a batch with retries needs."""
    itself = unwrap_router(router)

    def deployments_of(model: str) -> dict[str, float]:
        orders: dict[str, float] = {}
        for one in deployments_for(itself, model):
            order: object = one["litellm_params"].get("order")
            info: Mapping[str, Any] = one.get("model_info") or {}
            if "id" in info:
                orders[info["id"]] = order if isinstance(order, int) else math.inf
        return orders

    def falls_back(model: str) -> bool:
        return any(model in one or "*" in one for one in setting(itself, "fallbacks") or ())

    number = setting(itself, "num_retries")
    retries = number if type(number) is int and number > 0 else 0
    return RouterTraits(
        is_router=hasattr(router, "acompletion"),
        server_errors=1 + retries,
        failover=Failover(deployments_of, _without_deployments, _answered_by, falls_back),
        endpoint_of=functools.partial(endpoint_of, router),
    )


def _answered_by(value: object) -> tuple[str, bool]:
    """Return the id of the deployment that answered, and True if a fallback was tried."""
    response = value.response if isinstance(value, StreamedResponse) else value
    hidden: object = getattr(response, "_hidden_params", None)
    if not isinstance(hidden, Mapping):
        return "", False
    known = cast("Mapping[str, Any]", hidden)
    deployment: object = known.get("model_id")
    headers: Mapping[str, Any] = known.get("additional_headers") or {}
    fell_back = bool(headers.get("x-litellm-attempted-fallbacks"))
    return (deployment, fell_back) if isinstance(deployment, str) else ("", False)


def _without_deployments(request: RouterParallelRequest, ids: Set[str]) -> RouterParallelRequest:
    kwargs = {**(request.kwargs or {}), _EXCLUDED: sorted(ids)}
    return msgspec.structs.replace(request, kwargs=kwargs)


def endpoint_of(router: object, model: str) -> str | None:
    """Return the address of a model's calls: scheme, host and port, without user and path.

    Return None if its deployments have no address, or different ones.
    """
    found = {
        _origin(deployment["litellm_params"])
        for deployment in deployments_for(unwrap_router(router), model)
    }
    return found.pop() if len(found) == 1 else None


def _origin(parameters: Mapping[str, Any]) -> str | None:
    try:
        parts = urlsplit(str(parameters.get("api_base") or parameters.get("base_url") or ""))
        host, port = parts.hostname, parts.port
    except ValueError:  # not an address
        return None
    if not (parts.scheme and host):
        return None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def _has_timeouts(router: object) -> bool:
    """Return True if a timeout is configured on a Router or one of its deployments.

    Also return True if it is not a Router of litellm. In litellm the argument of a call takes
    precedence over all these timeouts, and a call may fall back from one deployment to another.
    """
    itself = unwrap_router(router)
    if not hasattr(itself, "model_group_retry_policy"):
        return True
    from litellm.constants import DEFAULT_REQUEST_TIMEOUT_SECONDS
    from litellm.litellm_core_utils.request_timeout_resolver import get_configured_request_timeout

    of_all: Mapping[str, Any] = setting(itself, "default_litellm_params") or {}
    parts = [of_all, *(deployment["litellm_params"] for deployment in deployments(itself))]
    return (
        get_configured_request_timeout() is not None
        or setting(itself, "timeout") not in (None, DEFAULT_REQUEST_TIMEOUT_SECONDS)
        or setting(itself, "stream_timeout") is not None
        or any(part.get(name) is not None for part in parts for name in _TIMEOUTS)
    )


def model_groups(router: object) -> set[str]:
    """Return the model names of a Router's deployments."""
    return {deployment["model_name"] for deployment in deployments(unwrap_router(router))}


def check_models(by_model: object, router: object) -> None:
    """Check that the Router has each model that an option by model names.

    Raises:
        ValueError: a model is unknown. The message lists it and the Router's models.
    """
    if not isinstance(by_model, Mapping):
        return
    unknown = unknown_models(router, cast("Mapping[Any, object]", by_model))
    if unknown:
        raise ValueError(
            f"rate_limit: the Router has no model {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, sorted(_names_of_models(router))))}"
        )


def unknown_models(router: object, models: Iterable[Any]) -> list[Any]:
    """Return the models for which a Router has no deployment; empty if it accepts every name."""
    known = _names_of_models(router)
    takes_all = setting(unwrap_router(router), "default_deployment") is not None
    if not model_groups(router) or takes_all or any("*" in name for name in known):
        return []
    return [model for model in models if model not in known]


def _names_of_models(router: object) -> set[str]:
    return model_groups(router).union(aliases(unwrap_router(router)))


def parallel_limits(router: object) -> dict[str, int]:
    """Return the calls in flight that a Router allows per model, if it rejects further calls.

    The Router derives such a limit from a deployment's ``rpm`` and ``tpm``, too. It rejects by
    deployment and chooses the deployment at random. So the limit of a model is the smallest of its
    deployments' limits.
    """
    default = setting(unwrap_router(router), "default_max_parallel_requests")
    places: dict[str, int] = {}
    for deployment in deployments(unwrap_router(router)):
        from litellm.utils import calculate_max_parallel_requests

        parameters = deployment["litellm_params"]
        number = calculate_max_parallel_requests(
            max_parallel_requests=parameters.get("max_parallel_requests"),
            rpm=parameters.get("rpm"),
            tpm=parameters.get("tpm"),
            default_max_parallel_requests=default,
        )
        if number:
            model = deployment["model_name"]
            places[model] = min(number, places.get(model, number))
    return places


def _copied(value: Any) -> Any:
    """Copy dicts and lists at every depth. Return anything else (a client, a class, …) as it is."""
    if value.__class__ is dict:
        return {key: _copied(member) for key, member in value.items()}
    if value.__class__ is list:
        return [_copied(member) for member in value]
    return value


def check_all(requests: object) -> None:
    """Check every request of a list, a tuple, … so that bad input is refused before any call.

    Other sources are lazy, and their items are checked when they are drawn (:func:`as_request`).

    Raises:
        InvalidRequestError: a request is invalid. It lists every invalid index and its problem.
        TypeError: ``requests`` is one request instead of many.
    """
    if isinstance(requests, Mapping | RouterParallelRequest | str | bytes):
        given = type(cast("object", requests)).__qualname__
        raise TypeError(
            "requests must be a list, an iterable or an async iterable of RouterParallelRequest or "
            f"mappings, not one {given}"
        )
    if not is_checked_as_a_whole(requests):
        return
    items = cast("Iterable[object]", requests)
    problems = {
        index: problem
        for index, item in enumerate(items)
        if (problem := _problem(item)) is not None
    }
    if problems:
        raise InvalidRequestError(problems)


def is_checked_as_a_whole(requests: object) -> bool:
    """Return True if a source can be iterated several times.

    A length is no proof of that: a progress bar around a generator has one as well.
    """
    return isinstance(requests, Sequence | Set | MappingView) and not isinstance(
        requests, AsyncIterable
    )


def as_request(index: int, item: object) -> RouterParallelRequest:
    """Turn an item of a source into a request.

    Raises:
        InvalidRequestError: the item is invalid. It has the index and the problem.
    """
    problem = _problem(item)
    if problem is not None:
        raise InvalidRequestError({index: problem})
    if isinstance(item, RouterParallelRequest):
        return item
    kwargs = dict(cast("Mapping[str, Any]", item))
    model, messages, timeout = (
        kwargs.pop("model"),
        kwargs.pop("messages"),
        kwargs.pop("timeout", None),
    )
    return RouterParallelRequest(model, messages, kwargs or None, timeout)


def _problem(item: object) -> str | None:
    """Return the reason why an item is not a valid request; None if it is valid."""
    if isinstance(item, RouterParallelRequest):
        return _problem_of_parts(item.model, item.messages, item.kwargs) or _problem_of_timeout(
            item.timeout
        )
    if _is_mapping(item):
        mapping = cast("Mapping[object, object]", item)
        missing = [name for name in ("model", "messages") if name not in mapping]
        if missing:
            return f"{' and '.join(missing)} missing: a request is {{'model', 'messages', …}}"
        apart = ("model", "messages", "timeout")
        kwargs = {name: mapping[name] for name in mapping if name not in apart}
        if "kwargs" in kwargs:
            return (
                "a mapping takes the extra arguments of acompletion at its top level, "
                "not under 'kwargs' (RouterParallelRequest has that field)"
            )
        return _problem_of_parts(
            mapping["model"], mapping["messages"], kwargs
        ) or _problem_of_timeout(mapping.get("timeout"))
    return (
        "a request is a RouterParallelRequest or a mapping {'model', 'messages', …}, "
        f"not {type(item).__qualname__}"
    )


def _problem_of_timeout(timeout: object) -> str | None:
    if timeout is None:
        return None
    try:
        checked_number("timeout", timeout)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _problem_of_parts(model: object, messages: object, kwargs: object) -> str | None:
    if not isinstance(model, str) or not model:
        return f"model must be a non-empty str, not {_brief(model)}"
    is_list = messages.__class__ is list
    if not is_list and (not isinstance(messages, Sequence) or isinstance(messages, str | bytes)):
        return f"messages must be a list of messages, not {_brief(messages)}"
    if not messages:
        return "messages is empty"
    for position, message in enumerate(cast("Sequence[Any]", messages)):
        # Fast path: most messages are dicts with a text and need no further check.
        if (
            message.__class__ is not dict
            or message.get("role").__class__ is not str
            or message.get("content").__class__ is not str
        ):
            problem = _problem_of_message(f"messages[{position}]", message)
            if problem is not None:
                return problem
    if not kwargs:
        return None if kwargs is None or _is_mapping(kwargs) else _bad_kwargs(kwargs)
    return _problem_of_kwargs(kwargs)


def _problem_of_kwargs(kwargs: object) -> str | None:
    if not _is_mapping(kwargs):
        return _bad_kwargs(kwargs)
    arguments = cast("Mapping[object, object]", kwargs)
    for name, value in arguments.items():
        if name.__class__ is not str and not isinstance(name, str):
            return f"names of kwargs must be str, not {_brief(name)}"
        if name in _CHECKED:
            problem = _problem_of_argument(name, value)
            if problem is not None:
                return problem
    return None


def _problem_of_message(place: str, message: object) -> str | None:
    # Messages in litellm's answers (pydantic objects with a role) may be sent in the next turn.
    if not _is_mapping(message):
        if hasattr(message, "role"):
            return None
        return f"{place} must be a mapping with a 'role', not {_brief(message)}"
    if "role" not in message:
        return f"{place} has no 'role'"
    role: object = message["role"]
    if not isinstance(role, str):
        return f"{place}.role must be a str, not {_brief(role)}"
    content: object = message.get("content")
    if not _may_be_content(content):
        return f"{place}.content must be a str or a list of parts, not {_brief(content)}"
    return None


def _problem_of_argument(name: str, value: object) -> str | None:
    if name not in _NUMBERS and name not in _MAPPINGS:
        return f"{name} is given twice: as a field and in kwargs"
    if value is None:
        return None
    if name in _MAPPINGS:
        return None if _is_mapping(value) else f"{name} must be a mapping, not {_brief(value)}"
    if isinstance(value, _NO_NUMBERS):
        return f"{name} must be a number, not {_brief(cast('object', value))}"
    if isinstance(value, float) and name in _WHOLE_NUMBERS and not value.is_integer():
        return f"{name} must be a whole number, not a fraction"
    return None


def _may_be_content(content: object) -> bool:
    # None is valid: a message may only call tools. The provider checks the parts of a list.
    return content is None or (
        isinstance(content, Sequence) and not isinstance(content, bytes | bytearray)
    )


def _is_mapping(value: object) -> TypeIs[Mapping[Any, Any]]:
    # This runs several times for each of a million lines, so dicts skip the slow `isinstance`.
    return value.__class__ is dict or isinstance(value, Mapping)


def _bad_kwargs(kwargs: object) -> str:
    return f"kwargs must be a mapping of extra arguments of acompletion, not {_brief(kwargs)}"


def _brief(value: object) -> str:
    """Return the type of an invalid value, never the value: it may hold a prompt or a key."""
    if value is None:
        return "None"
    return "an empty str" if value == "" else type(value).__qualname__
