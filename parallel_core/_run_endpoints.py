"""Where the calls of a deployment go, as far as litellm tells it before a call, and which keys are
missing for them. litellm is imported by the functions only: that takes seconds."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Generator, Iterable, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from ._proxy_values import RouterConfigError, nearest, references, resolved, secrets_in

# Where litellm sends calls of a model whose api_base nobody has given, when it does not tell.
_DEFAULT_ADDRESSES: Final = {
    "anthropic": "https://api.anthropic.com/v1",
    "cohere_chat": "https://api.cohere.com/v2",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
    "openai": "https://api.openai.com/v1",
}


# Parameters that are a key, or stand for one.
_KEYS: Final = (
    *("api_key", "aws_access_key_id", "azure_ad_token", "azure_ad_token_provider"),
    *("azure_password", "client_secret", "extra_headers", "headers", "mock_response"),
    *("vertex_ai_credentials", "vertex_credentials"),
)
_AZURE: Final = frozenset({"azure", "azure_ai", "azure_text"})
_IDENTITIES_OF_AZURE: Final = ("azure_scope", "azure_username", "client_id", "tenant_id")
_VARIABLES_OF_AZURE: Final = ("AZURE_AD_TOKEN", "AZURE_CLIENT_ID", "AZURE_TENANT_ID")
_CLOUDS: Final = (
    *("bedrock", "databricks", "gigachat", "github_copilot", "oci", "sagemaker", "sap"),
    *("snowflake", "vertex_ai", "watsonx"),
)


class Endpoint(msgspec.Struct, frozen=True):
    """Where the calls of one deployment go.

    Attributes:
        model_name: the name that requests use.
        model: what litellm calls it, ``provider/model``.
        provider: litellm's name of the provider.
        api_base: the address, without user, password and query; None where litellm does not tell
            it before a call.
        missing_keys: the names of environment variables that are needed and not set.
        is_key_known: whether it can be told before a call that there is a key, or that none is
            needed. Clouds have further ways to log in: files, roles, the machine itself.
    """

    model_name: str
    model: str
    provider: str
    api_base: str | None
    missing_keys: tuple[str, ...] = ()
    is_key_known: bool = True


def secrets_sent(deployments: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the keys that deployments with these ``litellm_params`` send.

    These are the keys among the parameters and, where there is no ``api_key``, what litellm takes
    from the environment for the provider. Other variables of the environment are no business of a
    Router, whatever their names.
    """
    found: set[str] = set()
    for parameters in deployments:
        values = cast("dict[str, Any]", resolved(dict(parameters), os.environ))
        values = {**_values_of_credential(values.get("litellm_credential_name")), **values}
        found.update(secrets_in(values))
        if not values.get("api_key"):
            names = _key_variables(str(values.get("model")), values.get("custom_llm_provider"))
            found.update(secrets_in({name: os.environ.get(name, "") for name in names}))
    return frozenset(found)


def _key_variables(model: str, provider: str | None) -> set[str]:
    """The names of the environment variables from which litellm may take a key for a model."""
    import litellm

    names: set[str] = set()
    if model == "*":  # the model of each request tells the provider
        providers = known_providers()
    else:
        provider = provider or _provider_of(model)
        providers = {provider}
        looked_up = _LookedUp()
        validate: Any = inspect.unwrap(cast("Any", litellm).validate_environment)
        # A copy of litellm's function with an environment of its own: what it asks for is noted,
        # and nothing changes for anybody else. For some providers, litellm's way to tell the
        # provider of a model would begin to log in.

        def told(**_: Any) -> tuple[str, str | None, None, None]:
            return model, provider, None, None

        scope = {
            **validate.__globals__,
            "os": SimpleNamespace(environ=looked_up, getenv=looked_up.get),
            "litellm_utils": SimpleNamespace(get_llm_provider=told),
        }
        ask = FunctionType(validate.__code__, scope, None, validate.__defaults__)
        names = looked_up.names.union(ask(f"{provider}/*")["missing_keys"])
    # It does not ask for every way to log in. Others begin in the same way: AWS_…, AZURE_….
    prefixes = {name.partition("_")[0] for name in names} | {name.upper() for name in providers}
    beginnings = tuple(f"{prefix}_" for prefix in prefixes)
    return names | {
        name for name in os.environ if is_key_variable(name) and name.startswith(beginnings)
    }


def _provider_of(model: str) -> str:
    import litellm

    prefix, slash, _ = model.partition("/")
    if slash and prefix in known_providers():
        return prefix
    try:
        with quiet_litellm():
            return str(litellm.get_llm_provider(model)[1])
    except Exception:  # noqa: BLE001 - whatever it raises: no call of this model can be sent
        return prefix


