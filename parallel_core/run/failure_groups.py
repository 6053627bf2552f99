"""Failures of a run, grouped by kind and status, each with one message that is safe to show.

The provider's message explains a failure best, but may quote the prompt or a part of the key. It
is shown only if it contains nothing of the request.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from parallel_core.config import REDACTED, Redactor
from parallel_core.errors import NotSentError
from parallel_core.failures import FailureKind, classify_evidence, describe, evidence_of
from parallel_core.files import LineFailure
from parallel_core.types import RouterParallelRequest, RouterParallelResult

from .records import FailureGroup

_MOST_IDS: Final = 3
_LONGEST_WORDS: Final = 120  # characters
_SHORTEST_QUOTE: Final = 12  # characters; shorter runs may be in both texts by chance
_MOST_AHEAD: Final = 10_000  # failures added but not counted: more than can wait for the disk
_SHORTEST_NAME: Final = 3  # characters of a word that is searched for by itself

_TOKEN = re.compile(r"\w+")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_IN_QUOTES = re.compile(
    r"""'(.+?)'|"(.+?)"|`(.+?)`|“(.+?)”|\u2018(.+?)\u2019|«(.+?)»|\[(.+?)\]|\((.+?)\)"""
)
# Words that a provider uses regardless of the request.
_USUAL = frozenset(
    _TOKEN.findall("""
    access account again allowed also been being billing cannot check content context contains
    could credit current deployed deployment does down error exceed exceeded exceeds exist expected
    failed field find fits following format found from generate have here however http https input
    into internal invalid json later length less limit limits long longer many maximum message
    messages might minute missing model models more must need only organization output overloaded
    parameter part per permission plan please policy prompt property provided quota range rate
    reached reduce refused request requested requests required response resulted retry schema second
    seconds server service should slow such supported system temporarily than that their there they
    this time token tokens tool tools trying type unavailable unexpected unknown unsupported upgrade
    used user using valid value values visit wait were when with would your
    """)
)
# Parts of a key: sk-abc***wxyz, sk-abc...wxyz.
_MASKED = re.compile(r"""[^\s"'<>,;]*[*•]{2,}[^\s"'<>,;]*|[\w\-]+(?:\.{3}|…)[\w\-]+""")


class FailureGroups:
    """Counts failures by kind and status, which bounds its memory.

    Args:
        redactor: hides keys in the messages.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._groups: dict[tuple[FailureKind, int | None], FailureGroup] = {}
        self._added = deque[FailureGroup]()  # failures that are in no group yet, one each
        self._grouped = 0
        self._known = set[tuple[FailureKind, int | None]]()

    def add(
        self, custom_id: str, failure: LineFailure, result: RouterParallelResult | None = None
    ) -> str | None:
        """Count a failure. Return its message if it is the first of its kind and status.

        Args:
            custom_id: id of the request.
            failure: the failure as written to its line.
            result: the result of the call; None if the message of ``failure`` is safe because it
                quotes neither the provider nor the request.
        """
        key = failure.kind, failure.status_code
        message: str | None = None
        if key not in self._known:
            self._known.add(key)
            exception = None if result is None else result.exception
            if result is None or exception is None:
                message = self._redactor.redact(failure.message)
            else:
                message = safe_message(exception, result.request, self._redactor)
        self._added.append(FailureGroup(failure.kind, 1, message or "", [custom_id], key[1]))
        if len(self._added) > _MOST_AHEAD:
            self._count_the_oldest()
        return message

    def first(self, number: int) -> list[FailureGroup]:
        """Return the groups of the first ``number`` failures, the largest group first.

        ``number`` is the number of failures on disk, which may be less than the number added. It
        must not decrease between calls.
        """
        while self._added and self._grouped < number:
            self._count_the_oldest()
        return sorted(self._groups.values(), key=lambda group: -group.count)

    def all(self) -> list[FailureGroup]:
        """Return the groups of all failures, the largest group first."""
        return self.first(self._grouped + len(self._added))

    def _count_the_oldest(self) -> None:
        self._grouped += 1
        one = self._added.popleft()
        key = one.kind, one.status_code
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = one
            return
        ids = group.custom_ids
        self._groups[key] = msgspec.structs.replace(
            group,
            count=group.count + 1,
            custom_ids=ids if len(ids) >= _MOST_IDS else [*ids, *one.custom_ids],
        )


def safe_message(exception: Exception, request: RouterParallelRequest, redactor: Redactor) -> str:
    """Describe in one line why a call failed, without keys and without contents of its request.

    The line has the status and the provider's message, shortened. If that message is not safe or
    missing, it is the reason that :func:`parallel_core.classify_failure` gives.
    """
    evidence = evidence_of(exception)
    if evidence.missing_package is not None:
        return evidence.missing_package.message
    failure = classify_evidence(evidence)
    status, words = failure.status_code, evidence.message
    if status is not None and words:
        words = " ".join(_MASKED.sub(REDACTED, redactor.redact(words)).split())
        shortened = words if len(words) <= _LONGEST_WORDS else f"{words[: _LONGEST_WORDS - 1]}…"
        named = " ".join(map(str, filter(None, (status, evidence.code))))
        message = redactor.redact(f"{named}: {shortened}")
        # Check twice the length: a quotation may begin just before the cut.
        if not redactor.shows_a_part(message) and not _quotes(words[: 2 * _LONGEST_WORDS], request):
            return message
    if failure.kind == "unknown" and status is None:
        return f"{failure.reason} ({type(exception).__name__})"
    return redactor.redact(failure.reason)


def blocked_message(model: str, error: BaseException, redactor: Redactor) -> str:
    """Describe in one line why requests of a model do not get through, and their destination."""
    more = ""
    if isinstance(error, NotSentError):
        more = f"; {error.too_long}" if error.too_long else ""
        error = error.__cause__ or error
    return redactor.redact(describe(model, error) + more)


def _quotes(said: str, request: RouterParallelRequest) -> bool:
    """Return True if a text may quote the request; in doubt, return True.

    A quotation is a whole text of the request, twelve characters in a row, a part in quotes, or a
    word that is unusual in such texts: a number, a name, a word in another script.
    """
    said = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), said)
    try:
        texts = [_words(text) for text in _texts(request)]
        names = [_words(name) for name in _names_in(list((request.kwargs or {}).values()))]
    except RecursionError:
        return True
    words = _words(said)
    if any(text.strip() and text in words for text in texts):
        return True
    contents = "\n".join(texts)
    with_names = "\n".join((contents, *names))
    return (
        any(run in contents for run in _runs(words, _SHORTEST_QUOTE))
        or any(_is_cut_from(part, with_names) for part in _quoted_in(said))
        or any(
            _part_is_in(word, contents)
            for word in _TOKEN.findall(said.lower())
            if _is_unusual(word)
        )
    )


def _runs(text: str, length: int) -> Iterator[str]:
    return (text[start : start + length] for start in range(len(text) - length + 1))


def _quoted_in(said: str) -> Iterator[str]:
    for found in _IN_QUOTES.finditer(said):
        yield from (_words(part) for part in found.groups("") if _TOKEN.search(part))


def _is_cut_from(part: str, contents: str) -> bool:
    """Return True if the request contains a quoted part, which may begin or end inside a word."""
    inner = part.strip()
    return (part if len(inner) <= _SHORTEST_NAME else inner) in contents


def _words(text: str) -> str:
    """Return the lowercase words of a text, with a space on both sides of each."""
    return f" {' '.join(_TOKEN.findall(text.lower()))} "


def _is_unusual(word: str) -> bool:
    if word.isascii() and word.isalpha():
        return len(word) > _SHORTEST_NAME and word not in _USUAL
    return len(word) >= _SHORTEST_NAME


def _part_is_in(word: str, contents: str) -> bool:
    """Return True if the request contains a word.

    In scripts without spaces, a "word" is a whole sentence; there, a few of its letters suffice.
    """
    if word.isascii():
        return f" {word} " in contents
    return any(run in contents for run in _runs(word, _SHORTEST_NAME))


def _texts(request: RouterParallelRequest) -> Iterator[str]:
    """Yield every text of a request except its model, roles, types and member names."""
    yield from _texts_in(request.messages)
    yield from _texts_in(list((request.kwargs or {}).values()))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, member in cast("Mapping[object, Any]", value).items():
            if name not in ("role", "type"):
                yield from _texts_in(member)
    elif isinstance(value, list | tuple):
        for member in cast("list[Any]", value):
            yield from _texts_in(member)


def _names_in(value: Any) -> Iterator[str]:
    """Yield the member names in a value: those of a schema are a part of the prompt."""
    if isinstance(value, Mapping):
        for name, member in cast("Mapping[object, Any]", value).items():
            if isinstance(name, str):
                yield name
            yield from _names_in(member)
    elif isinstance(value, list | tuple):
        for member in cast("list[Any]", value):
            yield from _names_in(member)
