"""Messages about models that have no key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .endpoints import Endpoint

_MOST_NAMED: Final = 3  # models in a message about one missing key


def need_keys(endpoints: Iterable[Endpoint]) -> list[str]:
    """Return a problem for each missing variable, with all models that need it."""
    return [
        f"{'the models' if len(names) > 1 else 'the model'} {_first_names(map(repr, names))} "
        f"{'need' if len(names) > 1 else 'needs'} a key: set the environment variable {variable}, "
        "which is not set or empty"
        for variable, names in _models_by_missing_key(endpoints).items()
    ]


def missing_key_warnings(endpoints: Iterable[Endpoint]) -> list[str]:
    """Return a warning for each missing variable, with all models that need it."""
    return [
        f"{_first_names(names)}: {variable} is not set or empty"
        for variable, names in _models_by_missing_key(endpoints).items()
    ]


def _models_by_missing_key(endpoints: Iterable[Endpoint]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for endpoint in endpoints:
        if endpoint.missing_keys:
            found.setdefault(" or ".join(endpoint.missing_keys), {})[endpoint.model_name] = None
    return {variable: list(names) for variable, names in found.items()}


def _first_names(names: Iterable[str]) -> str:
    listed = list(names)
    if len(listed) == 1:
        return listed[0]
    shown, more = listed[:_MOST_NAMED], len(listed) - _MOST_NAMED
    if more <= 0:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{', '.join(shown)} and {more:,} more"
