"""The table that assigns a kind of failure to the evidence.

The rows are tried from top to bottom, and the first that matches decides. Each row says whose fault
the failure is, and everything else follows from that: a temporary failure is retried, a fault of
the request fails at once, and a failure of all requests of a model stops them.
"""

from __future__ import annotations

import errno
import re
import typing
from collections.abc import Callable, Collection
from typing import Literal, TypeAlias, cast

import msgspec

from parallel_core.errors import (
    BatchAbortedError,
    BatchTimeoutError,
    BudgetExceededError,
    CallCancelledError,
    EmptyResponseError,
    InvalidRequestError,
    NoCompletionError,
    NotSentError,
    RequestTimeoutError,
    StoppedError,
    StreamInterruptedError,
    StreamStalledError,
    text_of,
)

from .evidence import Evidence, class_names, evidence_of
from .requested_waits import requested_wait

FailureKind: TypeAlias = Literal[
    "overloaded",
    "cooling_down",
    "account",
    "request",
    "unreachable",
    "local",
    "timeout",
    "answer",
    "unknown",
]
"""Kind of a failure: it decides what a batch does about it."""
KINDS: tuple[FailureKind, ...] = typing.get_args(FailureKind)
"""Every kind of failure."""

MAY_PASS: frozenset[FailureKind] = frozenset(
    ("overloaded", "cooling_down", "unreachable", "local", "timeout")
)
"""Kinds that may be temporary: the next attempt may succeed."""

FINAL: frozenset[FailureKind] = frozenset(("request",))
"""Kinds that occur again, however often the request is sent."""

NOT_FINAL: frozenset[FailureKind] = frozenset(KINDS) - FINAL
"""Kinds that a later run can send again: by then a key or a bug may be fixed."""


def checked_kinds(name: str, value: object) -> frozenset[FailureKind]:
    """Return the kinds of failures that an option names.

    Args:
        name: name of the option.
        value: True for all kinds that are not final, False for none, or a collection of kinds.

    Raises:
        TypeError: ``value`` has another type.
        ValueError: ``value`` has an unknown kind.
    """
    if isinstance(value, bool):
        return NOT_FINAL if value else frozenset()
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(
            f"{name} must be True, False or a collection of kinds of failures, not "
            f"{type(value).__qualname__}"
        )
    kinds = cast("Collection[FailureKind]", value)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(
            f"{name}: there is no kind of failure {', '.join(map(repr, unknown))}; the kinds are "
            f"{', '.join(KINDS)}"
        )
    return frozenset(kinds)


class Failure(msgspec.Struct, frozen=True):
    """Meaning of an exception that a call raised.

    Attributes:
        kind: whose fault it is.

            - ``overloaded``: the provider is overloaded or down; this is temporary.
            - ``cooling_down``: all deployments of the model pause in the Router; nothing was sent.
            - ``account``: the key, the credit or the model's name is wrong; every request of this
              model fails in the same way.
            - ``request``: this request is wrong, too large or refused; others are not affected.
            - ``unreachable``: no connection to the server, or it was lost before any answer.
            - ``local``: this machine is out of files, memory or ports.
            - ``timeout``: the call took too long; it may be billed all the same.
            - ``answer``: an answer arrived that is incomplete or invalid.
            - ``unknown``: anything else: a plain 500, a bug, a missing package.
        reason: one sentence without contents of the request and without keys.
        retry_after: seconds that the provider or the Router asks to wait; None if not given.
        sent: True if the provider may bill the request, False if not; None if unknown.
        status_code: the HTTP status of the provider's answer; None if there was none.
    """

    kind: FailureKind
    reason: str
    retry_after: float | None = None
    sent: bool | None = None
    status_code: int | None = None

    @property
    def may_pass(self) -> bool:
        """True if the same request may succeed later."""
        return self.kind in MAY_PASS


def classify(exception: BaseException) -> Failure:
    """Classify an exception that a call raised.

    Use the causes, the status, the body and the headers of the last attempt, underneath litellm's
    wrappers. Import neither litellm nor openai.

    Args:
        exception: raised by a call, or the ``exception`` of a result.
    """
    if isinstance(exception, NotSentError) and exception.__cause__ is not None:
        return msgspec.structs.replace(classify(exception.__cause__), sent=False)
    return classify_evidence(evidence_of(exception))


