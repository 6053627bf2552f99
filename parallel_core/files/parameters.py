"""Names of request members: parameters of an endpoint, settings of litellm, vendor parameters.

An endpoint is named by the method of a Router that serves it.

The names come from the packages ``openai`` and ``litellm`` at run time. Only the functions import
these packages, because that takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_args, get_type_hints

from parallel_core.secret_names import is_secret_name
from parallel_core.types import CHAT

# Prefixes of internal arguments of this package and of litellm. No vendor parameter has them.
_PRIVATE_PREFIXES: Final = ("_", "litellm_", "mock_", "parallel_core_")
# Such a name is that of an address, a file, a callback or a deployment, even if litellm does not
# declare it.
_SETTING: Final = re.compile(
    r"(?:^|[_-])(?:api|base|callbacks?|cert|client|deployment|endpoint|fallbacks|file|headers?|host|"
    r"path|prox(?:y|ies)|ssl|uri|url|verify)$"
    r"|(?:^|_)(?:deployment|model_id)(?:_|$)",
    re.IGNORECASE,
)
# Matches the code with which litellm's functions read arguments that they do not declare.
_READ: Final = re.compile(
    r"""(?<![\w.])(?:request_)?(?:kwargs|litellm_params)(?:\.(?:get|pop)\(\s*|\[)"([\w-]+)\""""
)
_SOURCES: Final = (
    *("main.py", "utils.py", "router*.py", "router_utils/**/*.py"),
    *("router_strategy/**/*.py", "litellm_core_utils/**/*.py"),
)
_FEW: Final = 2


@functools.cache
def parameters_of(operation: str) -> frozenset[str]:
    """Return the names of the parameters of OpenAI's API.

    OpenAI has no reranking, so its parameters are those that litellm knows.
    """
    if operation == "arerank":
        from litellm.types.rerank import RerankRequest

        return frozenset(_fields(RerankRequest))
    import openai.types
    from openai.types import completion_create_params as of_text
    from openai.types.chat import completion_create_params as of_chat
    from openai.types.responses import response_create_params as of_responses

    forms: dict[str, tuple[Any, ...]] = {
        CHAT: (
            of_chat.CompletionCreateParamsNonStreaming,
            of_chat.CompletionCreateParamsStreaming,
        ),
        "atext_completion": (
            of_text.CompletionCreateParamsNonStreaming,
            of_text.CompletionCreateParamsStreaming,
        ),
        "aresponses": (
            of_responses.ResponseCreateParamsNonStreaming,
            of_responses.ResponseCreateParamsStreaming,
        ),
        "aembedding": (openai.types.EmbeddingCreateParams,),
        "amoderation": (openai.types.ModerationCreateParams,),
    }
    return frozenset(name for form in forms[operation] for name in form.__annotations__)


@functools.cache
def openai_roles() -> frozenset[str]:
    """Return the roles that a message of OpenAI's chat completions may have."""
    from openai.types.chat import ChatCompletionMessageParam

    forms = get_args(ChatCompletionMessageParam)
    return frozenset(role for form in forms for role in get_args(get_type_hints(form)["role"]))


@functools.lru_cache(maxsize=4096)
def is_litellm_setting(name: str, operation: str) -> bool:
    """Return True if litellm would act on an argument of this name instead of sending it.

    A setting may contain a key, send the request to another address, weaken its encryption, fake
    an answer, call more often, or change the reported cost.
    """
    if name in parameters_of(operation):
        return False
    if is_private(name) or name in _declared_settings() or name.startswith(_prefixes_of_keys()):
        return True
    return name not in _vendor_parameters() and (
        _looks_like_a_setting(name)
        or name in _arguments_of_calls(operation)
        or name in _undeclared_reads()
    )


def is_key_or_address(name: str, operation: str) -> bool:
    """Return True if a member of ``extra_body`` looks like a key or an address.

    A proxy behind the API, such as litellm's, may act on it.
    """
    return name not in parameters_of(operation) and (
        is_private(name) or _looks_like_a_setting(name)
    )


def is_private(name: str) -> bool:
    """Return True if a name is internal to litellm or this package."""
    return name.startswith(_PRIVATE_PREFIXES)


def _looks_like_a_setting(name: str) -> bool:
    """Return True if a name looks like a key, an address, a file or a callback."""
    return is_secret_name(name) or _SETTING.search(name) is not None


# --- names in litellm ---


@functools.cache
def _declared_settings() -> frozenset[str]:
    """Return the names that litellm lists as its own settings or as settings of a deployment."""
    from litellm.types import router, utils

    names: set[str] = set(utils.all_litellm_params)
    names.update(_fields(router.LiteLLM_Params), _fields(router.GenericLiteLLMParams))
    names.update(_fields(router.LiteLLMParamsTypedDict))
    names.update(_fields(utils.StandardCallbackDynamicParams))
    return frozenset(names)


@functools.cache
def _fields_of_keys() -> frozenset[str]:
    from litellm.types.router import CredentialLiteLLMParams

    return frozenset(_fields(CredentialLiteLLMParams))


@functools.cache
def _prefixes_of_keys() -> tuple[str, ...]:
    """Return the prefixes that several credential fields share: ``aws_``, ``vertex_``, …"""
    beginnings = [name.partition("_")[0] for name in _fields_of_keys() if "_" in name]
    often = {beginning for beginning in beginnings if beginnings.count(beginning) >= _FEW}
    return tuple(f"{beginning}_" for beginning in often)


@functools.cache
def _arguments_of_calls(operation: str) -> frozenset[str]:
    """Return the names of the arguments of litellm's functions and of its Router."""
    import litellm

    its: Any = litellm
    router = its.Router
    functions = (its.completion, its.acompletion, router.__init__, router.acompletion)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    if operation == CHAT:
        return frozenset(names.union(its.OPENAI_CHAT_COMPLETION_PARAMS))
    own = inspect.signature(getattr(its, operation.removeprefix("a"))).parameters
    return frozenset(names.difference(parameters_of(CHAT)).union(own))


@functools.cache
def _undeclared_reads() -> frozenset[str]:
    """Return the names of arguments that litellm's functions read but do not declare."""
    import litellm

    folder = Path(litellm.__file__).parent
    files = {file for pattern in _SOURCES for file in folder.glob(pattern)}
    return frozenset(
        name for file in files for name in _READ.findall(file.read_text(encoding="utf-8"))
    ).difference(_required_elsewhere())


def _required_elsewhere() -> frozenset[str]:
    """Return the names of required arguments of other endpoints, such as ``input`` of embeddings.

    litellm reads these in calls of those endpoints, to log and to count. In a chat completion it
    sends them like any vendor parameter.
    """
    import litellm
    from litellm.types.utils import CallTypes

    functions = [getattr(litellm, kind.value, None) for kind in CallTypes]
    return frozenset(
        parameter.name
        for function in functions
        if inspect.isfunction(function)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
    )


@functools.cache
def _vendor_parameters() -> frozenset[str]:
    """Return the names of parameters of litellm's providers: ``top_k``, ``thinking``, …

    Keys and addresses are not included.
    """
    import litellm

    from parallel_core.config import quiet_litellm

    names: set[str] = set()
    with quiet_litellm():
        for config in _configs_of_providers(litellm):
            names.update(*map(_fields, type(config).__mro__))
            names.update(inspect.signature(type(config).__init__).parameters)
            # Some need the name of an existing model, and raise various errors without one.
            with contextlib.suppress(Exception):
                names.update(config.get_supported_openai_params("model"))
    return frozenset(
        name
        for name in names.difference(("self", "args", "kwargs"))
        if name.islower() and not is_private(name) and not _looks_like_a_setting(name)
    )


def _configs_of_providers(litellm: ModuleType) -> Iterator[Any]:
    from litellm.utils import ProviderConfigManager

    for provider in litellm.LlmProviders:
        # A provider whose package is not installed has no configuration.
        with contextlib.suppress(Exception):
            config = ProviderConfigManager.get_provider_chat_config("model", provider)
            if config is not None:
                yield config


def _fields(type_: Any) -> Iterable[str]:
    """Return the names of the fields of a pydantic model, a TypedDict or a plain class."""
    fields: Any = getattr(type_, "model_fields", None)
    return fields or getattr(type_, "__annotations__", {})
