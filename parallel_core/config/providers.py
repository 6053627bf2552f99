"""Providers as litellm knows them: their names and their addresses.

The functions import litellm themselves, since the import takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Generator
from typing import Any, Final
from urllib.parse import urlsplit

from .proxy_values import nearest
from .quiet import quiet_litellm

# Variables that override the address of a provider, such as GROQ_API_BASE.
_ADDRESS_VARIABLE: Final = re.compile("(BASE|URL|URI|ENDPOINT|HOST)$")


def known_providers() -> set[str]:
    """Return litellm's names of the providers."""
    import litellm

    return {str(getattr(provider, "value", provider)) for provider in litellm.provider_list}


def provider_of(model: str) -> str:
    """Return litellm's name of the provider of a model."""
    import litellm

    prefix, slash, _ = model.partition("/")
    if slash and prefix in known_providers():
        return prefix
    try:
        with quiet_litellm():
            return str(litellm.get_llm_provider(model)[1])
    except Exception:  # noqa: BLE001 - it may raise anything; no call of this model can be sent
        return prefix


def unknown_provider(model: str) -> str:
    """Return the problem of a model whose provider litellm does not know."""
    prefix, slash, rest = model.partition("/")
    near = nearest(prefix, known_providers()) if slash else None
    hint = (
        f"write it as <provider>/<model>, for instance openai/{model}; for your own server with "
        "OpenAI's API, also give its address (--api-base)"
    )
    if near:
        hint = f"is {near}/{rest} meant?"
    return f"litellm does not know the provider of the model {model!r}; {hint}"


def usual_address(model: str, provider: str) -> str | None:
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


def owner_of(api_base: str) -> str | None:
    """Return the provider to which an address belongs; None if litellm does not know it."""
    owners = owners_of(api_base)
    return owners[0] if owners else None


def owners_of(api_base: str) -> tuple[str, ...]:
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
    if owners := providers_by_host().get(host):
        return owners
    labels = host.split(".")
    return (labels[-2],) if len(labels) > 1 and labels[-2] in known_providers() else ()


def _host_of(address: str) -> str:
    """Return the host of an address in lower case, without a dot at its end."""
    return (urlsplit(address).hostname or "").removesuffix(".")


@functools.cache
def providers_by_host() -> dict[str, tuple[str, ...]]:
    """Return the providers of each host, by their default addresses."""
    import litellm

    found: dict[str, tuple[str, ...]] = {}
    with quiet_litellm(), without_variables(lambda name, _: _ADDRESS_VARIABLE.search(name)):
        # For these two, get_llm_provider logs in over the network.
        for provider in sorted(known_providers() - {"github_copilot", "chatgpt"}):
            model = f"{provider}/-"
            addresses: list[str | None] = []
            with contextlib.suppress(Exception):  # it may need a variable or a package first
                addresses.append(litellm.get_llm_provider(model)[3])
            with contextlib.suppress(Exception):
                addresses.append(usual_address(model, provider))
            for host in {_host_of(address) for address in addresses if address}:
                if "." in host and not host.startswith("127."):  # not a server on this machine
                    found[host] = (*found.get(host, ()), provider)
    return found


@contextlib.contextmanager
def without_variables(is_hidden: Callable[[str, str], object]) -> Generator[None]:
    """Remove variables from the environment that litellm reads, until the block is left."""
    hidden = {name: text for name, text in os.environ.items() if is_hidden(name, text)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


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
