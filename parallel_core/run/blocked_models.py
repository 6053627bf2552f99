"""Models whose requests do not get through, and their failures that are not written yet.

Account faults and overload are not failures of a request if they affect every request. So these
failures are held back until a request of the model that was sent later succeeds. A request without
a line is sent by the next run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from parallel_core.errors import NotSentError
from parallel_core.failures import FailureKind, classify
from parallel_core.types import RouterParallelResult

_MOST_HELD_BACK: Final = 256  # failures of a model in memory; the next run sends further requests
# Nothing was paid for, and the same request may succeed in the next run.
_UNPAID_KINDS: Final[frozenset[FailureKind]] = frozenset(("unreachable", "cooling_down", "local"))
# These may affect every request of a model.
_SHARED_KINDS: Final[frozenset[FailureKind]] = frozenset(("account", "overloaded"))


class CallOutcome(NamedTuple):
    """The result of a request of the file.

    Attributes:
        custom_id: id of the request.
        returned: members of its line that are copied to the result line.
        result: the result of the call.
    """

    custom_id: str
    returned: Mapping[str, msgspec.Raw] | None
    result: RouterParallelResult

    @property
    def ended_at(self) -> float:
        """Time at which the call ended."""
        return self.result.started_at + self.result.duration


class BlockedModels:
    """Models whose requests do not get through.

    Args:
        holds_back: False if every failure of a call is written at once.

    Attributes:
        errors: by model, the error for which its requests do not get through.
    """

    def __init__(self, *, holds_back: bool) -> None:
        self.errors: dict[str, Exception] = {}
        self._holds_back = holds_back
        self._held_back = defaultdict[str, list[CallOutcome]](list)
        self._stopped = set[str]()  # models whose requests are not sent any more

    def takes(self, outcome: CallOutcome, error: Exception) -> bool:
        """Note a failure. Return True if it is not written now."""
        model = outcome.result.request.model
        if isinstance(error, NotSentError):
            self.errors[model] = error
            self._stopped.add(model)
            return True
        kind = classify(error).kind
        is_shared = kind in _SHARED_KINDS
        if not self._holds_back or not (is_shared or kind in _UNPAID_KINDS):
            return False
        if kind != "overloaded" and (kind != "cooling_down" or model not in self.errors):
            self.errors[model] = error  # keep an earlier cause: a cooldown does not say why
        held_back = self._held_back[model]
        if is_shared and len(held_back) < _MOST_HELD_BACK:
            held_back.append(outcome)
            return True
        return kind != "overloaded"

    def got_through(self, result: RouterParallelResult) -> list[CallOutcome]:
        """Note an answer. Return the held-back failures of its model that are to be written now.

        They ended before the answered request was sent. A request that was sent before a failure
        proves nothing: the key may have been refused meanwhile.
        """
        model = result.request.model
        held_back = self._held_back.pop(model, [])
        if later := [one for one in held_back if result.started_at < one.ended_at]:
            self._held_back[model] = later
        else:
            self.errors.pop(model, None)
        return [one for one in held_back if result.started_at >= one.ended_at]

    def at_the_end(self) -> list[CallOutcome]:
        """Return the held-back failures to write at the end: overload of models not stopped."""
        return [
            one
            for model, held_back in self._held_back.items()
            if model not in self._stopped
            for one in held_back
            if one.result.exception is not None
            and classify(one.result.exception).kind == "overloaded"
        ]