def classify_evidence(evidence: Evidence) -> Failure:
    """Classify an exception whose facts have been collected already."""
    row = next(row for row in _TABLE if row.fits(evidence))
    if row.kind == "cooling_down" and len(evidence.chain) > 1:
        earlier = classify(evidence.chain[1])
        if earlier.kind == "account":
            return earlier  # the Router only reports a cooldown; this is its cause
    if row.kind not in MAY_PASS and _fallback_may_pass(evidence):
        return Failure("overloaded", "the model's fallback is overloaded or down", None, row.sent)
    status = evidence.answer_status
    reason = row.reason + _named(evidence, status)
    # litellm raises this when a stream fails after its first text.
    sent = None if "MidStreamFallbackError" in evidence.names else row.sent
    return Failure(row.kind, reason, requested_wait(evidence), sent, status)


class _Row(msgspec.Struct, frozen=True):
    kind: FailureKind
    sent: bool | None
    reason: str
    fits: Callable[[Evidence], bool]


def _fallback_may_pass(evidence: Evidence) -> bool:
    """Return True if the model's fallback failed as well, with a failure that may be temporary.

    The Router raises the failure of the model and reports the fallback only in the message.
    """
    if type(evidence.exception).__module__ != "litellm.exceptions":
        return False
    return _FALLBACK_MAY_PASS.search(text_of(evidence.exception)) is not None


def _named(evidence: Evidence, status: int | None) -> str:
    """Return the provider's status and code in parentheses, or an empty string."""
    words = [str(word) for word in (status, evidence.code) if word is not None]
    return f" ({' '.join(words)})" if words else ""


# --- predicates ---


def _is(*kinds: type[BaseException]) -> Callable[[Evidence], bool]:
    return lambda evidence: isinstance(evidence.exception, kinds)


CLASS_NAMES: set[str] = set()
"""Class names that the rows of the table look for."""


def _named_class(*names: str) -> Callable[[Evidence], bool]:
    wanted = frozenset(names)
    CLASS_NAMES.update(wanted)
    return lambda evidence: not wanted.isdisjoint(evidence.names)


def _status_in(*statuses: int) -> Callable[[Evidence], bool]:
    wanted = frozenset(statuses)
    return lambda evidence: evidence.status in wanted


def _says(*phrases: str) -> Callable[[Evidence], bool]:
    """Return a condition that searches the provider's message and codes for phrases."""
    pattern = re.compile("|".join(phrases))
    return lambda evidence: (
        pattern.search(evidence.text) is not None
        or any(pattern.search(code) for code in evidence.codes)
    )


def _all(*conditions: Callable[[Evidence], bool]) -> Callable[[Evidence], bool]:
    return lambda evidence: all(condition(evidence) for condition in conditions)


def _any(*conditions: Callable[[Evidence], bool]) -> Callable[[Evidence], bool]:
    return lambda evidence: any(condition(evidence) for condition in conditions)


def _no_answer(evidence: Evidence) -> bool:
    return evidence.answer_status is None


def _out_of_resources(evidence: Evidence) -> bool:
    return evidence.errno_in(_LOCAL_ERRNOS) or "MemoryError" in evidence.names


def _asks_for_more_than_the_limit(evidence: Evidence) -> bool:
    """Return True if the request alone exceeds a limit per minute.

    Example: ``Limit 30000, Requested 36055``.
    """
    found = _LIMIT_AND_REQUESTED.search(evidence.text)
    if found is None:
        return "request too large" in evidence.text
    limit, requested = (int(found[name].replace(",", "")) for name in ("limit", "requested"))
    return requested > limit


def _has_retry_info(evidence: Evidence) -> bool:
    return any("retryDelay" in detail for detail in evidence.details)


def _lost_connection(evidence: Evidence) -> bool:
    """Return True if a cause is a connection error.

    litellm's own class is not enough, because litellm uses it for any error.
    """
    wanted = frozenset(_CONNECTION_CLASSES)
    return any(not wanted.isdisjoint(class_names(error)) for error in evidence.real_causes)


