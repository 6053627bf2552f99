"""Facts about a failed call, collected from its exception and the exceptions that it wraps.

litellm gives every failure a status, even a refused connection, and changes some: Anthropic's 529
becomes a 500. The wrapped exceptions still have the status, the body and the headers that the
provider really sent.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard, cast

from parallel_core.errors import RemoteCallError

from .missing_packages import MissingPackage, missing_package

_MOST_CAUSES = 16
_LITELLM_EXCEPTIONS = "litellm.exceptions"
# These wrap the error of the same attempt instead of replacing it.
_WRAPPERS = frozenset(("MidStreamFallbackError",))
# Only these classes have the status of a real HTTP answer, even if litellm changed it.
_ANSWERS = frozenset(("HTTPStatusError", "APIStatusError", "ClientResponseError"))
# Raised while an answer is parsed.
_GARBAGE_CLASSES = frozenset(
    (
        "JSONDecodeError",
        "APIResponseValidationError",
        "LengthFinishReasonError",
        "ContentFilterFinishReasonError",
        "ValidationError",
    )
)
WITHOUT_CHOICES = (
    "provider returned a response with no 'choices'",
    "provider returned 'choices' that is not a list",
)
"""Messages that litellm raises for an answer whose body has no list of choices."""
# Messages of litellm about an answer of status 200 that it cannot read. litellm gives it status
# 500.
_UNREADABLE = re.compile(
    "|".join(
        (
            "empty or invalid response from llm endpoint",
            "unable to get json response",
            "invalid response object",
            *WITHOUT_CHOICES,
        )
    )
)
_JSON = re.compile(r"[\[{].*[\]}]", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{1,63}")
_LONGEST_TEXT = 20_000  # characters: the body from a proxy can be a whole page


@dataclass(frozen=True)
class Evidence:
    """Facts about a failed attempt.

    Attributes:
        chain: the exception, its cause, and so on, without the previous attempt.
    """

    chain: tuple[BaseException, ...]

    @property
    def exception(self) -> BaseException:
        return self.chain[0]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the classes in the chain and of their base classes."""
        return frozenset(name for error in self.chain for name in class_names(error))

    @cached_property
    def unreadable(self) -> bool:
        """True if an answer arrived that could not be read."""
        return not _GARBAGE_CLASSES.isdisjoint(self.names) or self.quotes_an_answer

    @cached_property
    def quotes_an_answer(self) -> bool:
        """True if litellm reports an unreadable answer, which its message then quotes."""
        return _UNREADABLE.search(self.text) is not None

    @cached_property
    def missing_package(self) -> MissingPackage | None:
        """Missing package that prevented the request; None if it failed for another reason."""
        if self.answer_status is not None:
            return None
        return missing_package(_text(self.exception), self.chain)

    @property
    def real_causes(self) -> list[BaseException]:
        """Exceptions underneath litellm's own.

        Each ImportError is left out: code that works without an optional package leaves one in the
        context of later failures.
        """
        return [
            error
            for error in self.chain[1:]
            if type(error).__module__ != _LITELLM_EXCEPTIONS and not isinstance(error, ImportError)
        ]

    @cached_property
    def answer_status(self) -> int | None:
        """HTTP status that a server sent; None if no server is known to have answered."""
        for error in reversed(self.chain):
            if type(error).__module__ == _LITELLM_EXCEPTIONS:
                continue  # their status and response may be made up
            if not _ANSWERS.isdisjoint(class_names(error)):
                status = _status(_field(error, "response")) or _status(error)
                if _is_failure(status):
                    return status
        code = self.error.get("code")  # an error inside a 200
        if type(code) is int and _is_failure(code):
            return code
        for error in self.chain:
            answered = _field(error, "litellm_response_headers") or _field(error, "body")
            status = _status(error)
            if answered and _is_failure(status) and not (status >= 500 and self.unreadable):
                return status
        return None

    @cached_property
    def status(self) -> int | None:
        """HTTP status of the answer, or else the status that an exception claims."""
        if self.answer_status is not None:
            return self.answer_status
        claimed = (status for error in self.chain if _is_failure(status := _status(error)))
        return next(claimed, None)

    @cached_property
    def error(self) -> Mapping[str, Any]:
        """Error object of the body; empty if there is none.

        litellm keeps the body for some statuses only. For others its message quotes the body.
        """
        for document in () if self.sent_error else self._quoted():
            if error := _error_in(document):
                return error
        return self.sent_error

    @cached_property
    def sent_error(self) -> Mapping[str, Any]:
        """Error object of a body as the server sent it; empty if there is none."""
        for error in self.chain:
            body = _field(error, "body")
            found = _error_in(body)
            if not found and isinstance(body, Mapping):
                found = cast("Mapping[str, Any]", body)
            if found:
                return found
        return {}

    @cached_property
    def code(self) -> str | None:
        """Provider's name for the error, if it is an identifier."""
        code: object = self.error.get("code") or self.error.get("type")
        return code if isinstance(code, str) and _IDENTIFIER.fullmatch(code) else None

    @cached_property
    def message(self) -> str | None:
        """Provider's message, or None. It may quote the request and the key."""
        for name in ("message", "detail"):
            message = self.error.get(name)
            if isinstance(message, str) and message:
                return message[:_LONGEST_TEXT]
        return None

    @cached_property
    def codes(self) -> frozenset[str]:
        """Codes of the error, in lower case.

        They are ``code``, ``type`` and ``status`` of the error object, and the reasons and exceeded
        quotas that Google names.
        """
        named = (self.error.get(name) for name in ("code", "type", "status"))
        reasons = (detail.get("reason") for detail in self.details)
        found = (*named, *reasons, *self._quotas())
        return frozenset(str(value).lower() for value in found if value is not None)

    @cached_property
    def details(self) -> list[Mapping[str, Any]]:
        """``details`` of an error in Google's format."""
        details: object = self.error.get("details")
        if not isinstance(details, list):
            return []
        return [
            cast("Mapping[str, Any]", detail)
            for detail in cast("list[object]", details)
            if isinstance(detail, Mapping)
        ]

    @cached_property
    def text(self) -> str:
        """Provider's message, or else that of the exception, in lower case."""
        return (self.message or _text(self.exception)).lower()

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """Headers of the answer, with names in lower case."""
        for error in self.chain:
            for holder in (error, _field(error, "response")):
                for name in ("litellm_response_headers", "headers"):
                    headers = _field(holder, name)
                    if headers is not None and hasattr(headers, "items") and len(headers):
                        return {str(key).lower(): str(value) for key, value in headers.items()}
        return {}

    @cached_property
    def address(self) -> str | None:
        """Host and port that the request was sent to; None if unknown."""
        for error in reversed(self.chain):
            if type(error).__module__.startswith("litellm."):
                continue  # their address may be made up
            url = _field(_field(error, "request"), "url")
            host = _field(url, "host")
            if isinstance(host, str) and host:
                port = _field(url, "port")
                host = f"[{host}]" if ":" in host else host
                return f"{host}:{port}" if type(port) is int else host
        return None

    @cached_property
    def deployment(self) -> str | None:
        """Model that litellm requested from the provider; None if unknown."""
        for error in self.chain:
            model = _field(error, "model")
            if type(error).__module__ == _LITELLM_EXCEPTIONS and isinstance(model, str) and model:
                return model
        return None

    def attribute(self, name: str) -> Any:
        """Return the first attribute of this name in the chain that is not None."""
        values = (_field(error, name) for error in self.chain)
        return next((value for value in values if value is not None), None)

    def errno_in(self, numbers: frozenset[int]) -> bool:
        """Return True if an OSError in the chain has one of these numbers."""
        return any(isinstance(e, OSError) and e.errno in numbers for e in self.chain)

    def _quotas(self) -> Iterator[object]:
        for detail in self.details:
            violations: object = detail.get("violations")
            if isinstance(violations, list):
                for violation in cast("list[object]", violations):
                    if isinstance(violation, Mapping):
                        yield cast("Mapping[str, Any]", violation).get("quotaId")

    def _quoted(self) -> Iterator[object]:
        for error in self.chain:
            body = _field(error, "body")
            if isinstance(body, str):
                yield from _documents_in(body)
        for error in self.chain:
            yield from _documents_in(_text(error))


