"""What an exception means, and what is to be done about it: one table for the whole package."""

from .evidence import Evidence, evidence_of
from .missing_packages import MISSING_DEPENDENCY
from .table import KINDS, MAY_PASS, Failure, FailureKind, classify, classify_evidence

__all__ = [
    "KINDS",
    "MAY_PASS",
    "MISSING_DEPENDENCY",
    "Evidence",
    "Failure",
    "FailureKind",
    "classify",
    "classify_evidence",
    "evidence_of",
]
