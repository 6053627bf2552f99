"""Values of a config file: references to environment variables, keys, and misspelt names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

from parallel_core.secret_names import SHORTEST_SECRET, is_secret_name

Place: TypeAlias = tuple[str | int, ...]

ENVIRONMENT_PREFIX: Final = "os.environ/"
_LONGEST_WORD: Final = 12  # letters; a shorter key of letters only is a word such as "ollama"
_PLACEHOLDERS: Final = frozenset({"fake-key", "no-key", "not-needed", "not-used"})
_SCHEME: Final = re.compile(r"(?:basic|bearer|token) +", re.IGNORECASE)


class RouterConfigError(ValueError):
    """No Router can be made from the file, the model name or the address of the user.

    It is raised before any call. Its text has a line for each problem: what is wrong, where, and
    what to do. It contains no key.

    Attributes:
        problems: the lines.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def references(value: object, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Yield the place and the ``NAME`` of each ``os.environ/NAME`` in a value."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield from references(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from references(inner, (*place, index))
    elif (variable := variable_of(value)) is not None and not (place and _is_pointer(place[-1])):
        yield place, variable


def resolved(value: object, environment: Mapping[str, str]) -> Any:
    """Return a copy of a value in which each ``os.environ/NAME`` is replaced by the variable.

    A variable that is not set becomes ``None``. The texts ``true`` and ``false`` become booleans,
    as in litellm.
    """
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        return {
            name: inner if _is_pointer(name) else resolved(inner, environment)
            for name, inner in mapping.items()
        }
    if isinstance(value, list):
        return [resolved(inner, environment) for inner in cast("list[object]", value)]
    name = variable_of(value)
    if name is None:
        return value
    text = environment.get(name)
    return {"true": True, "false": False}.get((text or "").strip().lower(), text)


def variable_of(value: object) -> str | None:
    """Return the ``NAME`` of ``os.environ/NAME``; None for other values.

    ``os.environ/oidc/…`` is a token that litellm fetches itself, so the result is None.
    """
    if not isinstance(value, str) or not value.startswith(ENVIRONMENT_PREFIX):
        return None
    name = value.removeprefix(ENVIRONMENT_PREFIX)
    return None if name.startswith("oidc/") else name


def is_set(variable: str, environment: Mapping[str, str]) -> bool:
    """Return True if an environment variable has a value other than spaces."""
    return bool(environment.get(variable, "").strip())


def _is_pointer(name: object) -> bool:
    # Such a parameter names the place of a secret. litellm itself reads the secret when needed.
    return isinstance(name, str) and name.endswith("_ref")


def secrets_in(value: object, name: str = "") -> Iterator[str]:
    """Yield every text in a value that is a key, judged by its name, and the secrets in URLs."""
    if isinstance(value, dict):
        for key, inner in cast("dict[object, object]", value).items():
            yield from secrets_in(inner, str(key))
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from secrets_in(inner, name)
    elif isinstance(value, str) and not value.startswith(ENVIRONMENT_PREFIX):
        found = list(_secrets_of_url(value)) if "://" in value else []
        if is_secret_name(name):
            found += [value, _SCHEME.sub("", value, count=1)]
        yield from (secret for secret in found if _is_worth_hiding(secret))


def _secrets_of_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        if parts.password:
            yield parts.password
        yield from (value for name, value in parse_qsl(parts.query) if is_secret_name(name))
    except ValueError:  # it only looks like a URL
        return


def not_a_text(what: str, value: bool | float) -> str:
    """Return the message that a value must be a text. It does not quote the value, maybe a key."""
    kind = "true or false" if isinstance(value, bool) else "a number"
    return f'{what} must be a text, but YAML reads {kind}: put it in quotes, as in "on" or "123"'


def _is_worth_hiding(text: str) -> bool:
    """Return False for short texts, words and placeholders: ordinary texts contain them.

    The Redactor still removes such a word where a text presents it as a key (``Bearer ollama``).
    """
    is_word = text.isascii() and text.isalpha() and len(text) <= _LONGEST_WORD
    return len(text) >= SHORTEST_SECRET and not is_word and text.lower() not in _PLACEHOLDERS


def nearest(name: str, names: Iterable[str], *, likeness: float = 0.75) -> str | None:
    """Return the name in ``names`` that is most similar to a misspelt one; None if none is similar.

    ``likeness`` is the least similarity, from 0 to 1 (equal).
    """
    found = difflib.get_close_matches(name, sorted(names), n=1, cutoff=likeness)
    return found[0] if found else None


def dotted(place: Place) -> str:
    """Convert ``("model_list", 0, "model_name")`` to ``".model_list[0].model_name"``."""
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in place)
