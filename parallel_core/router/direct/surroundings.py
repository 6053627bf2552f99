"""What litellm's requests depend on besides the arguments of a call."""

from __future__ import annotations

import copy
import os
import sys
import time
from operator import itemgetter
from typing import Any, Final, cast

_SIMPLE: Final = (str, int, float, bool, type(None))
_MOST_MEMBERS: Final = 16  # of a setting that is a list or a dict; longer ones are tables
# Credentials that litellm fetches end after a while. It renews them minutes before they do.
_SECONDS: Final = 60.0


def _is_setting(value: object) -> bool:
    if value.__class__ in (list, dict):
        return len(cast("list[Any]", value)) <= _MOST_MEMBERS
    return value.__class__ in _SIMPLE


class Surroundings:
    """The environment, the settings of litellm, and the time."""

    def __init__(self) -> None:
        self._litellm = vars(sys.modules["litellm"])
        # The dict behind os.environ, whose own comparison decodes everything.
        self._environment: Any = getattr(os.environ, "_data", os.environ)
        self._note()

    def _note(self) -> None:
        self._until = time.monotonic() + _SECONDS
        self._seen_environment = dict(self._environment)
        seen = {
            name: copy.copy(value)
            for name, value in self._litellm.copy().items()
            if not name.startswith("_") and _is_setting(value)
        }
        self._settings: Any = itemgetter(*seen)
        self._seen_settings = tuple(seen.values())

    def have_changed(self) -> bool:
        """Return True if requests may differ from those before, once for each change."""
        try:
            if (
                time.monotonic() < self._until
                and self._seen_environment == self._environment
                and self._seen_settings == self._settings(self._litellm)
            ):
                return False
        except KeyError:  # a setting is gone
            pass
        self._note()
        return True
