"""Meaning of exceptions and how to react to them: one table for the whole package."""

from .evidence import WITHOUT_CHOICES, Evidence, evidence_of
from .lines import CODES, classify_line, code_of_class
from .missing_packages import MISSING_DEPENDENCY
from .table import (
    FINAL,
    KINDS,
    MAY_PASS,
    NOT_FINAL,
    Failure,
    FailureKind,
    checked_kinds,
    classify,
    classify_evidence,
)
from .wording import describe

__all__ = [
    "CODES",
    "FINAL",
    "KINDS",
    "MAY_PASS",
    "MISSING_DEPENDENCY",
    "NOT_FINAL",
    "WITHOUT_CHOICES",
    "Evidence",
    "Failure",
    "FailureKind",
    "checked_kinds",
    "classify",
    "classify_evidence",
    "classify_line",
    "code_of_class",
    "describe",
    "evidence_of",
]
