"""Requests that a demo server keeps, for tests of what a client sends."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from parallel_core.secret_names import is_secret_name

_MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, repr=False)  # a repr would show the messages
class RecordedRequest:
    """A request that arrived at ``/v1/…``, and its answer.

    Attributes:
        method: HTTP method.
        path: path with the query.
        headers: values by the headers' names in lower case. A header that may contain a key has
            only its :func:`digest`.
        body: the parsed JSON; None if the body is not JSON.
        answer: the body of the answer, also whole if it was sent as a stream; None for a fault,
            or if the path has no synthetic answers.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    answer: Any = None

    def to_json(self) -> dict[str, Any]:
        """Return the request as a dictionary for ``json.dumps``."""
        return asdict(self)

    @staticmethod
    def all_from_json(value: Mapping[str, Any]) -> list[RecordedRequest]:
        """Read the answer of ``/requests``."""
        return [RecordedRequest(**cast("dict[str, Any]", one)) for one in value["requests"]]


def digest(value: str) -> str:
    """Return a digest of a header that may contain a key, for comparisons."""
    return f"sha256:{hashlib.sha256(value.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


class Recording:
    """Keeps the newest requests as texts, up to a number and 64 MiB.

    Args:
        most: number of requests; 0: none is kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: deque[list[str]] = deque()  # the request, and its answer once there is one
        self._size = 0

    @property
    def is_on(self) -> bool:
        return self._most > 0

    def add(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> RecordedAnswer | None:
        """Keep a request. Return the place for its answer, or None if requests are not kept."""
        if not self.is_on:
            return None
        names = {name.lower(): value for name, value in headers.items()}
        shown = {name: _shown(name, value) for name, value in names.items()}
        try:
            parsed: Any = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
        request = RecordedRequest(method, path, shown, parsed)
        entry = [json.dumps(request.to_json())]
        self._kept.append(entry)
        self._grow(len(entry[0]))
        return RecordedAnswer(self, entry)

    def requests(self) -> list[RecordedRequest]:
        """Return the kept requests, the oldest first."""
        requests: list[RecordedRequest] = []
        for request, *answer in self._kept:
            fields: dict[str, Any] = json.loads(request)
            fields["answer"] = json.loads(answer[0]) if answer else None
            requests.append(RecordedRequest(**fields))
        return requests

    def clear(self) -> None:
        """Forget all requests."""
        for entry in self._kept:
            entry.clear()
        self._kept.clear()
        self._size = 0

    def keep_answer(self, entry: list[str], answer: Mapping[str, Any]) -> None:
        if entry:  # an entry that is no longer kept is empty
            entry[1:] = [json.dumps(answer)]
            self._grow(len(entry[1]))

    def _grow(self, size: int) -> None:
        self._size += size
        while self._kept and (len(self._kept) > self._most or self._size > _MOST_BYTES):
            dropped = self._kept.popleft()
            self._size -= sum(map(len, dropped))
            dropped.clear()


class RecordedAnswer:
    """Place for the answer of a recorded request."""

    def __init__(self, recording: Recording, entry: list[str]) -> None:
        self._recording = recording
        self._entry = entry

    def set(self, answer: Mapping[str, Any]) -> None:
        """Keep the answer, if its request is still kept."""
        self._recording.keep_answer(self._entry, answer)


def _shown(name: str, value: str) -> str:
    return digest(value) if is_secret_name(name) else value
