"""What an exception means, and what is to be done about it: one table for the whole package."""

from .evidence import Evidence, evidence_of
from .table import KINDS, MAY_PASS, Failure, FailureKind, classify

__all__ = ["KINDS", "MAY_PASS", "Evidence", "Failure", "FailureKind", "classify", "evidence_of"]
