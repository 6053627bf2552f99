"""Calls that fail because a package is not installed. litellm reports them as connection errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MISSING_DEPENDENCY = "missing_dependency"

_NO_MODULE = re.compile(r"(?:No module named|cannot import name '\w+' from) '([\w.]+)'")
_PIP_INSTALL = re.compile(r"pip install [\"']?([A-Za-z0-9][\w.-]*[A-Za-z0-9])")
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^]]*])?\s*([^;]*)")


class MissingPackage(NamedTuple):
    """A package without which a call fails.

    Attributes:
        requirement: what pip has to install; empty where that is not known.
        reason: the text of the ``ImportError``.
    """

    requirement: str
    reason: str

    @property
    def kind(self) -> str:
        """What failures of this kind are counted as."""
        return f"{MISSING_DEPENDENCY} ({self._command})" if self.requirement else MISSING_DEPENDENCY

    @property
    def message(self) -> str:
        """What was wrong, and what to do."""
        if not self.requirement:
            return f"this request needs a package that is not installed: {self.reason}"
        name = _parts_of(self.requirement)[0]
        return f"this request needs the package {name!r} ({self.reason}): {self._command}"

    @property
    def _command(self) -> str:
        quote = '"' if _parts_of(self.requirement)[1] else ""
        return f"pip install {quote}{self.requirement}{quote}"


def missing_package(message: str, causes: Iterable[BaseException]) -> MissingPackage | None:
    """Return the package that a failed call has missed; None if it failed for another reason.

    Args:
        message: of the exception of the call. An ``ImportError`` that the message does not quote
            is ignored: code that works without an optional package leaves one in the context of
            later failures.
        causes: the exception, what it was raised from, and so on.
    """
    errors = [error for error in causes if isinstance(error, ImportError)]
    quoted = [error.msg for error in errors if error.msg and error.msg in message]
    named = _NO_MODULE.search(message)
    if not quoted and named is None:
        return None
    reason = quoted[0] if quoted or named is None else named[0]
    advised = _PIP_INSTALL.search(reason)
    if advised is not None:
        return MissingPackage(advised[1], reason)
    modules = [error.name for error in errors if error.name]
    if named is not None:
        modules.append(named[1])
    return MissingPackage(_requirement_of(modules[-1]) if modules else "", reason)


def _requirement_of(module: str) -> str:
    """What pip has to install for a module: as litellm requires it, if it names it."""
    import importlib.metadata  # not at the top: it takes long, and hardly any call gets here
    import importlib.util

    known: dict[str, str] = {}
    for requirement in importlib.metadata.requires("litellm") or ():
        name, version = _parts_of(requirement)
        known.setdefault(_normal(name), f"{name}{version}")
    parts = module.split(".")
    if parts[0] == "litellm":
        return ""  # it is there, and lacks something: an earlier error says what
    for length in range(len(parts), 0, -1):
        wanted = known.get(_normal("-".join(parts[:length])))
        if wanted is not None:
            return wanted
    # Where the name has dots, its first part was found. It is another version of the package, or,
    # where it has no file of its own, as "google", only a folder that many packages share.
    found = importlib.util.find_spec(parts[0]) if len(parts) > 1 else None
    return "-".join(parts[:2]) if found is not None and found.origin is None else parts[0]


def _parts_of(requirement: str) -> tuple[str, str]:
    """The name and the version of a requirement."""
    found = _REQUIREMENT.match(requirement)
    return (requirement, "") if found is None else (found[1], found[2].strip())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
