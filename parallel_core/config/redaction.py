"""Redact keys in texts of errors, logs and the terminal. Answers are not changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

from parallel_core.secret_names import SECRET_NAME_IN_A_URL, SHORTEST_SECRET

REDACTED = "[redacted]"

_NEVER = "(?!)"
_TAIL = 4  # characters of a key's end that providers show

# Matches a key with the text before it. The group "before" is kept. In sentences other names of
# secrets, such as "token: …" or "key: …", are ordinary words.
_KEYS = re.compile(
    rf"""
    (?P<before>
        \bBearer\s+
      | \bAuthorization["']?\s*[:=]\s*["']?(?:\w+\s+)?
      | \bapi[-_\ ]?key(?:\ provided)?["']?\s*[:=]\s*["']?
      | [?&]{SECRET_NAME_IN_A_URL}=
      | ://(?=[^\s/@]*@)
    )
    [^\s"'<>,;&@]+
  | (?<![A-Za-z0-9])
    (?: (?:sk|rk|xai|pplx|nvapi)[-_][A-Za-z0-9_*.\-]{{6,}}
      | (?:gsk|hf|ghp|gho|ghs|github_pat|glpat|r8|tvly)[-_][A-Za-z0-9_*\-]{{10,}}
      | AIza[A-Za-z0-9_\-]{{20,}}
      | (?:AKIA|ASIA)[A-Z0-9]{{12,}}
      | eyJ[A-Za-z0-9_\-]{{8,}}\.[A-Za-z0-9_.\-]+
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)


class Redactor:
    """Replaces keys in texts with ``[redacted]``.

    Text that is already redacted does not change. The repr shows no secret.

    Args:
        secrets: texts that must not be shown. Those of fewer than six characters are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        known |= {quote(secret, safe="", errors="surrogatepass") for secret in known}
        # A secret that is a part of the replacement would be replaced again and again.
        known = {secret for secret in known if secret not in REDACTED}
        self._known = sorted(known)
        longest_first = sorted(known, key=lambda secret: (-len(secret), secret))
        self._secrets = re.compile("|".join(map(re.escape, longest_first)) or _NEVER)

    def __repr__(self) -> str:
        return "<Redactor>"

    def redact(self, text: str) -> str:
        """Replace the secrets, and everything that looks like a key."""
        return _KEYS.sub(_without_key, self.redact_secrets(text))

    def redact_secrets(self, text: str) -> str:
        """Replace only the secrets."""
        return self._secrets.sub(REDACTED, text)

    def shows_a_part(self, text: str) -> bool:
        """Return True if a text has six characters of a secret in a row, or the end of a secret."""
        return any(
            any(
                secret[start : start + SHORTEST_SECRET] in text
                for start in range(len(secret) - SHORTEST_SECRET + 1)
            )
            or re.search(rf"(?<!\w){re.escape(secret[-_TAIL:])}(?!\w)", text) is not None
            for secret in self._known
        )

    def redact_all(self, value: Any) -> Any:
        """Redact every text in a JSON value. The names of members do not change."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, Mapping):
            members = cast("Mapping[object, Any]", value)
            return {name: self.redact_all(member) for name, member in members.items()}
        if isinstance(value, list | tuple):
            return [self.redact_all(member) for member in cast("Sequence[Any]", value)]
        return value


def _without_key(found: re.Match[str]) -> str:
    return (found["before"] or "") + REDACTED
