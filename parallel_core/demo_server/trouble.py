"""Failures that the demo server makes on demand: their kinds, the affected requests, and times."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias, cast, get_args

RatedFault: TypeAlias = Literal[
    "rate_limited", "server_error", "hang", "reset", "truncated", "invalid_json"
]
Refusal: TypeAlias = Literal[
    "rate_limited",
    "gemini_quota",
    "overloaded",
    "bad_gateway",
    "unavailable",
    "bad_key",
    "forbidden",
    "unknown_model",
    "quota",
    "no_credit",
    "request_too_large",
    "context_length",
    "content_refused",
]
OddAnswer: TypeAlias = Literal["empty", "no_text", "cut", "filtered"]
TroubleKind: TypeAlias = Literal[RatedFault, Refusal, OddAnswer, "away"]
"""Name of a kind of trouble that the demo server makes."""

RATED_FAULTS: Final[tuple[RatedFault, ...]] = get_args(RatedFault)
"""Faults that the settings give a rate."""
REFUSALS: Final[tuple[Refusal, ...]] = get_args(Refusal)
"""Errors that are answered at once; no model has worked on the request."""
ODD_ANSWERS: Final[tuple[OddAnswer, ...]] = get_args(OddAnswer)
"""Answers with status 200 that are billed, but are not what was requested."""
TROUBLE_KINDS: Final[tuple[TroubleKind, ...]] = tuple(
    dict.fromkeys((*REFUSALS, *RATED_FAULTS, *ODD_ANSWERS, "away"))
)
"""Every kind of trouble. A request may ask for each of them except ``away``."""
WITH_RETRY_AFTER: Final[tuple[TroubleKind, ...]] = (
    "rate_limited",
    "gemini_quota",
    "overloaded",
    "bad_gateway",
    "unavailable",
)
"""Kinds that may ask the client to wait."""

_INTEGERS: Final = ("after", "count")
_NUMBERS: Final = ("share", "seconds", "retry_after")


@dataclass(frozen=True)
class Trouble:
    """A failure that a demo server makes, for all requests or for those of a model or a key.

    Each Trouble counts the requests of its model and its key, when they have arrived in full. The
    same requests in the same order have the same trouble on every run.

    Attributes:
        kind: what happens to a request. The server answers at once with

            - ``rate_limited``: 429;
            - ``gemini_quota``: 429 in Gemini's form of a quota per minute, with the wait in the
              body;
            - ``overloaded``: 529 in Anthropic's form (``overloaded_error``);
            - ``bad_gateway``, ``unavailable``: an HTML page with 502 or 503;
            - ``bad_key``: 401;
            - ``forbidden``: 403;
            - ``unknown_model``: 404;
            - ``quota``: 429 with ``insufficient_quota``;
            - ``no_credit``: 400 in Anthropic's form, the credit balance is too low;
            - ``request_too_large``: 429, ``Limit 30000, Requested 36055``;
            - ``context_length``: 400 with ``context_length_exceeded``;
            - ``content_refused``: 400 with ``content_policy_violation``;

            after the latency of an answer comes

            - ``server_error``: 500;
            - ``reset``: a connection that is reset; in a stream, in the middle;
            - ``truncated``: half of the answer, and the end of the connection;
            - ``invalid_json``: a body (or a chunk) that is not JSON;
            - ``empty``: a whole answer with ``"choices": []``;
            - ``no_text``: no text, ``"finish_reason": "length"``: reasoning took all tokens;
            - ``cut``: half of the text, ``"finish_reason": "length"``;
            - ``filtered``: no text, ``"finish_reason": "content_filter"``;

            and

            - ``hang``: the request is never answered;
            - ``away``: the server goes away for ``seconds``. It cuts off everything in flight, and
              refuses connections until it is back. Requests of other models and keys are affected,
              too: there is one server.
        model: only requests of this model. None: of every model.
        key: only requests with this API key, sent as ``Authorization: Bearer …``. None: any.
        after: number of first requests that are not affected.
        count: most requests that are affected. None: no limit.
        share: share of the requests (above 0, to 1) that are affected; drawn with the seed.
        seconds: seconds from the first affected request to the end of the trouble. None: no end.
        retry_after: seconds that the answer asks the client to wait, in the header Retry-After
            (``gemini_quota``: in the body). None: it does not ask. Only with ``rate_limited``,
            ``gemini_quota``, ``overloaded``, ``bad_gateway`` and ``unavailable``.

    Raises:
        ValueError: a value is out of its range; the message has the accepted range.
    """

    kind: TroubleKind
    model: str | None = None
    key: str | None = None
    after: int = 0
    count: int | None = None
    share: float = 1.0
    seconds: float | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in TROUBLE_KINDS:
            raise ValueError(
                f"the kind of trouble must be one of {', '.join(TROUBLE_KINDS)}, not {self.kind!r}"
            )
        for name in ("model", "key"):
            value: object = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise self._wrong(name, "a text that is not empty", value)
        if not _is_integer(self.after) or self.after < 0:
            raise self._wrong("after", "an integer of at least 0", self.after)
        if self.count is not None and (not _is_integer(self.count) or self.count < 1):
            raise self._wrong("count", "an integer of at least 1", self.count)
        if not _is_number(self.share) or not 0 < self.share <= 1:
            raise self._wrong("share", "a number above 0 and at most 1", self.share)
        if self.seconds is not None and not (
            _is_number(self.seconds) and 0 < self.seconds < math.inf
        ):
            raise self._wrong("seconds", "a finite number above 0", self.seconds)
        if self.kind == "away" and self.seconds is None:
            raise ValueError("trouble 'away': give seconds, a finite number above 0")
        if self.retry_after is None:
            return
        if self.kind not in WITH_RETRY_AFTER:
            raise ValueError(
                f"trouble {self.kind!r}: only {', '.join(WITH_RETRY_AFTER)} take retry_after"
            )
        if not _is_number(self.retry_after) or not 0 <= self.retry_after < math.inf:
            raise self._wrong("retry_after", "a finite number of at least 0", self.retry_after)

    @staticmethod
    def parse(text: str) -> Trouble:
        """Parse ``KIND[,NAME=VALUE…]``, for instance ``rate_limited,share=0.03,retry_after=1``.

        Raises ``ValueError``, which quotes the text and has the accepted form.
        """
        kind, *options = text.split(",")
        values: dict[str, object] = {"kind": kind.strip()}
        for option in options:
            name, equals, value = option.partition("=")
            name = name.strip()
            if not equals or name not in _OPTIONS:
                raise ValueError(
                    f"{text!r}: write NAME=VALUE after the kind, separated by commas; the names "
                    f"are {', '.join(_OPTIONS)}"
                )
            values[name] = _parsed(name, value, text)
        try:
            return Trouble.from_json(values)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None

    @staticmethod
    def from_json(value: object) -> Trouble:
        """Read an object with the attributes' names. Raises ``ValueError``."""
        if not _is_object(value):
            raise ValueError(f"trouble must be an object, not {value!r}")
        values = cast("dict[str, Any]", value)
        known = ("kind", *_OPTIONS)
        if "kind" not in values or not values.keys() <= set(known):
            raise ValueError(f"trouble has a kind, and may have {', '.join(_OPTIONS)}")
        return Trouble(**values)

    @staticmethod
    def all_from_json(value: object) -> list[Trouble]:
        """Read ``{"trouble": [{"kind": …}, …]}``. Raises ``ValueError``."""
        entries = cast("dict[str, object]", value).get("trouble") if _is_object(value) else None
        if not isinstance(entries, list):
            raise ValueError('the body must be {"trouble": [{"kind": …}, …]}')
        return [Trouble.from_json(entry) for entry in cast("list[object]", entries)]

    def to_json(self) -> dict[str, Any]:
        """Return the Trouble as a dictionary for ``json.dumps``, without default values."""
        values = ((each, getattr(self, each.name)) for each in fields(self))
        return {each.name: value for each, value in values if value != each.default}

    def to_text(self) -> str:
        """Return the text for :meth:`parse`. Raises ``ValueError`` if a value has a comma."""
        values = self.to_json()
        kind = str(values.pop("kind"))
        for name, value in values.items():
            if "," in str(value):
                raise ValueError(f"trouble {kind!r}: {name} must not contain a comma: {value!r}")
        return ",".join([kind, *(f"{name}={value}" for name, value in values.items())])

    def fits(self, model: str, key: str | None) -> bool:
        """Return True if requests of this model and key are counted."""
        return self.model in (None, model) and self.key in (None, key)

    def _wrong(self, name: str, wanted: str, value: object) -> ValueError:
        return ValueError(f"trouble {self.kind!r}: {name} must be {wanted}, not {value!r}")


