"""Recognise calls that failed because a package is not installed.

litellm reports them as connection errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MISSING_DEPENDENCY = "missing_dependency"

_NO_MODULE = re.compile(r"(?:No module named|cannot import name '\w+' from) '([\w.]+)'")
_PIP_INSTALL = re.compile(r"pip install [\"']?([A-Za-z0-9][\w.-]*[A-Za-z0-9])")
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^]]*])?\s*([^;]*)")


class MissingPackage(NamedTuple):
    """A package that a call needs and that is not installed.

    Attributes:
        requirement: requirement that pip must install; empty if it is not known.
        reason: the text of the ``ImportError``.
    """

    requirement: str
    reason: str

    @property
    def kind(self) -> str:
        """Name under which these failures are counted."""
        return f"{MISSING_DEPENDENCY} ({self._command})" if self.requirement else MISSING_DEPENDENCY

    @property
    def message(self) -> str:
        """Message that says what is missing and how to install it."""
        if not self.requirement:
            return f"this request needs a package that is not installed: {self.reason}"
        name = _parts_of(self.requirement)[0]
        return f"this request needs the package {name!r} ({self.reason}): {self._command}"

    @property
    def _command(self) -> str:
        quote = '"' if _parts_of(self.requirement)[1] else ""
        return f"pip install {quote}{self.requirement}{quote}"


def missing_package(message: str, causes: Iterable[BaseException]) -> MissingPackage | None:
    """Return the package that a failed call lacked; None if it failed for another reason.

    Args:
        message: message of the call's exception. An ``ImportError`` that the message does not quote
            is ignored: code that works without an optional package leaves one in the context of
            later failures.
        causes: the exception, its cause, and so on.
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
    """Return the requirement to install for a module, with litellm's version range if it has one.

    The result is empty if nothing is known.
    """
    import importlib.metadata  # not at the top: it is slow, and calls rarely get here
    import importlib.util

    known: dict[str, str] = {}
    for requirement in importlib.metadata.requires("litellm") or ():
        name, version = _parts_of(requirement)
        known.setdefault(_normal(name), f"{name}{version}")
    parts = module.split(".")
    if parts[0] == "litellm":
        return ""  # litellm is installed and lacks a package, which an earlier error names
    for length in range(len(parts), 0, -1):
        wanted = known.get(_normal("-".join(parts[:length])))
        if wanted is not None:
            return wanted
    # If the name has dots, its first part was found. Then another version of the package is
    # installed, or the first part has no file (such as "google"): a folder shared by many packages.
    found = importlib.util.find_spec(parts[0]) if len(parts) > 1 else None
    return "-".join(parts[:2]) if found is not None and found.origin is None else parts[0]


def _parts_of(requirement: str) -> tuple[str, str]:
    """Split a requirement into its name and its version."""
    found = _REQUIREMENT.match(requirement)
    return (requirement, "") if found is None else (found[1], found[2].strip())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
