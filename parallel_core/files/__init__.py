"""File formats: read requests, and read and write result lines."""

from .answer_bodies import answer_body, hidden_parameters
from .batch_input import InputFile
from .batch_output import (
    call_statistics,
    failure_in,
    parse_output_line,
    problem_line,
    result_line,
    unwritable_line,
)
from .endpoints import EndpointName, endpoint_of_operation
from .input_members import describe_columns
from .input_records import InputProblem, InputRequest, InputSummary
from .line_failures import LineFailure

__all__ = [
    "EndpointName",
    "InputFile",
    "InputProblem",
    "InputRequest",
    "InputSummary",
    "LineFailure",
    "answer_body",
    "call_statistics",
    "describe_columns",
    "endpoint_of_operation",
    "failure_in",
    "hidden_parameters",
    "parse_output_line",
    "problem_line",
    "result_line",
    "unwritable_line",
]
