"""Identity of a run: everything that may change an answer, and nothing else.

This is: the requests (names, models, messages and parameters), the models that answer for the names
that the requests use, and the parameters that a config adds. Addresses, keys, retries, limits and
prices are not part of it. :func:`request_digest` identifies a single request.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final, TypeAlias, cast

import msgspec

from parallel_core.secret_names import is_secret_name
from parallel_core.types import RouterParallelRequest

Fields: TypeAlias = Mapping[str, str | int | float | bool | None]

WITHOUT_INFLUENCE: Final = frozenset(
    {
        # Parameters of OpenAI's API that change how an answer is sent, stored, paid for or found.
        *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "stream", "stream_options", "user"),
        # Arguments of the call.
        *("additional_drop_params", "request_timeout", "stream_timeout", "timeout"),
    }
)
"""Parameters of a request that do not change the answer."""

_MODEL = "model "  # prefix of the field names of models
_DIGEST_OF_FORMAT_1 = re.compile(" with [0-9a-f]{12}")
_encode: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=str, order="deterministic").encode


# --- the requests ---


def request_digest(custom_id: str, request: RouterParallelRequest) -> int:
    """Return a 128-bit number that is the same for requests that ask for the same answer."""
    kwargs = request.kwargs
    if kwargs and not WITHOUT_INFLUENCE.isdisjoint(kwargs):
        kwargs = {
            name: value for name, value in kwargs.items() if name not in WITHOUT_INFLUENCE
        } or None
    asked = (custom_id, request.model, request.messages, kwargs)
    document = _encode(asked if request.is_chat else (*asked, request.operation))
    return int.from_bytes(hashlib.blake2b(document, digest_size=16).digest())


class RequestsDigest:
    """Digest of many requests. Their order does not matter."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, custom_id: str, request: RouterParallelRequest) -> int:
        """Add a request; return its digest."""
        digest = request_digest(custom_id, request)
        self._sum += digest
        return digest

    def hexdigest(self) -> str:
        """Return the digest as 32 hexadecimal digits."""
        return f"{self._sum % (1 << 128):032x}"


# --- the Router ---


def describe_deployments(
    deployments: Iterable[tuple[str, Mapping[str, Any]]],
    aliases: Mapping[str, Any],
    for_all: Mapping[str, Any],
) -> dict[str, str]:
    """Describe for each model name the models that answer.

    A description has a digest of the parameters that change answers.

    Args:
        deployments: names, each with its ``litellm_params``.
        aliases: the ``model_group_alias`` of a Router.
        for_all: default parameters of all deployments.
    """
    groups: dict[str, set[str]] = {}
    for name, parameters in deployments:
        groups.setdefault(name, set()).add(_describe_deployment({**for_all, **parameters}))
    for alias, target in aliases.items():
        group: Any = target  # a group's name, or a mapping with the name as its "model"
        if isinstance(target, Mapping):
            group = cast("Mapping[str, Any]", target).get("model")
        if group in groups:
            groups[alias] = groups[group]
    return {f"{_MODEL}{name}": ", ".join(sorted(texts)) for name, texts in sorted(groups.items())}


def _describe_deployment(parameters: Mapping[str, Any]) -> str:
    model, provider = str(parameters["model"]), parameters.get("custom_llm_provider")
    if provider and not model.startswith(f"{provider}/"):
        model = f"{provider}/{model}"
    own = _settings_of_litellm()
    kept = {
        name: value
        for name, value in parameters.items()
        if name not in own and value is not None and not is_secret_name(name)
    }
    return f"{model} with {hashlib.sha256(_encode(kept)).hexdigest()[:12]}" if kept else model


def describe_models(description: Fields, models: Iterable[str]) -> dict[str, Any]:
    """Return the part of a Router's description that concerns these models.

    A name in the description may be a pattern such as ``openai/*``.
    """
    described = {name: value for name, value in description.items() if not name.startswith(_MODEL)}
    patterns = [name for name in description if name.startswith(_MODEL) and "*" in name]
    for model in sorted(models):
        name = f"{_MODEL}{model}"
        fitting = (pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern))
        for found in [name] if name in description else fitting:
            described[found] = description[found]
    return described


@functools.cache
def _settings_of_litellm() -> frozenset[str]:
    """Return parameters of a deployment that are for litellm and its clients, not for the model.

    litellm puts all others into the body of a request: those of OpenAI's API, and unknown ones.
    """
    import litellm
    from litellm.types.router import LiteLLM_Params
    from litellm.types.utils import all_litellm_params
    from openai import AsyncOpenAI
    from openai.resources.chat import AsyncCompletions
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    module_variables = {
        name
        for name, value in vars(litellm).items()
        if not callable(value) and not isinstance(value, ModuleType)
    }
    client_arguments = {
        *inspect.signature(AsyncOpenAI.__init__).parameters,
        *inspect.signature(AsyncCompletions.create).parameters,
    }
    own = {
        *all_litellm_params,
        *LiteLLM_Params.model_fields,
        *module_variables,
        *client_arguments,
    }
    sent = {*CompletionCreateParamsBase.__annotations__, "extra_body"} - {"model", "messages"}
    return frozenset((own - sent) | WITHOUT_INFLUENCE)


# --- the first format of manifests ---


def read_older_fields(then: Fields, now: Fields, input_of_format_1: Callable[[], str]) -> Fields:
    """Convert the fields of a manifest of the first format to the current format.

    The first format had a digest of the bytes of the input, all models of a config, and the address
    of a server. Fields that can no longer be compared (the digest of a model's parameters) count as
    equal.

    Args:
        then: fields of the manifest.
        now: fields of the run.
        input_of_format_1: returns the digest that the input had in the first format.
    """
    fields = {name: then.get(name, value) for name, value in now.items()}
    if then.get("router") == "demo":
        fields["router"] = "demo"  # so synthetic answers are never mixed with others
    if "input" in fields and fields["input"] == input_of_format_1():
        fields["input"] = now["input"]
    for name, text in fields.items():
        if name.startswith(_MODEL) and _names(text) == _names(now.get(name)):
            fields[name] = now[name]
    return fields


def _names(text: object) -> str:
    return _DIGEST_OF_FORMAT_1.sub("", str(text))
