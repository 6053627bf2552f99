"""Apply the settings of a config to the process, until its Router is closed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from typing import Any, Final, cast

from .litellm_settings import Types, is_number, module_settings
from .proxy_config import ProxyConfig, Setting
from .proxy_values import RouterConfigError, nearest, resolved

_ABSENT: Final = object()


@contextlib.contextmanager
def applied_config(config: ProxyConfig) -> Generator[None]:
    """Apply the settings of a config to the process, until the block is left.

    Raises:
        RouterConfigError: a setting that must be a number is not, or a credential is incomplete.
    """
    import litellm

    module = cast("Any", litellm)
    with contextlib.ExitStack() as changes:
        for name, text in config.environment(os.environ).items():
            changes.callback(_put_variable, name, os.environ.get(name))
            os.environ[name] = text
        settings = dict[str, Any]()
        if config.litellm_settings:  # the types of litellm's variables take 30 ms
            settings = resolved_settings(config.litellm_settings, module_settings())
        if "request_timeout" in settings:
            settings["request_timeout_explicitly_set"] = True
        if config.credentials:
            settings["credential_list"] = _credentials(config)
        # Otherwise litellm prints advice to the terminal for each failed call.
        settings["suppress_debug_info"] = True
        for name, value in settings.items():
            changes.callback(_put_attribute, module, name, getattr(module, name, _ABSENT))
            setattr(module, name, value)
        yield


def resolved_settings(
    settings: Mapping[str, Setting], known: Mapping[str, Types]
) -> dict[str, Any]:
    """Return the values of the settings that litellm knows, with variables resolved.

    A setting that must be a number is checked here: litellm does not check the types before it
    uses the settings in a call.

    Raises:
        RouterConfigError: settings must be numbers and are not; it lists each of them.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, setting in settings.items():
        if name not in known:
            continue
        value = values[name] = resolved(setting.value, os.environ)
        if value is None or not is_number(known[name]):
            continue
        if isinstance(value, str):  # values from the environment are texts
            with contextlib.suppress(ValueError):
                number = float(value)
                value = values[name] = int(number) if number.is_integer() else number
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            problems.append(f"{setting.place}: must be a number")
    if problems:
        raise RouterConfigError(problems)
    return values


def unknown_litellm_settings(config: ProxyConfig) -> list[str]:
    """Report the ``litellm_settings`` that the installed litellm does not have and ignores."""
    if not config.litellm_settings:
        return []
    known = module_settings()
    warnings: list[str] = []
    for name, setting in config.litellm_settings.items():
        if name not in known:
            near = nearest(name, known, likeness=0.85)
            hint = f"; is {near} meant?" if near else ""
            warnings.append(f"{setting.place}: ignored, litellm has no such setting{hint}")
    return warnings


def _put_variable(name: str, text: str | None) -> None:
    if text is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = text


def _put_attribute(module: Any, name: str, value: object) -> None:
    if value is _ABSENT:
        if hasattr(module, name):
            delattr(module, name)
    else:
        setattr(module, name, value)


def _credentials(config: ProxyConfig) -> list[Any]:
    from litellm.types.utils import CredentialItem

    items: list[Any] = []
    for setting in config.credentials:
        entry = resolved(setting.value, os.environ)
        try:
            fields = dict(cast("dict[str, Any]", entry))
            items.append(
                CredentialItem(
                    credential_name=fields["credential_name"],
                    credential_values=fields["credential_values"],
                    credential_info=fields.get("credential_info") or {},
                )
            )
        except (KeyError, TypeError, ValueError):  # their texts quote the values
            problem = "must have credential_name and credential_values"
            raise RouterConfigError([f"{setting.place}: {problem}"]) from None
    return items