_OPTIONS: Final = tuple(each.name for each in fields(Trouble) if each.name != "kind")


def check_troubles(troubles: Iterable[object], models: Collection[str]) -> tuple[Trouble, ...]:
    """Return the troubles as a tuple.

    Raises ``ValueError`` if one is not a Trouble, or names a model that the server does not have.

    Args:
        models: the names of the server's models.
    """
    checked: list[Trouble] = []
    for number, trouble in enumerate(troubles):
        if not isinstance(trouble, Trouble):
            raise ValueError(f"trouble[{number}] must be a Trouble, not {trouble!r}")
        if trouble.model is not None and trouble.model not in models:
            raise ValueError(
                f"trouble[{number}] ({trouble.kind}): there is no model {trouble.model!r}; the "
                f"models are: {', '.join(models)}"
            )
        checked.append(trouble)
    return tuple(checked)


class TroubleSchedule:
    """Decides which trouble a request has: the first Trouble that is due.

    Args:
        now: returns the time in seconds, of any clock that does not go back.
    """

    def __init__(self, troubles: tuple[Trouble, ...], seed: int, now: Callable[[], float]) -> None:
        self._seed = seed
        self._now = now
        self._entries = [_Entry(trouble) for trouble in troubles]

    def next_for(self, model: str, key: str | None) -> Trouble | None:
        """Count a request, and return its trouble, or None."""
        found: Trouble | None = None
        for position, entry in enumerate(self._entries):
            trouble = entry.trouble
            if not trouble.fits(model, key):
                continue
            # Every fitting Trouble counts the request, so that they do not depend on each other.
            entry.requests += 1
            if found is None and self._is_due(entry, position):
                entry.hits += 1
                entry.began = self._now() if entry.began is None else entry.began
                found = trouble
        return found

    def restart(self) -> None:
        """Set all counts to 0."""
        self._entries = [_Entry(entry.trouble) for entry in self._entries]

    def _is_due(self, entry: _Entry, position: int) -> bool:
        trouble = entry.trouble
        if entry.requests <= trouble.after:
            return False
        if trouble.count is not None and entry.hits >= trouble.count:
            return False
        if trouble.kind == "away" and entry.hits:
            return False  # the server has already been away
        age = 0.0 if entry.began is None else self._now() - entry.began
        if trouble.seconds is not None and age >= trouble.seconds:
            return False
        draw = random.Random(f"{self._seed}:{trouble.kind}:{position}:{entry.requests}")
        return draw.random() < trouble.share


@dataclass
class _Entry:
    trouble: Trouble
    requests: int = 0
    hits: int = 0
    began: float | None = None


def _parsed(name: str, value: str, text: str) -> object:
    if name not in (*_INTEGERS, *_NUMBERS):
        return value
    try:
        return int(value) if name in _INTEGERS else float(value)
    except ValueError:
        wanted = "an integer" if name in _INTEGERS else "a number"
        raise ValueError(f"{text!r}: {name} must be {wanted}, not {value!r}") from None


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