def evidence_of(exception: BaseException) -> Evidence:
    """Collect the facts about the attempt that raised this exception.

    A Router raises the error of its last attempt while it handles the previous one, so the previous
    error is in the context. Only the errors of the last attempt are collected.
    """
    chain: list[BaseException] = []
    current: BaseException | None = exception
    found_attempt = False
    while current is not None and len(chain) < _MOST_CAUSES and current not in chain:
        if type(current).__module__ == _LITELLM_EXCEPTIONS:
            # The Router raises the same error again, as a copy.
            is_copy = (
                bool(chain)
                and type(current) is type(chain[-1])
                and _status(current) == _status(chain[-1])
            )
            if found_attempt and not is_copy:
                break
            found_attempt = found_attempt or type(current).__name__ not in _WRAPPERS
        chain.append(current)
        current = current.__cause__ or current.__context__
    return Evidence(tuple(chain))


def class_names(error: BaseException) -> set[str]:
    """Return the names of an exception's class and of its base classes.

    The package compares names instead of classes because importing litellm, openai or httpx takes
    seconds.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, RemoteCallError):  # it replaces an error whose class is not here
        names.add(error.type_name.rpartition(".")[2])
    return names


def _field(value: object, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - from any library: httpx raises if an error has no request
        return None


def _status(value: object) -> int | None:
    for name in ("status_code", "status"):
        status = _field(value, name)
        if type(status) is int and 100 <= status < 600:
            return status
    return None


def _is_failure(status: int | None) -> TypeGuard[int]:
    return status is not None and 300 <= status < 600


def _text(error: BaseException) -> str:
    message = _field(error, "message")
    try:
        text = message if isinstance(message, str) and message else str(error)
    except Exception:  # noqa: BLE001 - from any library: an error without a message
        return ""
    return text[:_LONGEST_TEXT]


def _documents_in(text: str) -> Iterator[object]:
    """Yield the document inside a text.

    litellm writes bodies into its messages as JSON or as the repr of a dict.
    """
    found = _JSON.search(text)
    if found is None:
        return
    for read in (json.loads, ast.literal_eval):
        try:
            yield read(found[0])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return


def _error_in(document: object) -> Mapping[str, Any]:
    if isinstance(document, list) and document:  # Gemini's compatible endpoint sends a list
        document = cast("list[object]", document)[0]
    if not isinstance(document, Mapping):
        return {}
    body = cast("Mapping[str, Any]", document)
    inner = body.get("error")
    if isinstance(inner, Mapping):
        return cast("Mapping[str, Any]", inner)
    if isinstance(inner, str):
        return {name: body[name] for name in body if name != "error"} | {"message": inner}
    return body if "message" in body or "code" in body else {}
