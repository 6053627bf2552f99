"""Describe a failure in one sentence that names the model and the address."""

from __future__ import annotations

from typing import Final

from .evidence import evidence_of
from .table import classify_evidence

# Reasons about the key or the account: (subject, beginning of the reason, its replacement).
_SUBJECTS: Final = (
    ("the key", "the provider refused the key", " was refused"),
    ("the account", "the account", ""),
)


def describe(model: str, error: BaseException) -> str:
    """Describe why a request failed and, as far as known, where it was sent."""
    evidence = evidence_of(error)
    reason = classify_evidence(evidence).reason
    deployment, address = evidence.deployment, evidence.address
    where = f"model {model}" if deployment is None else f"deployment {deployment}"
    if deployment is not None and deployment.rpartition("/")[2] != model:
        where += f" of model {model}"
    if address is not None:
        where += f" at {address}"
    for subject, begin, rest in _SUBJECTS:
        if reason.startswith(begin):
            return f"{subject} of {where}{rest}{reason.removeprefix(begin)}"
    return f"{where}: {reason}"
