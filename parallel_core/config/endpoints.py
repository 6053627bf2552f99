"""Find the address of a deployment's calls, and its missing keys, before the first call.

The functions ask litellm. They import it themselves, since the import takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from parallel_core.secret_names import is_secret_name

from .litellm_settings import deployment_parameters, is_text
from .proxy_values import (
    RouterConfigError,
    is_set,
    nearest,
    not_a_text,
    references,
    resolved,
    secrets_in,
)

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
# Variables that override the address of a provider, such as GROQ_API_BASE.
_ADDRESS_VARIABLE: Final = re.compile("(BASE|URL|URI|ENDPOINT|HOST)$")
# Parameters of litellm's credentials that set where a call goes, not who sends it.
_PLACE_PARAMETER: Final = re.compile(
    "^api_|region|location|project|bucket|endpoint|tags|organization|legacy"
)


class Endpoint(msgspec.Struct, frozen=True):
    """Address and keys of one deployment.

    Attributes:
        model_name: the name that requests use.
        model: litellm's name of the model, ``provider/model``.
        provider: litellm's name of the provider.
        api_base: the address, without user, password and query. None if litellm does not report
            it before a call.
        missing_keys: names of environment variables that are needed and not set.
        is_key_known: True if it is known before a call that there is a key, or that none is
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

    These are the keys among the parameters and, without an ``api_key``, those that litellm takes
    from the environment for the provider. Other environment variables are not included, even if
    they are named like keys.
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
    """Return the environment variables from which litellm may take a key for a model."""
    import litellm

    names: set[str] = set()
    if model == "*":  # each request names its own provider
        providers = known_providers()
    else:
        provider = provider or _provider_of(model)
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


def _provider_of(model: str) -> str:
    import litellm

    prefix, slash, _ = model.partition("/")
    if slash and prefix in known_providers():
        return prefix
    try:
        with quiet_litellm():
            return str(litellm.get_llm_provider(model)[1])
    except Exception:  # noqa: BLE001 - it may raise anything; no call of this model can be sent
        return prefix


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


def is_key_variable(name: str) -> bool:
    """Return True if an environment variable of this name usually holds a key for a provider."""
    return _KEY_VARIABLE.search(name.upper()) is not None


