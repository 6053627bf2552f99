"""Keys of providers: which ones a deployment sends, and which ones are missing.

The functions ask litellm. They import it themselves, since the import takes seconds.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any, Final, cast

from parallel_core.secret_names import is_secret_name

from .providers import known_providers, provider_of, without_variables
from .proxy_values import is_set, resolved, secrets_in

# Variables that litellm accepts in place of the one that it reports as missing. Those whose key it
# finds before a call are not listed. A test compares them with litellm's source.
_OTHER_NAMES: Final = {
    "AZURE_API_KEY": ("AZURE_OPENAI_API_KEY",),
    "COHERE_API_KEY": ("CO_API_KEY",),
    "HUGGINGFACE_API_KEY": ("HF_TOKEN",),
    "OPENROUTER_API_KEY": ("OR_API_KEY",),
    "QWENCLOUD_API_KEY": ("DASHSCOPE_API_KEY",),
    "QWEN_AI_PLATFORM_API_KEY": ("DASHSCOPE_API_KEY",),
    "REPLICATE_API_KEY": ("REPLICATE_API_TOKEN",),
    "VERCEL_AI_GATEWAY_API_KEY": ("VERCEL_OIDC_TOKEN",),
    "VOLCENGINE_API_KEY": ("ARK_API_KEY",),
    "VOYAGE_API_KEY": ("VOYAGE_AI_API_KEY", "VOYAGE_AI_TOKEN"),
}
# A test compares this with the names that litellm reads.
_KEY_VARIABLE: Final = re.compile(
    "API_?KEY$|API_(TOKEN|SECRET)$|(ACCESS|SECRET|MASTER)_KEY$|(ACCESS|AUTH|SESSION)_TOKEN$|_SECRET$"
    "|^(AZURE_AD|HF|WATSONX|FRIENDLI|VERCEL_OIDC|[A-Z]+_AI)_TOKEN$|_BEARER_TOKEN_|_CREDENTIALS$|^AZURE_PASSWORD$"
)
# Variables other than that of the key that log in to a provider, such as AZURE_CLIENT_ID.
_LOGIN_VARIABLE: Final = re.compile(
    "(TOKEN|CLIENT_ID|TENANT_ID|FEDERATION_RULE_ID|SERVICE_ACCOUNT_ID|CREDENTIALS)$"
)
# Parameters of litellm's credentials that set where a call goes, not who sends it.
_PLACE_PARAMETER: Final = re.compile(
    "^api_|region|location|project|bucket|endpoint|tags|organization|legacy"
)


def secrets_sent(deployments: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the keys that deployments with these ``litellm_params`` send.

    These are the keys among the parameters and, without an ``api_key``, those that litellm takes
    from the environment for the provider. Other environment variables are not included, even if
    they are named like keys.
    """
    found: set[str] = set()
    for parameters in deployments:
        values = cast("dict[str, Any]", resolved(dict(parameters), os.environ))
        values = {**values_of_credential(values.get("litellm_credential_name")), **values}
        found.update(secrets_in(values))
        if not values.get("api_key"):
            names = _key_variables(str(values.get("model")), values.get("custom_llm_provider"))
            found.update(secrets_in({name: os.environ.get(name, "") for name in names}))
    return frozenset(found)


def _key_variables(model: str, provider: str | None) -> set[str]:
    """Return the environment variables from which litellm may take a key for a model."""
    import litellm

    names: set[str] = set()
    if model == "*":  # each request names its own provider
        providers = known_providers()
    else:
        provider = provider or provider_of(model)
        providers = {provider}
        looked_up = _LookedUp()
        validate: Any = inspect.unwrap(cast("Any", litellm).validate_environment)
        # This makes a copy of litellm's function that sees another environment, which records the
        # names that it looks up. The rest of the process is not affected. litellm's own
        # get_llm_provider is replaced in the copy: for some providers it would begin to log in.

        def known_provider(**_: Any) -> tuple[str, str | None, None, None]:
            return model, provider, None, None

        scope = {
            **validate.__globals__,
            "os": SimpleNamespace(environ=looked_up, getenv=looked_up.get),
            "litellm_utils": SimpleNamespace(get_llm_provider=known_provider),
        }
        ask = FunctionType(validate.__code__, scope, None, validate.__defaults__)
        names = looked_up.names.union(ask(f"{provider}/*")["missing_keys"])
    # litellm's function does not look up every way to log in. The variables of the other ways have
    # the same prefix: AWS_…, AZURE_….
    prefixes = {name.partition("_")[0] for name in names} | {name.upper() for name in providers}
    beginnings = tuple(f"{prefix}_" for prefix in prefixes)
    return names | {
        name for name in os.environ if is_key_variable(name) and name.startswith(beginnings)
    }