class _LookedUp(dict[str, str]):
    """An environment with nothing in it, which notes the names that are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return False

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


def is_key_variable(name: str) -> bool:
    """Whether an environment variable of this name usually holds a key for a provider."""
    endings = ("_API_KEY", "_ACCESS_KEY", "_AUTH_TOKEN", "_SESSION_TOKEN", "_SECRET")
    others = ("HF_TOKEN", "AZURE_AD_TOKEN", "LITELLM_MASTER_KEY", "WATSONX_TOKEN", "WATSONX_APIKEY")
    return name.upper().endswith(endings) or name in others


def endpoint_of(name: str, parameters: Mapping[str, Any]) -> Endpoint:
    """Where the calls of a deployment with these ``litellm_params`` go.

    Raises:
        RouterConfigError: litellm does not know the provider.
    """
    import litellm

    missing = [variable for _, variable in references(dict(parameters)) if not _is_set(variable)]
    values = cast("dict[str, Any]", resolved(dict(parameters), os.environ))
    values = {**_values_of_credential(values.get("litellm_credential_name")), **values}
    model = str(values["model"])
    api_base = values.get("api_base") or values.get("base_url")
    provider = values.get("custom_llm_provider")
    told: Any = None
    # litellm chooses the model of these later.
    if "*" not in model and not model.startswith("auto_router/"):
        try:
            with quiet_litellm():
                _, provider, _, told = litellm.get_llm_provider(
                    model, custom_llm_provider=provider, api_base=api_base
                )
        except Exception:  # noqa: BLE001 - whatever it raises, and its text would mislead here
            raise RouterConfigError([_unknown_provider(model)]) from None
    elif provider is None:
        provider, slash, _ = model.partition("/")
        if not slash:  # "*", each request has its own
            address = shown_url(api_base) if api_base else None
            return Endpoint(name, model, "*", address, is_key_known=False)
    full_name = model if "/" in model else f"{provider}/{model}"
    is_known = True
    if not missing:
        missing, is_known = _missing_keys(full_name, provider, values)
    address = api_base or told or _address_of_environment(str(provider))
    return Endpoint(
        model_name=name,
        model=full_name,
        provider=str(provider),
        api_base=shown_url(str(address)) if address else None,
        missing_keys=tuple(dict.fromkeys(missing)),
        is_key_known=is_known,
    )


def _values_of_credential(name: object) -> dict[str, Any]:
    import litellm

    credentials = cast("list[Any]", litellm.credential_list)
    for credential in credentials:
        if credential.credential_name == name:
            return dict(credential.credential_values)
    return {}


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _address_of_environment(provider: str) -> str | None:
    if provider == "openai":
        told = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE")
        if told:
            return told
    return _DEFAULT_ADDRESSES.get(provider)


def _missing_keys(
    model: str, provider: object, values: Mapping[str, Any]
) -> tuple[list[str], bool]:
    """The names of the variables of a key that is needed and nowhere given; and whether it can be
    told that there is one."""
    import litellm

    module = cast("Any", litellm)
    if any(values.get(name) for name in _KEYS):
        return [], True
    if module.api_key or getattr(module, f"{provider}_key", None):
        return [], True
    if provider in _AZURE and (
        any(values.get(name) for name in _IDENTITIES_OF_AZURE)
        or any(_is_set(name) for name in _VARIABLES_OF_AZURE)
        or module.enable_azure_ad_token_refresh
    ):
        return [], False
    if str(provider).startswith(_CLOUDS):
        return [], False
    found: dict[str, Any] = module.validate_environment(model)
    if found["keys_in_environment"]:
        return [], True
    # What is not a key (a region, a version) may be given elsewhere.
    missing = [name for name in found["missing_keys"] if name.endswith("_API_KEY")]
    # Where it names none at all, it does not know the provider's ways.
    return missing, bool(found["missing_keys"])


def _unknown_provider(model: str) -> str:
    prefix, slash, rest = model.partition("/")
    near = nearest(prefix, known_providers()) if slash else None
    hint = (
        f"write it as <provider>/<model>, for instance openai/{model}; for a server of your own "
        "that speaks OpenAI's API give its address, too (--api-base)"
    )
    if near:
        hint = f"is {near}/{rest} meant?"
    return f"litellm does not know the provider of the model {model!r}; {hint}"


@contextlib.contextmanager
def quiet_litellm() -> Generator[None]:
    """Keep litellm from printing advice into the terminal, until the block is left."""
    import litellm

    before = litellm.suppress_debug_info
    litellm.suppress_debug_info = True  # it prints a list of its providers otherwise
    try:
        yield
    finally:
        litellm.suppress_debug_info = before


def known_providers() -> set[str]:
    """litellm's names of the providers."""
    import litellm

    return {str(getattr(provider, "value", provider)) for provider in litellm.provider_list}


def shown_url(url: str) -> str:
    """A URL as it may be shown: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(no valid URL)"
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{port}{parts.path}" if parts.scheme else url.partition("?")[0]