def endpoint_of(name: str, parameters: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint of a deployment with these ``litellm_params``.

    Raises:
        RouterConfigError: litellm does not know the provider, a parameter that must be a text is a
            number or a boolean, or a key of the environment would go to another provider.
    """
    import litellm

    wrong = _wrong_types(parameters)
    if wrong:
        raise RouterConfigError(wrong)
    missing = [
        variable for _, variable in references(dict(parameters)) if not is_set(variable, os.environ)
    ]
    values = cast("dict[str, Any]", resolved(dict(parameters), os.environ))
    values = {**_values_of_credential(values.get("litellm_credential_name")), **values}
    model = str(values["model"])
    api_base = values.get("api_base") or values.get("base_url")
    provider = values.get("custom_llm_provider")
    default_address: Any = None
    found_key: Any = None
    # For patterns and auto routers, litellm chooses the model later.
    if "*" not in model and not model.startswith("auto_router/"):
        try:
            with quiet_litellm():
                _, provider, found_key, default_address = litellm.get_llm_provider(
                    model, custom_llm_provider=provider, api_base=api_base
                )
        except Exception:  # noqa: BLE001 - it may raise anything; its text would mislead here
            raise RouterConfigError([_unknown_provider(model)]) from None
    elif provider is None:
        provider, slash, _ = model.partition("/")
        if not slash:  # the model is "*": each request names its own provider
            address = shown_url(api_base) if api_base else None
            return Endpoint(name, model, "*", address, is_key_known=False)
    provider = str(provider)
    full_name = model if "/" in model else f"{provider}/{model}"
    is_known = True
    if not missing and not _has_key(values):
        missing, is_known = _missing_keys(full_name, provider, values, found_key)
        if api_base and is_known and not missing:
            _refuse_address_of_another(full_name, provider, str(api_base))
    address = api_base or default_address or _usual_address(model, provider)
    return Endpoint(
        model_name=name,
        model=full_name,
        provider=provider,
        api_base=shown_url(str(address)) if address else None,
        missing_keys=tuple(dict.fromkeys(missing)),
        is_key_known=is_known,
    )


def _wrong_types(parameters: Mapping[str, Any]) -> list[str]:
    """Report each parameter that must be a text and is not."""
    known = deployment_parameters()
    return [
        not_a_text(f"litellm_params.{name}", value)
        for name, value in parameters.items()
        if isinstance(value, (bool, int, float)) and is_text(known.get(name, frozenset()))
    ]


def _values_of_credential(name: object) -> dict[str, Any]:
    import litellm

    credentials = cast("list[Any]", litellm.credential_list)
    for credential in credentials:
        if credential.credential_name == name:
            return dict(credential.credential_values)
    return {}


def _usual_address(model: str, provider: str) -> str | None:
    """Return the address of a provider; None if litellm does not know it before a call."""
    from litellm.types.utils import LlmProviders
    from litellm.utils import ProviderConfigManager

    def address_of(kind: LlmProviders) -> str | None:
        info: Any = ProviderConfigManager.get_provider_model_info(model, kind)
        with contextlib.suppress(NotImplementedError, ValueError):
            return None if info is None else info.get_api_base()
        return None

    if provider not in {kind.value for kind in LlmProviders}:
        return None
    address = address_of(LlmProviders(provider))
    # Classes of compatible providers inherit OpenAI's address.
    is_inherited = provider != "openai" and address == address_of(LlmProviders.OPENAI)
    return None if is_inherited else address


def _has_key(values: Mapping[str, Any]) -> bool:
    """Return True if the parameters of a deployment have a key, or headers that may have one."""
    return any(
        is_secret_name(name) or "headers" in name or name == "mock_response"
        for name, value in values.items()
        if value and str(value).strip()
    )


def _missing_keys(
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
    with _without_variables(lambda _, text: not text.strip()):
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


@contextlib.contextmanager
def _without_variables(is_hidden: Callable[[str, str], object]) -> Generator[None]:
    """Remove variables from the environment that litellm reads, until the block is left."""
    hidden = {name: text for name, text in os.environ.items() if is_hidden(name, text)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _refuse_address_of_another(model: str, provider: str, api_base: str) -> None:
    owners = _owners_of(api_base)
    # One provider may have several names: codestral, text-completion-codestral.
    if not owners or any(owner in provider or provider in owner for owner in owners):
        return
    owner = owners[0]
    rest = model.removeprefix(f"{provider}/")
    problem = (
        f"the model {model!r} would send the key of {provider} to {shown_url(api_base)}, an "
        f"address of {owner}; write {owner}/{rest}, or give the deployment an api_key in a config"
    )
    raise RouterConfigError([problem])


def owner_of(api_base: str) -> str | None:
    """Return the provider to which an address belongs; None if litellm does not know it."""
    owners = _owners_of(api_base)
    return owners[0] if owners else None


def _owners_of(api_base: str) -> tuple[str, ...]:
    """Return litellm's names of the provider of an address, the most usual one first.

    It is the provider that litellm recognizes by the address, else those whose default address
    has the same host, else the one that is named like the domain.
    """
    import litellm

    try:
        parts = urlsplit(api_base)
        host = _host_of(api_base)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ()
    # litellm compares addresses as texts.
    address = parts._replace(netloc=f"{host}{port}").geturl()
    with contextlib.suppress(Exception), quiet_litellm():  # it raises if it knows no provider
        if provider := litellm.get_llm_provider("-", api_base=address)[1]:
            return (str(provider),)
    if owners := _providers_by_host().get(host):
        return owners
    labels = host.split(".")
    return (labels[-2],) if len(labels) > 1 and labels[-2] in known_providers() else ()


def _host_of(address: str) -> str:
    """Return the host of an address in lower case, without a dot at its end."""
    return (urlsplit(address).hostname or "").removesuffix(".")


@functools.cache
def _providers_by_host() -> dict[str, tuple[str, ...]]:
    """Return the providers of each host, by their default addresses."""
    import litellm

    found: dict[str, tuple[str, ...]] = {}
    with quiet_litellm(), _without_variables(lambda name, _: _ADDRESS_VARIABLE.search(name)):
        # For these two, get_llm_provider logs in over the network.
        for provider in sorted(known_providers() - {"github_copilot", "chatgpt"}):
            model = f"{provider}/-"
            addresses: list[str | None] = []
            with contextlib.suppress(Exception):  # it may need a variable or a package first
                addresses.append(litellm.get_llm_provider(model)[3])
            with contextlib.suppress(Exception):
                addresses.append(_usual_address(model, provider))
            for host in {_host_of(address) for address in addresses if address}:
                if "." in host and not host.startswith("127."):  # not a server on this machine
                    found[host] = (*found.get(host, ()), provider)
    return found


def _unknown_provider(model: str) -> str:
    prefix, slash, rest = model.partition("/")
    near = nearest(prefix, known_providers()) if slash else None
    hint = (
        f"write it as <provider>/<model>, for instance openai/{model}; for your own server with "
        "OpenAI's API, also give its address (--api-base)"
    )
    if near:
        hint = f"is {near}/{rest} meant?"
    return f"litellm does not know the provider of the model {model!r}; {hint}"


@contextlib.contextmanager
def quiet_litellm() -> Generator[None]:
    """Keep litellm from printing advice to the terminal, until the block is left."""
    import litellm

    before = litellm.suppress_debug_info
    litellm.suppress_debug_info = True  # otherwise it prints a list of its providers
    try:
        yield
    finally:
        litellm.suppress_debug_info = before


def known_providers() -> set[str]:
    """Return litellm's names of the providers."""
    import litellm

    return {str(getattr(provider, "value", provider)) for provider in litellm.provider_list}


def shown_url(url: str) -> str:
    """Return a URL that is safe to show: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(invalid URL)"
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{port}{parts.path}" if parts.scheme else url.partition("?")[0]
