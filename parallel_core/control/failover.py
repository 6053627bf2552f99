"""Send a request that failed on one deployment to another one of its model, at once.

A Router does that by letting a deployment pause, and when all of them pause its calls fail within
milliseconds. Here the last one that is left is never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from parallel_core.failures import Failure, FailureKind, describe, evidence_of

_PAUSES: Mapping[FailureKind, float] = {"account": 60.0, "unreachable": 5.0}
"""Seconds for which no request is sent to a deployment that failed in this way. For other kinds the
deployment pauses for as long as the provider asks, and only the request itself goes elsewhere."""


class Failover:
    """Knows which deployments of a model are not to be asked now.

    Args:
        deployments_of: returns the ids of the deployments of a model.
        without: returns a request that is not sent to these deployments.

    Attributes:
        at_fault: why a deployment was passed over whose account is at fault, by its id.
    """

    def __init__(
        self,
        deployments_of: Callable[[str], Set[str]],
        without: Callable[[Any, Set[str]], Any],
    ) -> None:
        self.without = without
        self.at_fault: dict[str, str] = {}
        self._deployments_of = deployments_of
        self._known: dict[str, Set[str]] = {}
        self._paused_until: dict[str, float] = {}

    def failed(self, model: str | None, failure: Failure, error: Exception, now: float) -> str:
        """Note a failure; return the id of the deployment that it is of, empty if not known."""
        deployment: object = evidence_of(error).attribute("failed_deployment_id")
        if (
            model is None
            or not isinstance(deployment, str)
            or deployment not in self._all_of(model)
        ):
            return ""  # a deployment of a fallback is another model's
        if failure.kind == "account" and deployment not in self.at_fault:
            self.at_fault[deployment] = describe(model, error)
        pause = max(_PAUSES.get(failure.kind, 0.0), failure.retry_after or 0.0)
        if pause:
            until = max(self._paused_until.get(deployment, 0.0), now + pause)
            self._paused_until[deployment] = until
        return deployment

    def is_one_left(self, model: str | None, tried: Set[str], now: float) -> bool:
        """Return True if there is a deployment that a request has not tried, and may ask now."""
        return bool(self._all_of(model) - tried - self._paused(now))

    def passed_over(self, model: str | None, tried: Set[str], now: float) -> Set[str]:
        """Return the ids of deployments that a request is not to be sent to: never all of them."""
        if not tried and not self._paused_until:
            return frozenset()
        deployments, paused = self._all_of(model), self._paused(now)
        for unwanted in (tried | paused, paused):
            if deployments - unwanted:
                return deployments & unwanted
        return frozenset()

    def _paused(self, now: float) -> Set[str]:
        if not self._paused_until:
            return frozenset()
        for deployment in [one for one, until in self._paused_until.items() if until <= now]:
            del self._paused_until[deployment]
        return self._paused_until.keys()

    def _all_of(self, model: str | None) -> Set[str]:
        if model is None:
            return frozenset()
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = self._deployments_of(model)
        return known
