"""Send a request that failed on one deployment at once to another deployment of its model.

A Router does that by pausing a deployment, and when all of them are paused its calls fail within
milliseconds. Here the last remaining deployment is never excluded, unless the Router falls back
from it to another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from parallel_core.failures import Failure, FailureKind, describe, evidence_of

_PAUSES: Mapping[FailureKind, float] = {"account": 60.0, "unreachable": 5.0}
"""Seconds for which no request is sent to a deployment that failed in this way. For other kinds the
deployment pauses for as long as the provider asks, and only the failed request goes to another."""

_NOT_OF_THE_DEPLOYMENT: Set[FailureKind] = frozenset(("request", "local", "cooling_down"))
# A deployment pauses after this many failures of any kind in a row.
_FAILURES_IN_A_ROW = 3
_LONGEST_PAUSE = 60.0


def _no_deployments(model: str) -> Mapping[str, float]:
    return {}


def _unchanged(item: Any, deployments: Set[str]) -> Any:
    return item


def _unknown_deployment(value: Any) -> tuple[str, bool]:
    return "", False


def _has_no_fallback(model: str) -> bool:
    return False


@dataclass(slots=True)
class _Deployment:
    """The state of a deployment that has failed.

    Attributes:
        row: failures since the last success.
        pauses: pauses since the last success; each is longer than the one before.
        paused_until: time at which the pause ends.
        last_failed: time of the last failure.
        prober: index of the request that checks if the deployment is back.
        cause: the last failure that the Router raised, and its error.
    """

    row: int = 0
    pauses: int = 0
    paused_until: float = -math.inf
    last_failed: float = -math.inf
    prober: int | None = None
    cause: tuple[Failure, Exception] | None = None

    def failed(self, least: float, now: float) -> None:
        self.row += 1
        self.last_failed = now
        pause = least
        if self.row >= _FAILURES_IN_A_ROW:
            if now >= self.paused_until:  # count calls that began together once
                self.pauses += 1
            pause = max(pause, min(2.0 ** (self.pauses - 1), _LONGEST_PAUSE))
        if pause:
            self.paused_until = max(self.paused_until, now + pause)

    def got_through(self, began: float) -> None:
        self.row = self.pauses = 0
        self.cause = None
        if began >= self.last_failed:
            self.paused_until = -math.inf

    def is_resting(self, now: float, index: int | None) -> bool:
        """Return True if this request must not be sent to it."""
        if now < self.paused_until:
            return True
        return self.row >= _FAILURES_IN_A_ROW and self.prober not in (None, index)


class Failover:
    """The deployments of each model that must not be asked now. By default there are none.

    Args:
        deployments_of: returns the ids of the deployments of a model, each with its order: the
            Router asks those with a higher order when those with a lower one have failed.
        without: returns a request that is not sent to these deployments.
        answered_by: returns the id of the deployment that gave an answer, empty if unknown, and
            True if the Router fell back to it after another one had failed.
        falls_back: returns True if the Router asks another model when one has no deployment left.

    Attributes:
        failed_deployments: by deployment id, why its account is at fault and it was excluded.
    """

    def __init__(
        self,
        deployments_of: Callable[[str], Mapping[str, float]] = _no_deployments,
        without: Callable[[Any, Set[str]], Any] = _unchanged,
        answered_by: Callable[[Any], tuple[str, bool]] = _unknown_deployment,
        falls_back: Callable[[str], bool] = _has_no_fallback,
    ) -> None:
        self.without = without
        self.failed_deployments: dict[str, str] = {}
        self._deployments_of = deployments_of
        self._answered_by = answered_by
        self._falls_back = falls_back
        self._known: dict[str, Mapping[str, float]] = {}
        self._failing: dict[str, _Deployment] = {}

    def failed(self, model: str | None, failure: Failure, error: Exception, now: float) -> str:
        """Note a failure; return the id of the deployment that failed, empty if unknown."""
        deployment: object = evidence_of(error).attribute("failed_deployment_id")
        if (
            model is None
            or not isinstance(deployment, str)
            or deployment not in self._all_of(model)
        ):
            if deployment is None and failure.kind == "timeout":
                # Any of them may hang. An answer clears the suspicion.
                self._suspect(self._all_of(model).keys() - self._resting(model, now, None), now)
            return ""  # a deployment of a fallback belongs to another model
        if failure.kind == "account" and deployment not in self.failed_deployments:
            self.failed_deployments[deployment] = describe(model, error)
        if failure.kind not in _NOT_OF_THE_DEPLOYMENT:
            state = self._failing.setdefault(deployment, _Deployment())
            state.failed(max(_PAUSES.get(failure.kind, 0.0), failure.retry_after or 0.0), now)
            state.cause = failure, error
        return deployment

    def got_through(
        self, model: str | None, value: Any, excluded: Set[str], began: float, now: float
    ) -> None:
        """Note an answer to a request that could not be sent to ``excluded``."""
        deployment, fell_back = self._answered_by(value)
        if not (self._failing or fell_back):
            return
        # If it is unknown, it may be any deployment that was not excluded.
        may_have_answered = {deployment} if deployment else self._all_of(model).keys() - excluded
        for one in may_have_answered & self._failing.keys():
            self._failing[one].got_through(began)
        if fell_back:  # the Router does not report the failures of those that it asked before
            deployments = self._all_of(model)
            order = deployments.get(deployment, math.inf)
            is_another_models = deployment not in deployments
            asked = (one for one in deployments if is_another_models or deployments[one] < order)
            self._suspect(set(asked) - excluded, now)

    def _suspect(self, deployments: Iterable[str], now: float) -> None:
        for deployment in deployments:
            self._failing.setdefault(deployment, _Deployment()).failed(0.0, now)

    def has_untried(self, model: str | None, tried: Set[str], now: float) -> bool:
        """Return True if a deployment is left that was not tried and may be asked now."""
        return bool(self._all_of(model).keys() - tried - self._resting(model, now, None))

    def excluded(
        self, model: str | None, tried: Set[str], now: float, index: int | None = None
    ) -> Set[str]:
        """Return the ids of the deployments to which a request must not be sent.

        These are never all deployments, unless the Router falls back.

        Args:
            index: index of the request. Call :meth:`ended` when its attempt has ended.
        """
        if not tried and not self._failing:
            return frozenset()
        deployments = self._all_of(model).keys()
        resting = self._resting(model, now, index)
        for deployment in deployments - resting - tried:
            state = self._failing.get(deployment)
            if state is not None and state.row >= _FAILURES_IN_A_ROW:
                state.prober = index
        for unwanted in (tried | resting, resting):
            if deployments - unwanted:
                return deployments & unwanted
        if model is not None and self._falls_back(model):
            return resting
        dead = {one for one in resting if self._is_dead(one)}
        return dead if deployments - dead else frozenset()

    def may_come_back(self, model: str | None) -> tuple[Failure, Exception] | None:
        """Return a failure that may pass of a deployment of this model; None if there is none."""
        states = (self._failing.get(one) for one in self._all_of(model))
        causes = (state.cause for state in states if state is not None and state.cause is not None)
        return next((cause for cause in causes if cause[0].may_pass), None)

    def _is_dead(self, deployment: str) -> bool:
        cause = self._failing[deployment].cause
        return cause is not None and cause[0].kind == "account"

    def end(self) -> None:
        """Forget the failures: their errors keep references to objects of the calls."""
        self._failing.clear()

    def ended(self, index: int) -> None:
        """Note that an attempt of this request has ended."""
        for state in self._failing.values():
            if state.prober == index:
                state.prober = None

    def _resting(self, model: str | None, now: float, index: int | None) -> Set[str]:
        if not self._failing:
            return frozenset()
        states = ((one, self._failing.get(one)) for one in self._all_of(model))
        return {one for one, state in states if state is not None and state.is_resting(now, index)}

    def _all_of(self, model: str | None) -> Mapping[str, float]:
        if model is None:
            return {}
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = self._deployments_of(model)
        return known