def is_key_variable(name: str) -> bool:
    """Return True if an environment variable of this name usually holds a key for a provider."""
    return _KEY_VARIABLE.search(name.upper()) is not None


class _LookedUp(dict[str, str]):
    """An empty environment that records the names that are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return False

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


def values_of_credential(name: object) -> dict[str, Any]:
    """Return the values of an entry of litellm's ``credential_list``; empty if there is none."""
    import litellm

    credentials = cast("list[Any]", litellm.credential_list)
    for credential in credentials:
        if credential.credential_name == name:
            return dict(credential.credential_values)
    return {}


def has_key(values: Mapping[str, Any]) -> bool:
    """Return True if the parameters of a deployment have a key, or headers that may have one."""
    return any(
        is_secret_name(name) or "headers" in name or name == "mock_response"
        for name, value in values.items()
        if value and str(value).strip()
    )


def missing_keys(
    model: str, provider: str, values: Mapping[str, Any], found_key: object
) -> tuple[list[str], bool]:
    """Return the missing variables of a key, and whether it is known that there is a key.

    The list has the variables of a key that is needed and not set. The boolean is False if only a
    call can show whether there is a key.
    """
    import litellm

    module = cast("Any", litellm)
    known_keys = (found_key, module.api_key, getattr(module, f"{provider}_key", None))
    if any(isinstance(key, str) and key.strip() for key in known_keys):
        return [], True
    if isinstance(found_key, str):  # litellm has found a blank key, and would send it
        return _blank_keys_of(provider), True
    # litellm counts variables that are set and blank as set.
    with without_variables(lambda _, text: not text.strip()):
        found: dict[str, Any] = module.validate_environment(model)
    if found["keys_in_environment"]:
        return [], True
    names = cast("list[str]", found["missing_keys"])
    # A variable that is not a key (a region, a version) may be set in another way.
    missing = [name for name in names if name.endswith("_API_KEY")]
    if not missing:
        # A provider that needs only an address needs no key. Others log in with files, roles or
        # the machine itself. Without any names, litellm does not report what the provider needs.
        return [], bool(names) and all(name.endswith("_API_BASE") for name in names)
    others = [other for name in missing for other in _OTHER_NAMES.get(name, ())]
    if any(is_set(name, os.environ) for name in others):
        return [], True
    return ([], False) if _may_log_in_otherwise(missing, values) else (missing, True)


def _blank_keys_of(provider: str) -> list[str]:
    beginning = provider.partition("_")[0].upper()
    return sorted(
        name
        for name, text in os.environ.items()
        if name.startswith(beginning) and is_key_variable(name) and not text.strip()
    ) or [f"{provider.upper()}_API_KEY"]


def _may_log_in_otherwise(keys: Sequence[str], values: Mapping[str, Any]) -> bool:
    """Return True if an identity, a role or the like is set in place of one of these keys."""
    import litellm
    from litellm.types.router import CredentialLiteLLMParams

    # AZURE_CLIENT_ID belongs to the key AZURE_API_KEY.
    prefixes = tuple(key.removesuffix("API_KEY") for key in keys)
    is_azure = "AZURE_API_KEY" in keys
    return (
        any(
            name in CredentialLiteLLMParams.model_fields and not _PLACE_PARAMETER.search(name)
            for name, value in values.items()
            if value
        )
        or any(
            name.startswith(prefixes) and _LOGIN_VARIABLE.search(name) and text.strip()
            for name, text in os.environ.items()
        )
        or (is_azure and bool(litellm.enable_azure_ad_token_refresh))
    )
