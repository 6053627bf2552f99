"""Takes keys out of texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

import msgspec

REDACTED = "[redacted]"

_SHORTEST_SECRET = 6  # characters: of shorter ones, half of the text would be taken out
_NEVER = "(?!)"

# A key and what is before it, which stays. What looks like a key is taken out in error texts only:
# an answer may well be about keys.
_KEYS = re.compile(
    r"""
    (?P<before>
        \bBearer\s+
      | \bAuthorization["']?\s*[:=]\s*["']?(?:\w+\s+)?
      | \bapi[-_\ ]?key(?:\ provided)?["']?\s*[:=]\s*["']?
      | [?&](?:api[-_]?key|key|token|access[-_]token|sig|signature)=
      | ://(?=[^\s/@]*@)
    )
    [^\s"'<>,;&@]+
  | (?<![A-Za-z0-9])
    (?: (?:sk|rk|xai|pplx|nvapi)[-_][A-Za-z0-9_*.\-]{6,}
      | (?:gsk|hf|ghp|gho|ghs|github_pat|glpat|r8|tvly)[-_][A-Za-z0-9_*\-]{10,}
      | AIza[A-Za-z0-9_\-]{20,}
      | (?:AKIA|ASIA)[A-Z0-9]{12,}
      | eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_.\-]+
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)


class Redactor:
    """Replaces keys in texts by ``[redacted]``.

    What is redacted already stays as it is. Its repr shows no secret.

    Args:
        secrets: texts that must not be seen anywhere, of at least six characters; shorter ones are
            left alone.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        known |= {quote(secret, safe="") for secret in known}
        # Not a part of the replacement, or it would be replaced again and again.
        known = {secret for secret in known if secret not in REDACTED}
        longest_first = sorted(known, key=lambda secret: (-len(secret), secret))
        self._secrets = re.compile("|".join(map(re.escape, longest_first)) or _NEVER)
        in_json = [re.escape(msgspec.json.encode(secret)[1:-1]) for secret in longest_first]
        self._secrets_in_json = re.compile(b"|".join(in_json) or _NEVER.encode())

    def __repr__(self) -> str:
        return "<Redactor>"

    def redact(self, text: str) -> str:
        """Without the secrets, and without whatever looks like a key: for texts of errors."""
        return _KEYS.sub(_without_key, self.redact_secrets(text))

    def redact_secrets(self, text: str) -> str:
        """Without the secrets: for answers of models."""
        return self._secrets.sub(REDACTED, text)

    def has_secret(self, document: bytes) -> bool:
        """Whether there is a secret in a JSON document, as msgspec writes it."""
        return self._secrets_in_json.search(document) is not None


def _without_key(found: re.Match[str]) -> str:
    return (found["before"] or "") + REDACTED


def in_all_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with all of its texts changed, the names of its members too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        members = cast("Mapping[object, Any]", value)
        return {
            in_all_texts(name, change): in_all_texts(member, change)
            for name, member in members.items()
        }
    if isinstance(value, list | tuple):
        return [in_all_texts(member, change) for member in cast("Sequence[Any]", value)]
    return value
