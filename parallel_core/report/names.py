"""Names from files, numbered and fit to be shown."""

from __future__ import annotations

_LONGEST_NAME = 120  # characters
_NO_NAME = "(none)"


class Names:
    """Numbers of names, in the order in which they appear.

    Files are not trusted: unprintable characters are replaced, and all names beyond the limit share
    one name.

    Args:
        most: maximum number of names.
        others: name for all further ones.
    """

    def __init__(self, most: int, others: str) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._most = most
        self._others = others

    def number(self, name: str) -> int:
        """Return the number of a name."""
        number = self._numbers.get(name)
        if number is None:
            full = len(self.names) >= self._most
            shown = self._others if full else shown_name(name) or _NO_NAME
            if shown not in self._numbers:
                self._numbers[shown] = len(self.names)
                self.names.append(shown)
            number = self._numbers[shown]
            if not full:
                self._numbers[name] = number
        return number


def shown_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Shorten a name, and replace control characters, which a terminal would obey."""
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"
