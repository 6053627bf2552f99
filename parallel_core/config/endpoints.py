"""Find the address of a deployment's calls, and its missing keys, before the first call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from .litellm_settings import deployment_parameters, is_text
from .provider_keys import has_key, missing_keys, values_of_credential
from .providers import owners_of, shown_url, unknown_provider, usual_address
from .proxy_values import RouterConfigError, is_set, not_a_text, references, resolved
from .quiet import quiet_litellm


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
    values = {**values_of_credential(values.get("litellm_credential_name")), **values}
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
            raise RouterConfigError([unknown_provider(model)]) from None
    elif provider is None:
        provider, slash, _ = model.partition("/")
        if not slash:  # the model is "*": each request names its own provider
            address = shown_url(api_base) if api_base else None
            return Endpoint(name, model, "*", address, is_key_known=False)
    provider = str(provider)
    full_name = model if "/" in model else f"{provider}/{model}"
    is_known = True
    if not missing and not has_key(values):
        missing, is_known = missing_keys(full_name, provider, values, found_key)
        if api_base and is_known and not missing:
            _refuse_address_of_another(full_name, provider, str(api_base))
    address = api_base or default_address or usual_address(model, provider)
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


def _refuse_address_of_another(model: str, provider: str, api_base: str) -> None:
    owners = owners_of(api_base)
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
