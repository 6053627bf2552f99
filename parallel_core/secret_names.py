"""Names of secrets: of parameters, headers, columns, environment variables and parts of URLs."""

from __future__ import annotations

import re
from typing import Final

SHORTEST_SECRET: Final = 6  # characters; shorter texts are parts of ordinary words

# These words make a name that of a secret wherever they stand in it.
_ANYWHERE: Final = "api[_-]?key|access[_-]?key|secret|password|passphrase|credential|authorization"
# These do so at its end, the shorter ones only as a whole word.
_AT_ITS_END: Final = r"token|cookie|(?<![^\W_])(?:auth|key|sig|signature)"

_SECRET_NAME: Final = re.compile(rf"{_ANYWHERE}|(?:{_AT_ITS_END})$", re.IGNORECASE)

SECRET_NAME_IN_A_URL: Final = rf"[\w.\-]{{0,64}}(?:(?:{_ANYWHERE})[\w.\-]{{0,64}}|{_AT_ITS_END})"
"""A pattern for the name of a secret in the query of a URL. It ignores case."""


def is_secret_name(name: str) -> bool:
    """Return True if this is the name of a key, a token or a password."""
    return _SECRET_NAME.search(name) is not None