def _claims_a_lost_connection(evidence: Evidence) -> bool:
    wanted = frozenset(_CONNECTION_CLASSES)
    return not evidence.real_causes and not wanted.isdisjoint(evidence.names)


def _status_between(low: int, high: int) -> Callable[[Evidence], bool]:
    return lambda evidence: evidence.status is not None and low <= evidence.status < high


_LIMIT_AND_REQUESTED = re.compile(
    r"limit:? (?P<limit>\d[\d,]*).{0,40}?requested:? (?P<requested>\d[\d,]*)"
)
_LOCAL_ERRNOS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
)
_CONNECT_CLASSES = (
    "ConnectError",
    "ConnectTimeout",
    "ConnectionTimeoutError",
    "ClientConnectorError",
    "ConnectionRefusedError",
    "gaierror",
    "SSLError",
    "UnsupportedProtocol",
)
_RESET_CLASSES = (
    "ServerDisconnectedError",
    "ClientOSError",
    "ConnectionResetError",
    "BrokenPipeError",
    "ConnectionAbortedError",
    "RemoteProtocolError",
    "ReadError",
    "WriteError",
    "CloseError",
)
_TIMEOUT_CLASSES = ("Timeout", "TimeoutError", "TimeoutException", "APITimeoutError")
_CONNECTION_CLASSES = ("APIConnectionError", "ClientError", "ConnectionError", "TransportError")
_COOLDOWN_CLASSES = ("RouterRateLimitError", "RouterRateLimitErrorBasic")
_FALLBACK_MAY_PASS = re.compile(
    r"\n\nLiteLLM: model group .*Fallback to .{1,200}? also failed: litellm\.(?:\w+\.)*"
    r"(?:RateLimitError|ServiceUnavailableError|BadGatewayError|APIConnectionError"
    r"|RouterRateLimitError)\b(?!.*(?:insufficient_quota|current quota))",
    re.DOTALL,
)
_NO_CREDIT = _says(
    "insufficient_quota",
    "exceeded your current quota, please check your plan",
    "credit balance is too low",
    # Not the word alone: messages about a limit per minute end with an address of a billing page.
    r"\bbilling_(?:hard_limit|not_active|disabled|error)",
    r"\bbilling (?:details|hard limit|account|to be enabled|is not enabled)",
    r"\benable billing\b",
    r"\baccount \S+ is suspended\b",
    "insufficient (?:credits?|balance|funds)",
    "payment required",
    "out of credits?",
    "budget has been exceeded",
)
_QUOTA_OF_A_DAY = _says(
    r"\blimit: 0\b",
    r"per[ _-]?day",
    r"requests? per month",
    r"daily (?:limit|quota)",
    r"\b[rt]pd\b",
)
_WRONG_KEY = _says(
    "api key not valid", "api_key_invalid", "invalid[_ ]api[_ ]key", "incorrect api key"
)
_REFUSED_CONTENT = _says("moderation", "flagged", "content[_ ]policy", "content[_ ]filter")
_OVERLOADED_CODE = _says(r"\boverloaded(?:_error)?\b", "engine_overloaded", "resource_exhausted")


