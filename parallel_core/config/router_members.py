"""Access to the members of a Router, for each generation of litellm.

litellm 1.110 has entry points (``registry()``, ``settings()``, ``retire()``) and deprecates the
members that earlier versions have instead. The functions use what the Router has. Stand-ins may
have neither.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

LAYERS: Final = 3
"""Longest chain of ``router`` attributes: host in trio, Router of workers, Router. The limit is
needed because a mock has every attribute, so its chain never ends."""


def unwrap_router(router: object) -> Any:
    """Return the innermost Router of a router host or of a Router of workers."""
    for _ in range(LAYERS):
        router = getattr(router, "router", router)
    return cast("Any", router)


def deployments(router: object) -> list[Any]:
    """Return the deployments of a Router, in the form of ``model_list``."""
    registry = _entry_point(router, "registry")
    found: Any = registry().all() if registry else getattr(router, "model_list", None)
    return list(found or [])


def deployments_for(router: object, model: str) -> list[Any]:
    """Return the deployments that serve a model: by its name, an alias or a pattern."""
    found: Any = None
    if registry := _entry_point(router, "registry"):
        found = registry().deployments(model)
    elif find := _entry_point(router, "get_model_list"):
        found = find(model_name=model)
    return list(found or [])


def aliases(router: object) -> Mapping[str, Any]:
    """Return the model of each alias of the Router."""
    registry = _entry_point(router, "registry")
    found: Any = registry().aliases() if registry else getattr(router, "model_group_alias", None)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def setting(router: object, name: str) -> Any:
    """Return a setting of the Router; None if it has no setting of this name."""
    settings = _entry_point(router, "settings")
    if settings and hasattr(values := settings(), name):
        return getattr(values, name)
    return getattr(router, name, None)


def retire(router: object) -> None:
    """Remove the Router from litellm's process-wide lists."""
    end = _entry_point(router, "retire") or _entry_point(router, "discard")
    if end:
        end()


def async_method(router: object, name: str) -> Callable[..., Awaitable[Any]] | None:
    """Return a public async method of a Router, or of any object; None if it has none."""
    # Properties are not read: deprecated members of litellm's Router warn when they are.
    known = inspect.getattr_static(type(router), name, None)
    if name.startswith("_") or inspect.isdatadescriptor(known):
        return None
    method = getattr(router, name, None)
    return method if inspect.iscoroutinefunction(method) else None


def check_operation(router: object, operation: object) -> None:
    """Check that a Router, or any object, has the async method that an operation names.

    Raises:
        TypeError: ``operation`` is not a str.
        ValueError: there is no such method. The message names one that is spelt nearly so, or all.
    """
    if not isinstance(operation, str):
        raise TypeError(
            "operation must be the name of an async method of the Router, for instance "
            f"'aembedding', not {type(operation).__qualname__}"
        )
    if async_method(router, operation) is not None:
        return
    itself = unwrap_router(router)
    names = dir(itself)
    if hasattr(itself, "acompletion"):  # the calls of a Router begin with this letter
        names = [name for name in names if name.startswith("a") and not name.startswith("async_")]
    names = [name for name in names if async_method(itself, name) is not None]
    close = difflib.get_close_matches(operation, names, n=1)
    # A Router has more than a hundred.
    advice = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names) or 'none'}"
    raise ValueError(
        f"operation: {type(itself).__qualname__} has no async method {operation!r}; {advice}"
    )


def _entry_point(router: object, name: str) -> Callable[..., Any] | None:
    method = getattr(router, name, None)
    return method if callable(method) else None
