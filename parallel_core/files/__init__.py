"""File formats: read requests, and read and write result lines."""

from .batch_input import InputFile, InputProblem, InputRequest, InputSummary
from .batch_output import (
    Redactor,
    call_statistics,
    failure_in,
    parse_output_line,
    problem_line,
    result_line,
    unwritable_line,
)
from .input_members import describe_columns
from .line_failures import LineFailure

__all__ = [
    "InputFile",
    "InputProblem",
    "InputRequest",
    "InputSummary",
    "LineFailure",
    "Redactor",
    "call_statistics",
    "describe_columns",
    "failure_in",
    "parse_output_line",
    "problem_line",
    "result_line",
    "unwritable_line",
]