_TABLE: tuple[_Row, ...] = (
    # Errors of this package.
    _Row("request", False, "the request is invalid", _is(InvalidRequestError)),
    _Row("unknown", False, "the request was not sent", _is(NotSentError)),
    _Row("unknown", None, "the budget is used up", _is(BudgetExceededError)),
    _Row("unknown", None, "the batch ended first", _is(BatchTimeoutError, StoppedError)),
    _Row("unknown", None, "the batch was shut down", _is(BatchAbortedError)),
    _Row("unknown", None, "the call was cancelled by its own code", _is(CallCancelledError)),
    _Row("timeout", True, "the request took longer than its timeout", _is(RequestTimeoutError)),
    _Row("timeout", True, "the stream stalled", _is(StreamStalledError)),
    _Row("answer", True, "the answer has no choices", _is(EmptyResponseError)),
    _Row("answer", True, "the answer is not a chat completion", _is(NoCompletionError)),
    # This machine.
    _Row(
        "unknown",
        False,
        "a package that litellm needs is not installed",
        lambda evidence: evidence.missing_package is not None,
    ),
    _Row("local", False, "this machine is out of files, memory or ports", _out_of_resources),
    # The Router: nothing was sent.
    _Row(
        "cooling_down",
        False,
        "all deployments of the model are cooling down",
        _named_class(*_COOLDOWN_CLASSES),
    ),
    # A stream that was cut off has text already, which is billed.
    _Row(
        "answer",
        True,
        "the stream was cut off",
        _all(_is(StreamInterruptedError), _no_answer),
    ),
    _Row("answer", True, "the answer is not valid", lambda evidence: evidence.unreadable),
    # No answer.
    _Row(
        "unreachable",
        False,
        "no connection to the server",
        _all(_no_answer, _named_class(*_CONNECT_CLASSES)),
    ),
    _Row(
        "timeout",
        True,
        "the provider took longer than the timeout",
        _all(_no_answer, _named_class(*_TIMEOUT_CLASSES)),
    ),
    _Row(
        "unreachable",
        None,
        "the connection was lost before the answer",
        _all(_no_answer, _named_class(*_RESET_CLASSES)),
    ),
    # litellm gives it the class of a lost connection.
    _Row(
        "request",
        False,
        "litellm does not have this endpoint of the provider",
        _all(_no_answer, _says("unsupported provider: ")),
    ),
    _Row("unreachable", None, "the connection failed", _all(_no_answer, _lost_connection)),
    # The account: the same for every request of the model.
    _Row(
        "account",
        False,
        "the quota of the account is used up",
        _all(_status_in(403, 429), _QUOTA_OF_A_DAY),
    ),
    # Gemini reports a quota per minute in words that other providers use for a quota that is used
    # up, and adds a retry delay.
    _Row("overloaded", False, "too many requests", _all(_status_in(429), _has_retry_info)),
    _Row("account", False, "the account has no credit or quota left", _NO_CREDIT),
    _Row("account", False, "a budget of litellm is used up", _named_class("BudgetExceededError")),
    _Row("account", False, "the provider refused the key", _any(_status_in(401), _WRONG_KEY)),
    _Row(
        "request", True, "the provider refused the content", _all(_status_in(403), _REFUSED_CONTENT)
    ),
    _Row("account", False, "the provider refused access", _status_in(403)),
    _Row("account", False, "the provider demands payment", _status_in(402)),
    _Row("account", False, "the provider does not know the model or the address", _status_in(404)),
    # The request.
    _Row(
        "request",
        False,
        "the request is larger than the provider's limit",
        _any(
            _status_in(413),
            _named_class("ContextWindowExceededError"),
            _all(_status_in(429), _asks_for_more_than_the_limit),
        ),
    ),
    _Row(
        "request",
        False,
        "the provider refused the content",
        _any(
            _named_class("ContentPolicyViolationError", "RejectedRequestError"),
            _named_class("GuardrailRaisedException", "BlockedPiiEntityError"),
            _named_class("SensitiveDataRouteException", "ModifyResponseException"),
            _all(_status_in(400), _REFUSED_CONTENT),
        ),
    ),
    # The provider.
    _Row("overloaded", False, "the provider is overloaded", _OVERLOADED_CODE),
    _Row("overloaded", False, "too many requests", _status_in(429)),
    _Row("timeout", None, "the provider gave up waiting", _status_in(408, 499)),
    _Row(
        "overloaded",
        False,
        "the provider is overloaded or down",
        _status_in(409, 424, 425, 498, 502, 503, 504, *range(520, 530)),
    ),
    _Row(
        "unknown",
        False,
        "the provider failed",
        lambda evidence: evidence.answer_status is not None and evidence.answer_status >= 500,
    ),
    _Row("request", False, "the provider refused the request", _status_between(400, 500)),
    _Row("unreachable", None, "the connection failed", _all(_no_answer, _claims_a_lost_connection)),
    _Row("unknown", None, "the call failed in an unexpected way", lambda _: True),
)
